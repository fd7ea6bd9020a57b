//! At a primary: hosts that hold a checkpoint of the VM and are not its backups at present. For a while each of them that comes
//! is sent only what differs.
//!
//! ```text
//!   a take-over ─────────► survivors: the other backups of the former primary, which hold what the VM was resumed from, or nearly
//!   a session's end ─────► absent: a backup that holds the last checkpoint that it has acknowledged, or a later one
//! ```

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use ninefold_machine::PageRun;
use ninefold_model::{Epoch, HostName, Term};
use ninefold_replica::continuation::{Base, History, Origin, Reign, may_hold};
use ninefold_replica::protocol::Phase;
use ninefold_replica::target::{Basis, Target};
use ninefold_volume::sums;

use super::replica::{HeldBase, Replica};
use super::{Core, RETRY_FIRST};
use crate::disks::Disks;
use crate::error;
use crate::parking;
use crate::resync::{Answer, Differing, Rest};
use crate::sink::Held;
use crate::vm::Command;

/// After a first session with such a host that fails; each further failure doubles it.
const HOLDER_RETRY: Duration = Duration::from_millis(20);

/// A backup whose session has ended. The VM's thread remembers which pages were written since, under the session's name.
pub(super) struct Absent {
    host: HostName,
    session: Term,
    acked: Epoch,
    /// The oldest that it may hold.
    since: Epoch,
    /// It may hold this one: the first of a later session, whose acknowledgement has not come.
    newest: Epoch,
    /// Of the volumes: what has come into the images since it went. Nothing had that it had not acknowledged.
    written: Rest,
    gone: Instant,
}

impl Absent {
    fn origin(&self, reign: Reign) -> Origin {
        Origin::acknowledged(reign, self.since, self.newest.max(self.acked))
    }

