//! At a primary: hosts that hold a checkpoint of the VM and are not its backups at present. For a while each of them that comes
//! is sent only what differs.
//!
//! ```text
//!   a take-over ─────────► former_backups: the other backups of the former primary, which hold what the VM was resumed from, or nearly
//!   a session's end ─────► absent: a backup that holds the last checkpoint that it has acknowledged, or a later one
//! ```

use std::time::Duration;

use ninefold_model::{Epoch, HostName, Term};
use ninefold_replica::continuation::{Base, History, may_hold};
use ninefold_replica::protocol::Phase;
use ninefold_replica::stream::{Origin, Reign};
use ninefold_replica::target::Basis;

use crate::core::{Core, RETRY_FIRST};
use crate::effect::{DisksOrder, Held, Known, VmOrder};
use crate::replica::{HeldBase, Replica};
use crate::time::Monotonic;

/// How long a standby without a session is kept for one that suits it, and what others need for it is remembered.
pub const KEEP: Duration = Duration::from_secs(30);
/// After a first session with such a host that fails; each further failure doubles it.
const HOLDER_RETRY: Duration = Duration::from_millis(20);

/// A backup whose session has ended. Under the session's name it is remembered which pages were written since, and what has come
/// into the images.
pub(crate) struct Absent {
    host: HostName,
    session: Term,
    acked: Epoch,
    /// The oldest that it may hold.
    since: Epoch,
    /// It may hold this one: the first of a later session, whose acknowledgement has not come.
    newest: Epoch,
    gone: Monotonic,
}

impl Absent {
    fn origin(&self, reign: Reign) -> Origin {
        Origin::acknowledged(reign, self.since, self.newest.max(self.acked))
    }

    fn is_over(&self, now: Monotonic) -> bool {
        now.since(self.gone) > KEEP
    }
}

/// See the [module](self). It is remembered what was written since the VM was resumed.
pub(crate) struct FormerBackups {
    pub(crate) history: History,
    pub(crate) since: Monotonic,
}

impl FormerBackups {
    fn is_over(&self, now: Monotonic) -> bool {
        // As long as they are kept where they are.
        now.since(self.since) > KEEP
    }
}

impl Core {
    /// What this host knows of that it may hold, and since when: to be told to it.
    pub(crate) fn origin(&self, host: &HostName) -> Option<(Origin, Basis)> {
        let now = self.now.monotonic;
        let absent = self.absent.iter().find(|a| a.host == *host && !a.is_over(now));
        let absent = absent.map(|a| (a.origin(self.reign), Basis::Left(a.session)));
        let former_backups = || self.former_backups.as_ref().filter(|s| !s.is_over(now));
        absent.or_else(|| Some((former_backups()?.history.origin(), Basis::Resumed)))
    }

    /// Hosts to be asked before others whether they want to be a backup.
    pub(crate) fn holders(&self) -> Vec<HostName> {
        self.absent.iter().filter(|a| !a.is_over(self.now.monotonic)).map(|a| a.host.clone()).collect()
    }

    /// A session is over. Whether its backup may come back with what it has; before the protocol lets anything go, and
    /// anything reach the volumes, that it has not acknowledged.
    pub(crate) fn goes_absent(&mut self, session: Term) -> bool {
        let wanted = matches!(self.protocol.phase(session), Some(Phase::Binding | Phase::Bound));
        let Some(replica) = self.replicas.iter().find(|r| r.session == session) else { return false };
        let (acked, first, host) = (replica.acked, replica.first, replica.backup.clone());
        let (Some(acked), true) = (acked, wanted) else {
            // It may still hold what it had before, or the first checkpoint of this session.
            let former = self.absent.iter_mut().find(|a| a.host == host);
            former.into_iter().zip(first).for_each(|(former, first)| former.newest = former.newest.max(first));
            return false;
        };
        self.comes_no_more(&host);
        let since = match self.rules.remember_the_last_acknowledged {
            true => may_hold(first.unwrap_or(acked), acked),
            false => acked,
        };
        self.disks(DisksOrder::Remember(Basis::Left(session)));
        self.absent.push(Absent { host, session, acked, newest: acked, since, gone: self.now.monotonic });
        true
    }

    /// What this host may hold of an earlier session is of no use any more.
    pub(crate) fn comes_no_more(&mut self, host: &HostName) {
        if let Some(at) = self.absent.iter().position(|a| a.host == *host) {
            let absent = self.absent.remove(at);
            self.command(VmOrder::ForgetLeft(absent.session));
            self.disks(DisksOrder::Forget(Basis::Left(absent.session)));
        }
    }

