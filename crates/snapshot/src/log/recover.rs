//! After a loss of power: what the log holds, and how to go on from it.

use std::sync::Arc;

use ninefold_replica::protocol::{LogRole, LogStanding};
use ninefold_replica::stream::Reign;
use ninefold_replica::stream::record::MAX_VOLUMES;
use ninefold_replica::stream::{CheckpointAssembler, Hello, ModeChooser, PageEncoder, PageRun, PageSink};

use super::base::{Base, Covered};
use super::chain::{Chain, Extent, Nowhere};
use super::commit::Log;
use super::error::LogError;
use super::fold::Shared;
use super::head::Head;
use super::segment::{self, Segment, name};
use super::standing::StandingFile;
use super::{Committed, Options, new};
use crate::storage::Storage;

/// Takes the operations of one commit on a volume: the volume's number, the operations.
pub type PlayVolume<'a> = &'a mut dyn FnMut(u16, Vec<u8>) -> Result<(), LogError>;

/// A log that was read from end to end and checks out. Nothing has been changed.
#[derive(Debug)]
pub struct Found {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) head: Head,
    /// The commit after which nothing is looked at.
    until: u64,
    base: Base,
    standing: StandingFile,
    pub(super) extents: Vec<Extent>,
    covered: Covered,
    last: Committed,
    output: Vec<Vec<u8>>,
}

/// The parts of the last commit beside memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// What it is.
    pub committed: Committed,
    pub device_state: Vec<u8>,
    /// What the guest said on each channel in it.
    pub output: Vec<Vec<u8>>,
}

impl Found {
    /// Reads the log in this directory, all of it.
    ///
    /// # Errors
    /// `None`: there is none. `Version`, `Damaged`, `Storage`: there is one, and it cannot be used; its files are as they were.
    pub fn look(storage: Arc<dyn Storage>) -> Result<Self, LogError> {
        Self::look_if(storage, &|_| Ok(()))
    }

    /// The same for a log of a VM that `suits`, which is asked before more is read, and memory taken, than the head: a bit or two
    /// for each page that the VM is said to have.
    ///
    /// # Errors
    /// As [`Found::look`]; `Refused`: what `suits` says.
    pub fn look_if(storage: Arc<dyn Storage>, suits: &dyn Fn(&Hello) -> Result<(), String>) -> Result<Self, LogError> {
        let head = Head::load(&*storage)?;
        suits(&head.hello).map_err(LogError::Refused)?;
        let found = Self::read(storage, head, u64::MAX)?;
        // A backup's in which nothing of its session is whole yet: see `Log::go_on`. One that has taken over has a later term.
        if found.is_between_sessions() {
            return Err(LogError::None);
        }
        Ok(found)
    }

    /// Reads it as far as this commit.
    pub(super) fn read(storage: Arc<dyn Storage>, head: Head, until: u64) -> Result<Self, LogError> {
        let standing = StandingFile::load(&*storage)?;
        let base = Base::open(&*storage, &head.hello.layout)?;
        let mut covered = Covered::new(&head.hello.layout);
        let (mut last, mut output) = (None, Vec::new());
        let chain = Chain { until, ..Chain::new(&storage, &head) };
        let extents = chain.read(&mut Nowhere, &mut |committed, assembler| {
            last = Some(*committed);
            output = said(assembler);
            cover(&mut covered, assembler)
        })?;
        let last: Committed = last.ok_or_else(|| LogError::damaged(name(head.first), "it has no commit"))?;
        Ok(Self { storage, head, until, base, standing, extents, covered, last, output })
    }

    /// It is that of a backup to whose session its last commit does not belong: what has changed since was being written.
    pub(super) fn is_between_sessions(&self) -> bool {
        matches!(self.standing().role, LogRole::Backup { session, .. } if self.last.at.session < session)
    }

    /// The VM, as it was when the log was made.
    pub fn hello(&self) -> &Hello {
        &self.head.hello
    }

    /// On what terms with the witness the log was written.
    pub fn standing(&self) -> &LogStanding {
        &self.standing.standing
    }

    /// The last commit.
    pub fn last(&self) -> Committed {
        self.last
    }

    /// Whose checkpoint the last commit is, if a backup was told.
    pub fn reign(&self) -> Option<Reign> {
        self.extents.iter().rev().find(|e| e.last.is_some()).and_then(|e| e.reign)
    }

    /// As [`Log::go_on`], with a log that another process has written.
    ///
    /// # Errors
    /// As [`Log::go_on`].
    pub fn go_on(self, hello: Hello, standing: &LogStanding, options: Options) -> Result<Log, LogError> {
        // The images need not have all of it: it is a log of no session before anything else is done.
        let mut log = self.recover()?.resume(hello.clone(), options)?;
        log.go_on(hello, standing)?;
        Ok(log)
    }

    /// What the guest said on a channel in the last commit.
    pub fn output(&self, channel: u8) -> &[u8] {
        self.output.get(usize::from(channel)).map_or(&[], Vec::as_slice)
    }

    /// Removes what the loss of power had cut off, and makes sure that the rest is durable.
    ///
    /// Only then may anything be done with it, to a volume's image for one: if it was the process that died and not the host,
    /// the last commit may be in the host's memory alone, and a loss of power now would take it back.
    ///
    /// # Errors
    /// `Storage`. The log is as it was.
    pub fn recover(self) -> Result<Recovered, LogError> {
        self.cut()?;
        Ok(Recovered(self))
    }

