//! At a host that has taken over: the other backups of the former primary, which hold what the VM was resumed from or nearly.
//! For a while each of them that comes is sent only what differs.

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use ninefold_machine::PageRun;
use ninefold_model::{Epoch, Term};
use ninefold_replica::continuation::{Base, History, Origin};
use ninefold_volume::sums;

use super::replica::Replica;
use super::{Core, RETRY_FIRST};
use crate::disks::Disks;
use crate::error;
use crate::parking;
use crate::resync::{Answer, Differing, Rest};
use crate::vm::Command;

/// After a first session with a survivor that fails; each further failure doubles it.
const SURVIVOR_RETRY: Duration = Duration::from_millis(20);

/// See the [module](self).
pub(super) struct Survivors {
    history: History,
    written: Rest,
    since: Instant,
}

impl Survivors {
    /// Of a VM that is to be resumed from the last checkpoint of this history: before anything is written.
    pub(super) fn of(history: History, disks: Arc<Disks>) -> Self {
        Self { history, written: Rest::written(disks), since: Instant::now() }
    }

    fn is_over(&self) -> bool {
        // As long as they are kept where they are.
        self.since.elapsed() > parking::KEEP
    }
}

impl Core {
    /// What the VM was resumed from, for a backup that may hold it.
    pub(super) fn origin(&self) -> Option<Origin> {
        self.survivors.as_ref().filter(|s| !s.is_over()).map(|s| s.history.origin())
    }

    /// A backup says what it holds.
    pub(super) fn base(&mut self, session: Term, epoch: Epoch, changes: &[u8]) {
        let due = |r: &Replica| r.asked && !r.ready && r.differs.is_none();
        if self.replica(session).is_none_or(|r| !due(r)) {
            return self.lose_session(session, "the backup goes on from what it was not asked for".into());
        }
        let volumes: Vec<u64> = self.parts.disks.iter().map(|d| sums::blocks(d.served.size())).collect();
        let differs = match (&self.survivors, &self.layout) {
            (Some(survivors), Some(layout)) => Base::parse(epoch, changes, layout, &volumes)
                .map_err(|e| error::report(&e))
                .and_then(|base| survivors.history.difference(base)),
            _ => Err("the VM has begun anew".into()),
        };
        match (differs, self.replica(session)) {
            (Ok(differs), Some(replica)) => {
                replica.differs = Some(differs);
                replica.continued = true;
            }
            (Err(reason), Some(_)) => self.lose_session(session, reason),
            _ => {}
        }
    }

    /// Where this session's volumes differ, if that is known; the answers to checksums come to `comparison`.
    pub(super) fn differing(&mut self, session: Term, comparison: Receiver<Answer>) -> Differing {
        let written = self.survivors.as_ref().map(|s| s.written.clone());
        let known = self.replica(session).and_then(|r| r.differs.as_mut());
        match (known, written) {
            (Some(known), Some(written)) => Differing::Known { blocks: std::mem::take(&mut known.volumes), written },
            _ => Differing::Compared(comparison),
        }
    }

    /// The session's volumes are equal: the memory follows, all of it or what differs.
    pub(super) fn add_sink(&mut self, session: Term, rounds: u32, rest: Rest) {
        let Some(replica) = self.replica(session) else { return };
        let jobs = replica.session.jobs.clone();
        let held: Option<Vec<PageRun>> = replica.differs.take().map(|differs| {
            let run = |r: ninefold_replica::stream::PageRun| PageRun { block: r.block, first: r.first, count: r.count };
            differs.pages.into_iter().map(run).collect()
        });
        self.command(Command::AddSink { session, jobs, rounds, rest, once: None, held });
    }

    /// How soon a host that refused is asked again. A survivor does so as long as it asks the witness for itself.
    pub(super) fn first_retry(&self) -> Duration {
        if self.origin().is_some() { SURVIVOR_RETRY } else { RETRY_FIRST }
    }

    /// Forgets the survivors when none is to be expected any more.
    pub(super) fn check_survivors(&mut self) {
        let Some(survivors) = &self.survivors else { return };
        let synced = |r: &&Replica| r.first.is_some();
        let pending = self.replicas.iter().any(|r| r.asked && r.first.is_none());
        let enough = self.replicas.iter().filter(synced).count() >= self.protocol.wanted().count();
        if (enough || survivors.is_over()) && !pending {
            self.survivors = None;
            self.command(Command::ForgetSurvivors);
        }
    }
}
