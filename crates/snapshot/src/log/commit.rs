//! The writer: commits, one after another.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use ninefold_model::{Epoch, Term};
use ninefold_replica::protocol::LogStanding;
use ninefold_replica::stream::{
    EncodeStats, Hello, Mark, ModeChooser, PageEncoder, PageRun, Pass, PassKind, PassWriter, Sample, StreamError,
    Totals,
};

use super::error::LogError;
use super::fold::{Folder, Shared};
use super::head::Head;
use super::segment::Segment;
use super::standing::StandingFile;
use super::{At, Committed, Options};
use crate::storage::Storage;

/// A log that is written. One owner; a [`Folder`] works beside it.
#[derive(Debug)]
pub struct Log {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) log: u128,
    pub(super) session: u64,
    pub(super) hello: Hello,
    pub(super) options: Options,
    pub(super) encoder: PageEncoder,
    pub(super) chooser: ModeChooser,
    pub(super) segment: Segment,
    /// The segment's name is not yet durable.
    pub(super) fresh: bool,
    /// The last durable commit.
    pub(super) last: u64,
    pub(super) standing: StandingFile,
    pub(super) spoilt: Option<String>,
    pub(super) shared: Arc<Shared>,
}

impl Log {
    /// Begins a commit. What was begun before and not finished is gone.
    ///
    /// # Errors
    /// `Spoilt`, `TooLong`; `Storage`, `Stream` when a new segment cannot be begun. Nothing that was committed is lost, and
    /// but for `Spoilt` it can be tried again.
    pub fn begin(&mut self, at: At) -> Result<Commit<'_>, LogError> {
        if let Some(why) = &self.spoilt {
            return Err(LogError::Spoilt(why.clone()));
        }
        let waiting = self.shared.waiting_bytes();
        if waiting > self.options.limit {
            return Err(LogError::TooLong { waiting, limit: self.options.limit });
        }
        if self.segment.bytes() >= self.options.segment && !self.fresh {
            let next = Segment::create(&self.storage, self.segment.number + 1, &self.hello)?;
            let full = std::mem::replace(&mut self.segment, next);
            self.fresh = true;
            self.shared.close(full.number, self.last, full.bytes());
        }
        Commit::begin(self, at)
    }

    /// What a mark says of the time now.
    fn time_ms() -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(now.as_millis()).unwrap_or(0)
    }

    /// The last durable commit.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Bytes of all segments.
    pub fn length(&self) -> u64 {
        self.shared.closed_bytes() + self.segment.bytes()
    }

    /// Goes on with this log as that of a backup in another session, which is sent what has changed since the last commit: in
    /// [parts](Log::part) first, then in a commit, which makes it a log of that session. From here on it is one of no
    /// session: until then nobody goes on from it. To be called before anything of that is written to the volumes' images; they have to
    /// be durable, with all that was written past the log, before the commit is made.
    ///
    /// # Errors
    /// `Layout`: its memory is another. `Spoilt`, `Storage`, `Stream`: it is of no use any more.
    pub fn go_on(&mut self, hello: Hello, standing: &LogStanding) -> Result<(), LogError> {
        if let Some(why) = &self.spoilt {
            return Err(LogError::Spoilt(why.clone()));
        }
        self.hello.layout.same_as(&hello.layout)?;
        // First: the record that it speaks of from now on binds a session in which nothing has been acknowledged.
        self.standing.write(standing)?;
        let volumes = self.last + 1;
        self.shared.change_head(&*self.storage, |head| Head { volumes, ..head })?;
        // Nobody plays those operations any more: their segments may go, whatever the images hold.
        self.shared.images_hold(self.last);
        self.hello = hello;
        // The new one says what the VM is now. One without a commit is begun again.
        let number = self.segment.number + u64::from(!self.fresh);
        let next = Segment::create(&self.storage, number, &self.hello)?;
        let former = std::mem::replace(&mut self.segment, next);
        if !std::mem::replace(&mut self.fresh, true) {
            self.shared.close(former.number, self.last, former.bytes());
        }
        Ok(())
    }

    /// Makes durable some of the pages that a session's first checkpoint rests on. What ends with such a part is no log.
    ///
    /// # Errors
    /// As [`Log::begin`] and [`Commit::finish`].
    pub fn part(&mut self, term: Term, runs: &[PageRun], bytes: &[u8]) -> Result<(), LogError> {
        let mut commit = self.begin(At::part(term))?;
        commit.pages(runs, bytes)?;
        let part = commit.finish()?;
        self.shared.has_none(part.number);
        Ok(())
    }

    /// Notes on what terms this host stands with the witness; durable when this returns. To be done before each proposal.
    ///
    /// # Errors
    /// `Storage`: what is noted is this or what was noted before.
    pub fn stand(&mut self, standing: &LogStanding) -> Result<(), LogError> {
        self.standing.write(standing)
    }

    /// Notes that output was let go, or will be, that is not in the log: nobody goes on from it by himself any more.
    ///
    /// # Errors
    /// `Storage`: it may still be believed.
    pub fn invalidate(&mut self) -> Result<(), LogError> {
        let standing = LogStanding { behind: true, ..self.standing.standing.clone() };
        self.standing.write(&standing)
    }

    /// Where it is.
    pub fn storage(&self) -> Arc<dyn Storage> {
        Arc::clone(&self.storage)
    }

    /// What this log shares with its folder.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// One who folds this log's segments. There should be one.
    ///
    /// # Errors
    /// `Damaged`, `Storage`.
    pub fn folder(&self) -> Result<Folder, LogError> {
        Folder::open(Arc::clone(&self.storage), Arc::clone(&self.shared))
    }
}