    /// A backup says what it holds.
    pub(crate) fn base(&mut self, session: Term, epoch: Epoch, changes: &[u8]) {
        let due = |r: &Replica| (!r.ready && r.held.is_none()).then_some(r.asked).flatten();
        let Some(basis) = self.replica(session).and_then(|r| due(r)) else {
            return self.lose_session(session, "the backup goes on from what it was not asked for".into());
        };
        let volumes = &self.settings.volume_blocks;
        let Some(layout) = &self.layout else { return };
        let difference = |base: Base| match basis {
            Basis::Resumed => {
                let former_backups = self.former_backups.as_ref().ok_or("the VM has begun anew")?;
                former_backups.history.difference(base)
            }
            Basis::Left(left) => {
                let absent = self.absent.iter().find(|a| a.session == left).ok_or("what was written is forgotten")?;
                absent.origin(self.reign).difference(base)
            }
        };
        let base = Base::parse(epoch, changes, layout, volumes).map_err(|e| report(&e));
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
    pub(crate) fn base_forgotten(&mut self, session: Term) {
        if let Some(host) = self.replica(session).map(|r| r.backup.clone()) {
            self.comes_no_more(&host);
        }
        self.lose_session(session, "it is not known any more what was written since".into());
    }

    /// Where this session's volumes differ, if that is known.
    pub(crate) fn differing(&mut self, session: Term) -> Option<Known> {
        let certain = |held: &HeldBase| (!held.in_doubt).then_some(held.basis);
        let basis = self.replica(session).and_then(|r| certain(r.held.as_ref()?))?;
        let remembered = match basis {
            Basis::Resumed => self.former_backups.is_some(),
            Basis::Left(left) => self.absent.iter().any(|a| a.session == left),
        };
        let held = self.replica(session).and_then(|r| r.held.as_mut()).filter(|_| remembered)?;
        Some(Known { basis, blocks: std::mem::take(&mut held.differs.volumes) })
    }

    /// The session's volumes are equal: the memory follows, all of it or what differs.
    pub(crate) fn add_target(&mut self, session: Term, rounds: u32) {
        let Some(replica) = self.replica(session) else { return };
        let held = replica.held.take().map(|HeldBase { basis, differs, .. }| {
            replica.continued = true;
            Held { basis, differs: differs.pages }
        });
        self.command(VmOrder::AddSession { session, rounds, held });
    }

    /// How soon a host that refused is asked again. One that holds a checkpoint does so as long as it asks the witness for
    /// itself.
    pub(crate) fn first_retry(&self) -> Duration {
        let former_backups = self.former_backups.as_ref().is_some_and(|s| !s.is_over(self.now.monotonic));
        if former_backups || !self.holders().is_empty() { HOLDER_RETRY } else { RETRY_FIRST }
    }

    /// Forgets those who hold something when none is to be expected any more.
    pub(crate) fn check_survivors(&mut self) {
        if self.former_backups.is_none() && self.absent.is_empty() {
            return;
        }
        let now = self.now.monotonic;
        let asked = |r: &Replica| r.asked.filter(|_| r.acked.is_none());
        let pending: Vec<Basis> = self.replicas.iter().filter_map(asked).collect();
        let synced = |r: &&Replica| r.first.is_some();
        let enough = self.replicas.iter().filter(synced).count() >= self.protocol.wanted().count();
        let over = |a: &&Absent| (enough || a.is_over(now)) && !pending.contains(&Basis::Left(a.session));
        for host in self.absent.iter().filter(over).map(|a| a.host.clone()).collect::<Vec<_>>() {
            self.comes_no_more(&host);
        }
        if self.former_backups.as_ref().is_some_and(|s| enough || s.is_over(now)) && !pending.contains(&Basis::Resumed)
        {
            self.former_backups = None;
            self.command(VmOrder::ForgetSurvivors);
            self.disks(DisksOrder::Forget(Basis::Resumed));
        }
    }

    /// None of those who hold something comes any more: the VM is not here, or begins anew.
    pub(crate) fn forget_holders(&mut self) {
        if self.former_backups.take().is_some() {
            self.disks(DisksOrder::Forget(Basis::Resumed));
        }
        for absent in std::mem::take(&mut self.absent) {
            self.disks(DisksOrder::Forget(Basis::Left(absent.session)));
        }
        self.drop_resuming();
    }
}

/// An error with its causes, on one line.
fn report(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(c) = cause {
        text.push_str(": ");
        text.push_str(&c.to_string());
        cause = c.source();
    }
    text
}
