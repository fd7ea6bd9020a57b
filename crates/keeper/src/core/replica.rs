//! One of a primary's sessions, as the core keeps it.

use std::time::{Duration, Instant};

use ninefold_model::difference::Difference;
use ninefold_model::status::SyncProgress;
use ninefold_model::{Epoch, HostName, Term};
use ninefold_replica::continuation::Changes;
use ninefold_replica::pacing::MAX_IN_FLIGHT;
use ninefold_replica::target::Basis;
use ninefold_transport::clock::Moment;

use super::{ACK_LIMIT, READY_LIMIT};
use crate::session::Session;

/// What a backup holds already.
pub(super) struct HeldBase {
    pub(super) basis: Basis,
    /// Where it may be different from that, beside what was written since.
    pub(super) differs: Changes,
    /// Its volumes have to be compared.
    pub(super) in_doubt: bool,
}

/// See the [module](self). Dropping it closes the connection.
pub(super) struct Replica {
    pub(super) session: Session,
    pub(super) backup: HostName,
    /// In what its file differs from the VM that runs.
    pub(super) differs: Vec<Difference>,
    /// When it was opened.
    pub(super) began: Instant,
    /// Its QEMU is there.
    pub(super) ready: bool,
    /// What it holds already; until its copy begins.
    pub(super) held: Option<HeldBase>,
    /// It was told what it may hold.
    pub(super) asked: Option<Basis>,
    /// It is sent only what differs.
    pub(super) continued: bool,
    pub(super) sync: Option<SyncProgress>,
    /// What the resync of the volumes sent.
    pub(super) volume_bytes: u64,
    /// Its first checkpoint.
    pub(super) first: Option<Epoch>,
    /// The newest checkpoint that it has acknowledged.
    pub(super) acked: Option<Epoch>,
    /// Checkpoints that were sent and are not acknowledged, and when the guest ran again after each.
    pub(super) unacked: Vec<(Epoch, Instant)>,
    pub(super) uplink: bool,
    /// When the newest thing was sent of which it is known that the backup had it, and had not begun to claim when it did.
    pub(super) with_us: Moment,
}

impl Replica {
    pub(super) fn new(session: Session, backup: HostName) -> Self {
        Self {
            session,
            backup,
            differs: Vec::new(),
            began: Instant::now(),
            ready: false,
            held: None,
            asked: None,
            continued: false,
            sync: None,
            volume_bytes: 0,
            first: None,
            acked: None,
            unacked: Vec::new(),
            uplink: false,
            with_us: Moment::now(),
        }
    }

    pub(super) fn name(&self) -> Term {
        self.session.name
    }

    /// Takes in an acknowledgement; false when it was known.
    ///
    /// # Errors
    /// It acknowledges what it cannot have.
    pub(super) fn acked(&mut self, epoch: Epoch) -> Result<bool, String> {
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

    /// Why it must be given up, if it must. It is not expected to have been heard before `thawed`, when this host went on after it
    /// had stood still: what came meanwhile has still to be read.
    pub(super) fn lost(&self, failure_timeout: Duration, thawed: Moment) -> Option<String> {
        let silence = self.session.handle.silence().min(thawed.elapsed());
        let patience = |limit: Duration, since: Instant| since.elapsed().min(thawed.elapsed()) > limit;
        // A backup that starts its QEMU answers with heartbeats already; one that is not ready in time is lost too.
        if silence > failure_timeout {
            Some(format!("the backup was silent for {} ms", silence.as_millis()))
        } else if self.unacked.iter().any(|(_, sent)| patience(ACK_LIMIT, *sent)) {
            Some("the backup does not acknowledge".into())
        } else if !self.ready && patience(READY_LIMIT, self.began) {
            Some("the backup does not get ready".into())
        } else {
            None
        }
    }
}
