//! One of a primary's sessions, as the core keeps it.

use std::time::Duration;

use ninefold_model::difference::Difference;
use ninefold_model::status::SyncProgress;
use ninefold_model::{Epoch, HostName, Term};
use ninefold_replica::continuation::Changes;
use ninefold_replica::pacing::MAX_IN_FLIGHT;
use ninefold_replica::target::Basis;

use crate::core::{ACK_LIMIT, READY_LIMIT};
use crate::time::{Boottime, Monotonic, Now};

/// What a backup holds already.
pub(crate) struct HeldBase {
    pub(crate) basis: Basis,
    /// Where it may be different from that, beside what was written since.
    pub(crate) differs: Changes,
    /// Its volumes have to be compared.
    pub(crate) in_doubt: bool,
}

/// See the [module](self).
pub(crate) struct Replica {
    /// The term that names it.
    pub(crate) session: Term,
    pub(crate) backup: HostName,
    /// In what its file differs from the VM that runs.
    pub(crate) differs: Vec<Difference>,
    /// When it was opened.
    pub(crate) began: Monotonic,
    /// Its QEMU is there.
    pub(crate) ready: bool,
    /// What it holds already; until its copy begins.
    pub(crate) held: Option<HeldBase>,
    /// It was told what it may hold.
    pub(crate) asked: Option<Basis>,
    /// It is sent only what differs.
    pub(crate) continued: bool,
    pub(crate) sync: Option<SyncProgress>,
    /// What the resync of the volumes sent.
    pub(crate) volume_bytes: u64,
    /// Its first checkpoint.
    pub(crate) first: Option<Epoch>,
    /// Since when output waits for it.
    pub(crate) waited_for: Option<Monotonic>,
    /// When it had loaded that once, to try it.
    pub(crate) tried: Option<Monotonic>,
    /// The newest checkpoint that it has acknowledged.
    pub(crate) acked: Option<Epoch>,
    /// Checkpoints that were sent and are not acknowledged, and when the guest ran again after each.
    pub(crate) unacked: Vec<(Epoch, Monotonic)>,
    pub(crate) uplink: bool,
    /// When the newest thing was sent of which it is known that the backup had it, and had not begun to claim when it did.
    pub(crate) with_us: Boottime,
}

impl Replica {
    pub(crate) fn new(session: Term, backup: HostName, now: Now) -> Self {
        Self {
            session,
            backup,
            differs: Vec::new(),
            began: now.monotonic,
            ready: false,
            held: None,
            asked: None,
            continued: false,
            sync: None,
            volume_bytes: 0,
            first: None,
            waited_for: None,
            tried: None,
            acked: None,
            unacked: Vec::new(),
            uplink: false,
            with_us: now.boottime,
        }
    }

    /// Takes in an acknowledgement; false when it was known.
    ///
    /// # Errors
    /// It acknowledges what it cannot have.
    pub(crate) fn acked(&mut self, epoch: Epoch) -> Result<bool, String> {
        let Some(first) = self.first else { return Err("the backup acknowledges what it was not sent".into()) };
        let before = self.acked.unwrap_or(Epoch(first.0 - 1));
        // As many as can be unacknowledged: the pacer's, and a switchover's last.
        if epoch.0 > before.0 + u64::from(MAX_IN_FLIGHT) + 1 {
            return Err(format!("the backup acknowledges epoch {epoch} after {before}"));
        }
        if epoch <= before {
            return Ok(false);
        }
        self.acked = Some(epoch);
        self.unacked.retain(|(sent, _)| *sent > epoch);
        Ok(true)
    }

    /// Why it must be given up, if it must: it has said nothing for `silence`. It is not expected to have been heard before `thawed`,
    /// when this host went on after it had stood still: what came meanwhile has still to be read.
    pub(crate) fn lost(
        &self,
        failure_timeout: Duration,
        silence: Duration,
        now: Now,
        thawed: Boottime,
    ) -> Option<String> {
        let awake = now.boottime.since(thawed);
        let silence = silence.min(awake);
        let patience = |limit: Duration, since: Monotonic| now.monotonic.since(since).min(awake) > limit;
        // One that loads its first checkpoint is at work for as long as its host takes, and has acknowledged none before.
        let loads = self.acked.is_none() && self.tried.is_none();
        let limit = if loads { READY_LIMIT } else { ACK_LIMIT };
        let due = |sent: Monotonic| self.tried.map_or(sent, |tried| sent.max(tried));
        // A backup that starts its QEMU answers with heartbeats already; one that is not ready in time is lost too.
        if silence > failure_timeout {
            Some(format!("the backup was silent for {} ms", silence.as_millis()))
        } else if self.unacked.iter().any(|(_, sent)| patience(limit, due(*sent))) {
            let what = if loads { "has not loaded its first checkpoint, to try it," } else { "does not acknowledge" };
            Some(format!("the backup {what} within {} s", limit.as_secs()))
        } else if !self.ready && patience(READY_LIMIT, self.began) {
            Some("the backup does not get ready".into())
        } else {
            None
        }
    }
}
