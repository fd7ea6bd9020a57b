//! The VM's volumes on this host: what is said when one fails or its disk is slow, and who has the VM then.
//! What is decided, and why: [`disk_watch`](crate::disk_watch).

use std::time::{Duration, Instant};

use ninefold_model::event::EventKind;
use ninefold_model::status::VolumeStatus;
use ninefold_replica::protocol::{Input, Phase};
use ninefold_volume::budget::HARD;

use super::Core;
use super::replica::Replica;
use crate::disk_watch::{DiskWatch, Look, SLOW, Said};

/// Between two looks.
const EVERY: Duration = Duration::from_millis(50);
/// A step that is not heard of for so long any more has been answered.
const OVER: Duration = Duration::from_secs(3);

/// What is known of the volumes, and of a QEMU that does not answer.
pub(super) struct VolumeWatch {
    looked: Instant,
    watch: DiskWatch,
    /// Since when the VM has been here.
    here: Option<Instant>,
    /// When QEMU was last said not to answer.
    stuck: Option<Instant>,
}

impl VolumeWatch {
    pub(super) fn new(volumes: usize) -> Self {
        Self { looked: Instant::now(), watch: DiskWatch::new(volumes), here: None, stuck: None }
    }
}

impl Core {
    pub(super) fn check_volumes(&mut self) {
        if self.volumes.looked.elapsed() < EVERY {
            return;
        }
        let now = Instant::now();
        self.volumes.looked = now;
        let disks = self.parts.disks.clone();
        let look = |d: &crate::disks::Disk| Look { failure: d.served.failure(), stalled: d.served.stalled() };
        let looks: Vec<Look> = disks.iter().map(look).collect();
        for (disk, look) in disks.iter().zip(&looks) {
            let stalled = look.stalled.unwrap_or_default();
            self.parts.board.volume(&disk.spec.name, disk.served.held(), look.failure.is_some(), stalled);
        }
        let here = self.vm.is_some().then(|| self.volumes.here.unwrap_or(now));
        self.volumes.here = here;
        let (held, mut said) = (disks.held(), Vec::new());
        // One that was booted here has left no other host's disk.
        let here_for = here.map(|since| if self.former.is_some() { now - since } else { Duration::MAX });
        let leave = self.volumes.watch.look(now, &looks, held, here_for, &mut said);
        let name = |n: usize| disks.iter().nth(n).map(|d| d.spec.name.clone());
        for said in said {
            let event = match said {
                Said::Failed(n, reason) => name(n).map(|volume| EventKind::VolumeFailed { volume, reason }),
                Said::Slow(n, time) => name(n).map(|volume| EventKind::VolumeSlow { volume, stalled_ms: millis(time) }),
                Said::Recovered(n) => name(n).map(|volume| EventKind::VolumeRecovered { volume }),
                Said::Full(held) => Some(EventKind::WritesWait { held: held as u64, limit: HARD as u64 }),
                Said::Room => Some(EventKind::WritesGoOn),
            };
            event.into_iter().for_each(|event| self.event(event));
        }
        self.parts.board.writes_wait(disks.is_full());
        if let Some(reason) = leave {
            self.leave_disk(reason);
        }
    }

    /// The VM goes on alone: lets all output go, as soon as what it may tell of is durable. While it was held the guest's flushes were
    /// answered from memory; where an acknowledgement means the disk, that was to be another host's.
    pub(super) fn open_gate(&mut self) {
        // A log has its own order.
        let by_log = self.log_is_on() || self.log.images_wait.is_some();
        let owed = if by_log { Vec::new() } else { self.parts.disks.owed() };
        if !owed.is_empty() {
            // A host that has just come to the VM is mute: what is said meanwhile must not be dropped.
            self.at_work(|outlets, look| outlets.hold(look));
        }
        self.opening = Some(owed);
        self.try_open_gate();
    }

    pub(super) fn try_open_gate(&mut self) {
        let Some(owed) = &self.opening else { return };
        let owed = self.parts.disks.still_owed(owed);
        if owed.is_empty() {
            self.opening = None;
            self.at_work(|outlets, look| outlets.pass(look));
        } else {
            self.opening = Some(owed);
        }
    }

    fn leave_disk(&mut self, reason: String) {
        let bound = |r: &&Replica| self.protocol.phase(r.name()) == Some(Phase::Bound);
        if let Some(to) = self.replicas.iter().find(bound).map(|r| r.backup.clone())
            && self.witness_error.is_none()
            && self.final_epoch.is_none()
        {
            self.volumes.watch.tried(Instant::now());
            self.input(Input::Switchover { to: Some(to), reason });
        }
    }

    /// QEMU lives and has not answered for long. It is given up only if somebody else has the VM: a backup that the witness can
    /// let go on, or the log of this host, unless it is the disk that QEMU waits for.
    pub(super) fn stuck(&mut self, generation: u64, step: &str, waited: Duration) {
        if generation != self.generation || self.vm.is_none() {
            return;
        }
        let stalled = self.parts.disks.iter().filter_map(|d| Some((&d.spec.name, d.served.stalled()?)));
        let stalled = stalled.filter(|(_, time)| *time >= SLOW).max_by_key(|(_, time)| *time);
        let disk = stalled.map(|(name, _)| format!("the disk of volume {name} is slow: "));
        let is_disk = disk.is_some();
        let reason = format!("{}QEMU has not answered '{step}' for {} s", disk.unwrap_or_default(), waited.as_secs());
        let last = self.volumes.stuck.replace(Instant::now());
        if last.is_none_or(|last| last.elapsed() > OVER) {
            self.event(EventKind::Stuck { reason: reason.clone() });
        }
        let heir = self.replicas.iter().any(|r| self.protocol.phase(r.name()) == Some(Phase::Bound));
        if (heir && self.witness_error.is_none()) || (self.log_is_on() && !is_disk) {
            self.start_failed(reason.clone());
            self.input(Input::MachineLost { reason });
        }
    }

    /// For `status`.
    pub(super) fn volume_status(&self) -> Vec<VolumeStatus> {
        let one = |d: &crate::disks::Disk| VolumeStatus {
            name: d.spec.name.clone(),
            held: d.served.held() as u64,
            failure: d.served.failure().map(|failure| failure.reason).or_else(|| {
                let stalled = d.served.stalled().filter(|time| *time >= SLOW)?;
                Some(format!("its disk has not answered for {} s", stalled.as_secs()))
            }),
        };
        self.parts.disks.iter().map(one).collect()
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
