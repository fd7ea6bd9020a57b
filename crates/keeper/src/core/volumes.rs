//! The VM's volumes on this host: what is said when one fails, and who has the VM then.
//!
//! A primary whose disk takes no more writes goes on from memory and stays protected: nothing is lost by it. But what it
//! holds grows, and a disk that cannot be read fails its guest. So it hands the VM to a backup, whose disk has just taken
//! the same writes: at once, unless there is only no room left; in that case when it holds more than it should.

use std::time::{Duration, Instant};

use ninefold_model::event::EventKind;
use ninefold_model::status::VolumeStatus;
use ninefold_replica::protocol::{Input, Phase};
use ninefold_volume::served::Failure;

use super::Core;
use super::replica::Replica;

/// Between two looks.
const EVERY: Duration = Duration::from_millis(50);
/// A failure that passes sooner is not worth a switchover.
const HOLD: Duration = Duration::from_secs(1);

/// What is known of the volumes.
pub(super) struct VolumeWatch {
    looked: Instant,
    /// Of each volume.
    failures: Vec<Option<Failure>>,
    /// Since when one fails; after an attempt to hand the VM over, when the next is due.
    since: Option<Instant>,
}

impl VolumeWatch {
    pub(super) fn new(volumes: usize) -> Self {
        Self { looked: Instant::now(), failures: vec![None; volumes], since: None }
    }
}

impl Core {
    pub(super) fn check_volumes(&mut self) {
        if self.volumes.looked.elapsed() < EVERY {
            return;
        }
        self.volumes.looked = Instant::now();
        let disks = self.parts.disks.clone();
        for (n, disk) in disks.iter().enumerate() {
            let (name, failure) = (&disk.spec.name, disk.served.failure());
            let before = std::mem::replace(&mut self.volumes.failures[n], failure.clone());
            match (before, &failure) {
                (None, Some(failure)) => {
                    self.event(EventKind::VolumeFailed { volume: name.clone(), reason: failure.reason.clone() });
                }
                (Some(_), None) => self.event(EventKind::VolumeRecovered { volume: name.clone() }),
                _ => {}
            }
            self.parts.board.volume(name, disk.served.held(), failure.is_some());
        }
        self.leave_failed_disk();
    }

    fn leave_failed_disk(&mut self) {
        let pressure = self.parts.disks.pressure();
        let bad = |f: &&Failure| !f.out_of_space || pressure;
        let Some(failure) = self.volumes.failures.iter().flatten().find(bad) else {
            self.volumes.since = None;
            return;
        };
        let since = *self.volumes.since.get_or_insert_with(Instant::now);
        let bound = |r: &&Replica| self.protocol.phase(r.name()) == Some(Phase::Bound);
        if let Some(to) = self.replicas.iter().find(bound).map(|r| r.backup.clone())
            && self.witness_error.is_none()
            && since.elapsed() >= HOLD
            && self.final_epoch.is_none()
        {
            let reason = format!("a volume fails here: {}", failure.reason);
            // Once an attempt: a failed one starts the time anew.
            self.volumes.since = Some(Instant::now() + HOLD);
            self.input(Input::Switchover { to: Some(to), reason });
        }
    }

    /// For `status`.
    pub(super) fn volume_status(&self) -> Vec<VolumeStatus> {
        let one = |d: &crate::disks::Disk| VolumeStatus {
            name: d.spec.name.clone(),
            held: d.served.held() as u64,
            failure: d.served.failure().map(|failure| failure.reason),
        };
        self.parts.disks.iter().map(one).collect()
    }
}
