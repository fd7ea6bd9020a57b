//! A log on its way: the base is filled while the guest runs, the first commit makes it a log.

use std::io;
use std::sync::Arc;

use ninefold_replica::protocol::LogStanding;
use ninefold_replica::stream::page::{PAGE_SIZE, Page};
use ninefold_replica::stream::{Hello, ModeChooser, PageEncoder, PageRun, PageSink};

use super::base::{self, Base};
use super::commit::{Commit, Log};
use super::error::LogError;
use super::fold::Shared;
use super::head::{self, FORMAT, Head};
use super::segment::{self, Segment};
use super::standing::{self, StandingFile};
use super::{At, Options};
use crate::storage::Storage;

/// A log that is being made. Until [`New::publish`] there is none, whatever happens.
#[derive(Debug)]
pub struct New {
    head: Head,
    base: Base,
    log: Log,
}

impl New {
    /// Removes the log that is there, if any, and begins another. `hello` says what VM this is.
    ///
    /// # Errors
    /// `Storage`, `Stream`.
    pub fn create(
        storage: Arc<dyn Storage>,
        hello: Hello,
        standing: &LogStanding,
        options: Options,
    ) -> Result<Self, LogError> {
        remove(&*storage)?;
        let log = crate::random::u128().map_err(|source| LogError::Storage {
            what: "cannot read",
            file: "the kernel's random numbers".into(),
            source,
        })?;
        let head = Head { format: FORMAT, log, base: 0, first: 1, durable: 1, volumes: 0, hello };
        let base = Base::create(&*storage, &head.hello.layout)?;
        let standing = StandingFile::create(&*storage, standing)?;
        let segment = Segment::create(&storage, 1, &head.hello)?;
        let images = if head.hello.spec.hardware.volumes.is_empty() { u64::MAX } else { 0 };
        let log = Log {
            storage,
            log,
            session: head.session(),
            hello: head.hello.clone(),
            options,
            encoder: PageEncoder::new(&head.hello.layout),
            chooser: ModeChooser::new(false),
            segment,
            fresh: true,
            last: 0,
            standing,
            spoilt: None,
            shared: Shared::new(0, images),
        };
        Ok(Self { head, base, log })
    }

    /// Pages of the initial copy. Later ones win.
    ///
    /// # Errors
    /// `Storage`.
    pub fn pages(&mut self, runs: &[PageRun], bytes: &[u8]) -> Result<(), LogError> {
        let failed = |source| LogError::Storage { what: "cannot write", file: base::MEMORY.into(), source };
        let mut rest = bytes;
        for run in runs {
            let length = run.count as usize * PAGE_SIZE;
            let Some((content, after)) = rest.split_at_checked(length) else {
                return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "the content of a page is missing")));
            };
            rest = after;
            self.write(run.block, run.first, content).map_err(failed)?;
        }
        Ok(())
    }

    /// Makes durable what was copied so far, so that less is left for [`New::publish`].
    ///
    /// # Errors
    /// `Storage`.
    pub fn sync(&self) -> Result<(), LogError> {
        self.base.sync()
    }

    /// As [`Log::stand`].
    ///
    /// # Errors
    /// `Storage`.
    pub fn stand(&mut self, standing: &LogStanding) -> Result<(), LogError> {
        self.log.stand(standing)
    }

    /// Where it is.
    pub fn storage(&self) -> Arc<dyn Storage> {
        self.log.storage()
    }

    /// The first commit: it brings what the copy has not.
    ///
    /// # Errors
    /// `Stream`, `Storage`.
    pub fn first(&mut self, at: At) -> Result<Commit<'_>, LogError> {
        Commit::begin(&mut self.log, at)
    }

    /// Makes a log of it, after the first commit. The volumes' images have to be durable as they were at that commit, or as
    /// they are once its operations are done again.
    ///
    /// # Errors
    /// `Storage`; `Damaged` without a first commit.
    pub fn publish(self) -> Result<Log, LogError> {
        if self.log.last == 0 {
            return Err(LogError::damaged(segment::name(1), "it has no first commit"));
        }
        self.base.sync()?;
        let failed = LogError::storage("cannot sync", "the log's directory");
        self.log.storage.sync().map_err(failed)?;
        self.head.store(&*self.log.storage)?;
        Ok(self.log)
    }
}

/// Memory as it is copied.
impl PageSink for New {
    fn write(&mut self, block: u16, first: u64, data: &[u8]) -> io::Result<()> {
        // Zeros among the pages stay holes.
        let pages = data.as_chunks::<PAGE_SIZE>().0;
        let is_zero = |page: &Page| page.iter().all(|&b| b == 0);
        let mut at = 0;
        while at < pages.len() {
            let zero = is_zero(&pages[at]);
            let end = (at..pages.len()).find(|&n| is_zero(&pages[n]) != zero).unwrap_or(pages.len());
            let (first, count) = (first + at as u64, (end - at) as u64);
            if zero {
                self.base.zero(block, first, count)?;
            } else {
                self.base.write(block, first, pages[at..end].as_flattened())?;
            }
            at = end;
        }
        Ok(())
    }

    fn read(&mut self, block: u16, page: u64, into: &mut Page) -> io::Result<()> {
        self.base.read(block, page, into)
    }

    fn zero(&mut self, block: u16, first: u64, count: u64) -> io::Result<()> {
        self.base.zero(block, first, count)
    }
}

/// Removes the log that is there, if any. Durable when this returns.
///
/// # Errors
/// `Storage`. Either the log is as it was or it is gone, whatever else is left of its files.
pub(super) fn remove(storage: &dyn Storage) -> Result<(), LogError> {
    let failed = || LogError::storage("cannot clear", "the log's directory");
    // First the root, then what it named.
    storage.remove(head::FILE).and_then(|()| storage.sync()).map_err(failed())?;
    let fixed = [base::MEMORY, base::SUMS, standing::FILE];
    for name in storage.names().map_err(failed())? {
        if segment::number(&name).is_some() || fixed.contains(&&*name) {
            storage.remove(&name).map_err(failed())?;
        }
    }
    storage.sync().map_err(failed())
}