    /// Removes what was cut off, and what nothing names, and makes the rest durable.
    fn cut(&self) -> Result<(), LogError> {
        let failed = || LogError::storage("cannot clear", "the log's directory");
        for found in self.storage.names().map_err(failed())? {
            if segment::number(&found).is_some_and(|n| n < self.head.first) {
                self.storage.remove(&found).map_err(failed())?;
            }
        }
        for extent in &self.extents {
            let name = name(extent.number);
            if extent.last.is_none() {
                self.storage.remove(&name).map_err(failed())?;
                continue;
            }
            let file = self.storage.open(&name).map_err(LogError::storage("cannot open", &*name))?;
            if extent.torn {
                file.set_len(extent.end).map_err(LogError::storage("cannot cut", &*name))?;
            }
            // What was read may be in the host's memory alone, if only the process had died.
            file.sync().map_err(LogError::storage("cannot sync", &*name))?;
        }
        self.standing.sync()?;
        self.storage.sync().map_err(failed())
    }

    /// See [`Recovered::load`].
    pub(super) fn load(
        &self,
        fresh: &dyn Fn(u16) -> bool,
        sink: &mut dyn PageSink,
        volumes: PlayVolume<'_>,
    ) -> Result<Held, LogError> {
        self.base.load(&self.covered, fresh, sink)?;
        let mut held = None;
        let count = self.head.hello.spec.hardware.volumes.len();
        self.chain().read(sink, &mut |committed, assembler| {
            for volume in 0..MAX_VOLUMES {
                let operations = assembler.take_volume_writes(volume);
                if operations.is_empty() || committed.number < self.head.volumes {
                    continue;
                }
                if usize::from(volume) >= count {
                    let what = format!("commit {} writes to a volume that the VM has not", committed.number);
                    return Err(LogError::damaged("a segment", what));
                }
                volumes(volume, operations)?;
            }
            if committed.number == self.last.number {
                held = assembler.checkpoint().map(|checkpoint| Held {
                    committed: *committed,
                    device_state: checkpoint.device_state.to_vec(),
                    output: said(assembler),
                });
            }
            Ok(())
        })?;
        held.ok_or_else(|| LogError::damaged(name(self.head.first), "its last commit is gone"))
    }

    fn chain(&self) -> Chain<'_> {
        Chain { until: self.until, ..Chain::new(&self.storage, &self.head) }
    }

    /// Removes the log that is in this directory, if any. Durable when this returns.
    ///
    /// # Errors
    /// `Storage`. Either the log is as it was or it is gone, whatever else is left of its files.
    pub fn remove(storage: &dyn Storage) -> Result<(), LogError> {
        new::remove(storage)
    }
}

/// A log to go on from.
#[derive(Debug)]
pub struct Recovered(Found);

impl Recovered {
    /// Plays the log: memory into `sink`, operations on volumes into `volumes` (commit by commit, in order: number of the
    /// volume and the operations). Blocks that are `fresh` hold nothing but zeros so far. Can be repeated.
    ///
    /// # Errors
    /// `Damaged`, `Storage`; `Target` and those of `volumes`.
    pub fn load(
        &self,
        fresh: &dyn Fn(u16) -> bool,
        sink: &mut dyn PageSink,
        volumes: PlayVolume<'_>,
    ) -> Result<Held, LogError> {
        self.0.load(fresh, sink, volumes)
    }

    /// Goes on with this log after [`Recovered::load`]: the guest's memory has to be as [`Recovered::load`] made it, and the volumes' images hold
    /// all operations durably. `hello` describes the VM as it runs now.
    ///
    /// # Errors
    /// `Layout`: its memory is another. `Storage`, `Stream`. The log is as it was.
    pub fn resume(self, hello: Hello, options: Options) -> Result<Log, LogError> {
        self.0.head.hello.layout.same_as(&hello.layout)?;
        let Found { storage, head, standing, extents, last, .. } = self.0;
        let next = extents.iter().filter(|e| e.last.is_some()).map(|e| e.number).max().unwrap_or(head.first) + 1;
        let segment = Segment::create(&storage, next, &hello)?;
        // The images have all of it, as the caller says.
        let shared =
            Shared::new(last.number, if hello.spec.hardware.volumes.is_empty() { u64::MAX } else { last.number });
        for extent in &extents {
            if let Some(last) = extent.last {
                shared.close(extent.number, last, extent.end);
            }
        }
        Ok(Log {
            log: head.log,
            session: head.session(),
            encoder: PageEncoder::new(&hello.layout),
            hello,
            options,
            chooser: ModeChooser::new(false),
            segment,
            fresh: true,
            last: last.number,
            standing,
            spoilt: None,
            shared,
            storage,
        })
    }
}

/// What the guest said on each channel in the checkpoint that is held.
fn said(assembler: &CheckpointAssembler) -> Vec<Vec<u8>> {
    let Some(checkpoint) = assembler.checkpoint() else { return Vec::new() };
    let mut output: Vec<_> = (0..=u8::MAX).map(|channel| checkpoint.output(channel).to_vec()).collect();
    output.truncate(output.iter().rposition(|o| !o.is_empty()).map_or(0, |last| last + 1));
    output
}

fn cover(covered: &mut Covered, assembler: &CheckpointAssembler) -> Result<(), LogError> {
    let Some(pending) = assembler.pending() else { return Ok(()) };
    for PageRun { block, first, count } in pending.pages().chain(pending.zeros()) {
        // The assembler has checked them against the layout.
        covered
            .add(block, first, count.into())
            .map_err(|source| LogError::Target { what: "a page is outside the memory".into(), source })?;
    }
    Ok(())
}