/// A commit that has begun. Dropped before [`Commit::finish`] it was never there.
#[derive(Debug)]
pub struct Commit<'a> {
    log: &'a mut Log,
    at: At,
    pass: Pass,
    /// As in its mark.
    time_ms: u64,
    totals: Totals,
    stats: EncodeStats,
    finished: bool,
}

impl<'a> Commit<'a> {
    pub(super) fn begin(log: &'a mut Log, at: At) -> Result<Self, LogError> {
        let number = log.last + 1;
        let pass = Pass { session: log.session, kind: PassKind::Checkpoint, epoch: Epoch(number) };
        let time_ms = Log::time_ms();
        let mark = Mark { log: log.log, commit: number, session: at.session.0, epoch: at.epoch, time_ms };
        log.encoder.set_mode(log.chooser.mode());
        let mut this =
            Self { log, at, pass, time_ms, totals: Totals::default(), stats: EncodeStats::default(), finished: false };
        this.log.segment.begin(mark)?;
        let (mut out, scratch) = this.log.segment.out();
        this.totals = PassWriter::begin(&mut out, scratch, pass, at.term)?.pause();
        Ok(this)
    }

    fn write<T>(
        &mut self,
        write: impl FnOnce(&mut PassWriter<'_, super::segment::Out<'_>>, &mut PageEncoder) -> Result<T, StreamError>,
    ) -> Result<T, LogError> {
        let (mut out, scratch) = self.log.segment.out();
        let mut pass = PassWriter::resume(&mut out, scratch, self.pass, self.totals);
        let written = write(&mut pass, &mut self.log.encoder)?;
        self.totals = pass.pause();
        Ok(written)
    }

    /// Pages, whose contents stand one behind another in `bytes`. A page may come once in a commit.
    ///
    /// # Errors
    /// `Stream`: the disk, or pages that are not in the layout.
    pub fn pages(&mut self, runs: &[PageRun], bytes: &[u8]) -> Result<(), LogError> {
        let stats = self.write(|pass, encoder| pass.pages(encoder, runs, bytes))?;
        self.stats.add(&stats);
        Ok(())
    }

    /// Pages that are zero.
    ///
    /// # Errors
    /// As [`Commit::pages`].
    pub fn zeros(&mut self, runs: impl IntoIterator<Item = PageRun>) -> Result<(), LogError> {
        self.write(|pass, encoder| pass.zeros(encoder, runs)).map(drop)
    }

    /// Device state; what is given in several calls belongs one behind another.
    ///
    /// # Errors
    /// `Stream`.
    pub fn device_state(&mut self, state: &[u8]) -> Result<(), LogError> {
        self.write(|pass, _| pass.device_state(state))
    }

    /// What the guest said on a channel; once for each.
    ///
    /// # Errors
    /// `Stream`.
    pub fn channel_output(&mut self, channel: u8, output: &[u8]) -> Result<(), LogError> {
        self.write(|pass, _| pass.channel_output(channel, output))
    }

    /// Operations on a volume: whole ones, at most 4 MiB of them. Answers where the volume's next ones stand.
    ///
    /// # Errors
    /// `Stream`.
    pub fn volume_writes(&mut self, volume: u16, offset: u64, operations: &[u8]) -> Result<u64, LogError> {
        self.write(|pass, _| pass.volume_writes(volume, offset, operations))
    }

    /// Makes durable what was given so far, so that little is left for the end.
    ///
    /// # Errors
    /// `Spoilt`: as [`Commit::finish`].
    pub fn sync(&mut self) -> Result<(), LogError> {
        let begun = std::time::Instant::now();
        self.log.segment.sync_early().map_err(|error| self.spoilt(&error))?;
        self.stats.write_time += begun.elapsed();
        Ok(())
    }

    /// Makes the commit durable. When this returns, it survives a loss of power.
    ///
    /// # Errors
    /// `Stream`: not all could be written, which can be tried again. `Spoilt`: it is not known what is on the disk; the log
    /// still holds all commits before this one, and perhaps this one.
    pub fn finish(mut self) -> Result<Committed, LogError> {
        let (mut out, scratch) = self.log.segment.out();
        PassWriter::resume(&mut out, scratch, self.pass, self.totals).end()?;
        let bytes = self.log.segment.complete()?;
        let begun = std::time::Instant::now();
        let mut synced = self.log.segment.sync();
        if synced.is_ok() && self.log.fresh {
            synced = self.log.storage.sync();
        }
        if let Err(error) = synced {
            return Err(self.spoilt(&error));
        }
        self.finished = true;
        let log = &mut *self.log;
        // The writer's time alone would say that the disk is as quick as the page cache.
        self.stats.write_time += begun.elapsed();
        log.chooser.record(&Sample::of(log.encoder.mode(), &self.stats));
        log.fresh = false;
        log.last = self.pass.epoch.0;
        log.shared.committed(log.last);
        let done_ms = Log::time_ms();
        log.segment.hint(Mark { log: log.log, commit: log.last + 1, session: 0, epoch: Epoch(0), time_ms: done_ms });
        Ok(Committed { number: log.last, at: self.at, bytes, time_ms: self.time_ms })
    }
}

impl Commit<'_> {
    fn spoilt(&mut self, error: &std::io::Error) -> LogError {
        let why = format!("the disk cannot be synced: {error}");
        self.log.spoilt = Some(why.clone());
        // What is on the disk is left as it is.
        self.finished = true;
        LogError::Spoilt(why)
    }
}

impl Drop for Commit<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.log.segment.give_up();
        }
    }
}