    fn is_over(&self) -> bool {
        self.gone.elapsed() > parking::KEEP
    }
}

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
    /// What this host knows of that it may hold, and since when: to be told to it.
    pub(super) fn origin(&self, host: &HostName) -> Option<(Origin, Basis)> {
        let absent = self.absent.iter().find(|a| a.host == *host && !a.is_over());
        let absent = absent.map(|a| (a.origin(self.reign), Basis::Left(a.session)));
        let survivors = || self.survivors.as_ref().filter(|s| !s.is_over());
        absent.or_else(|| Some((survivors()?.history.origin(), Basis::Resumed)))
    }

    /// Hosts to be asked before others whether they want to be a backup.
    pub(super) fn holders(&self) -> Vec<HostName> {
        self.absent.iter().filter(|a| !a.is_over()).map(|a| a.host.clone()).collect()
    }

    /// A session is over. Whether its backup may come back with what it has; before the protocol lets anything go, and
    /// anything reach the volumes, that it has not acknowledged.
    pub(super) fn goes_absent(&mut self, session: Term) -> bool {
        let wanted = matches!(self.protocol.phase(session), Some(Phase::Binding | Phase::Bound));
        let Some(replica) = self.replicas.iter().find(|r| r.name() == session) else { return false };
        let (acked, first, host) = (replica.acked, replica.first, replica.backup.clone());
        let (Some(acked), true) = (acked, wanted) else {
            // It may still hold what it had before, or the first checkpoint of this session.
            let former = self.absent.iter_mut().find(|a| a.host == host);
            former.into_iter().zip(first).for_each(|(former, first)| former.newest = former.newest.max(first));
            return false;
        };
        self.comes_no_more(&host);
        let since = may_hold(first.unwrap_or(acked), acked);
        let written = Rest::written(Arc::clone(&self.parts.disks));
        self.absent.push(Absent { host, session, acked, newest: acked, since, written, gone: Instant::now() });
        true
    }

    /// What this host may hold of an earlier session is of no use any more.
    pub(super) fn comes_no_more(&mut self, host: &HostName) {
        if let Some(at) = self.absent.iter().position(|a| a.host == *host) {
            let absent = self.absent.remove(at);
            self.command(Command::ForgetLeft(absent.session));
        }
    }

    /// A backup says what it holds.
    pub(super) fn base(&mut self, session: Term, epoch: Epoch, changes: &[u8]) {
        let due = |r: &Replica| (!r.ready && r.held.is_none()).then_some(r.asked).flatten();
        let Some(basis) = self.replica(session).and_then(|r| due(r)) else {
            return self.lose_session(session, "the backup goes on from what it was not asked for".into());
        };
        let volumes: Vec<u64> = self.parts.disks.iter().map(|d| sums::blocks(d.served.size())).collect();
        let Some(layout) = &self.layout else { return };
        let difference = |base: Base| match basis {
            Basis::Resumed => {
                let survivors = self.survivors.as_ref().ok_or("the VM has begun anew")?;
                survivors.history.difference(base)
            }
            Basis::Left(left) => {
                let absent = self.absent.iter().find(|a| a.session == left).ok_or("what was written is forgotten")?;
                absent.origin(self.reign).difference(base)
            }
        };
        let base = Base::parse(epoch, changes, layout, &volumes).map_err(|e| error::report(&e));
        // What has come into the images is known since what was acknowledged.
        let is_older = |a: &Absent| basis == Basis::Left(a.session) && epoch < a.acked;
        let in_doubt = base.as_ref().is_ok_and(|b| b.volumes_in_doubt) || self.absent.iter().any(is_older);
        match (base.and_then(difference), self.replica(session)) {
            (Ok(differs), Some(replica)) => replica.held = Some(HeldBase { basis, differs, in_doubt }),
            (Err(reason), Some(replica)) => {
                // It would say the same again.
                let host = replica.backup.clone();
                self.comes_no_more(&host);
                self.lose_session(session, reason);
            }
            _ => {}
        }
    }

    /// The VM's thread does not know what was written since the checkpoint that the session's backup holds.
    pub(super) fn base_forgotten(&mut self, session: Term) {
        if let Some(host) = self.replica(session).map(|r| r.backup.clone()) {
            self.comes_no_more(&host);
        }
        self.lose_session(session, "it is not known any more what was written since".into());
    }

    /// Where this session's volumes differ, if that is known; the answers to checksums come to `comparison`.
    pub(super) fn differing(&mut self, session: Term, comparison: Receiver<Answer>) -> Differing {
        let certain = |held: &HeldBase| (!held.in_doubt).then_some(held.basis);
        let basis = self.replica(session).and_then(|r| certain(r.held.as_ref()?));
        let written = basis.and_then(|basis| match basis {
            Basis::Resumed => self.survivors.as_ref().map(|s| s.written.clone()),
            Basis::Left(left) => self.absent.iter().find(|a| a.session == left).map(|a| a.written.clone()),
        });
        let known = self.replica(session).and_then(|r| r.held.as_mut());
        match (known, written) {
            (Some(known), Some(written)) => {
                Differing::Known { blocks: std::mem::take(&mut known.differs.volumes), written }
            }
            _ => Differing::Compared(comparison),
        }
    }

    /// The session's volumes are equal: the memory follows, all of it or what differs.
    pub(super) fn add_sink(&mut self, session: Term, rounds: u32, rest: Rest) {
        let Some(replica) = self.replica(session) else { return };
        let jobs = replica.session.jobs.clone();
        let held = replica.held.take().map(|HeldBase { basis, differs, .. }| {
            replica.continued = true;
            let run = |r: ninefold_replica::stream::PageRun| PageRun { block: r.block, first: r.first, count: r.count };
            Held { basis, differs: differs.pages.into_iter().map(run).collect() }
        });
        self.command(Command::AddSink { target: Target::Session(session), jobs, rounds, rest, once: None, held });
    }

    /// How soon a host that refused is asked again. One that holds a checkpoint does so as long as it asks the witness for
    /// itself.
    pub(super) fn first_retry(&self) -> Duration {
        let survivors = self.survivors.as_ref().is_some_and(|s| !s.is_over());
        if survivors || !self.holders().is_empty() { HOLDER_RETRY } else { RETRY_FIRST }
    }

    /// Forgets those who hold something when none is to be expected any more.
    pub(super) fn check_survivors(&mut self) {
        if self.survivors.is_none() && self.absent.is_empty() {
            return;
        }
        let asked = |r: &Replica| r.asked.filter(|_| r.acked.is_none());
        let pending: Vec<Basis> = self.replicas.iter().filter_map(asked).collect();
        let synced = |r: &&Replica| r.first.is_some();
        let enough = self.replicas.iter().filter(synced).count() >= self.protocol.wanted().count();
        let over = |a: &&Absent| (enough || a.is_over()) && !pending.contains(&Basis::Left(a.session));
        for host in self.absent.iter().filter(over).map(|a| a.host.clone()).collect::<Vec<_>>() {
            self.comes_no_more(&host);
        }
        if self.survivors.as_ref().is_some_and(|s| enough || s.is_over()) && !pending.contains(&Basis::Resumed) {
            self.survivors = None;
            self.command(Command::ForgetSurvivors);
        }
    }
}
