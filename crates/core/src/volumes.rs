//! The VM's volumes on this host: what is said when one fails or its disk is slow, and who has the VM then.
//! What is decided, and why: [`disk_watch`](crate::disk_watch).

use std::time::Duration;

use ninefold_model::event::EventKind;
use ninefold_model::spec::VolumeSpec;
use ninefold_model::status::VolumeStatus;
use ninefold_replica::protocol::{Input, Phase};

use crate::core::Core;
use crate::disk_watch::{DiskWatch, Look, SLOW, Said};
use crate::effect::Metric;
use crate::event::VolumeSeen;
use crate::replica::Replica;
use crate::settings::Budget;
use crate::time::Monotonic;

/// Between two looks.
const EVERY: Duration = Duration::from_millis(50);
/// A step that is not heard of for so long any more has been answered.
const OVER: Duration = Duration::from_secs(3);

/// What is known of the volumes, and of a QEMU that does not answer.
pub(crate) struct VolumeWatch {
    /// None: not yet.
    looked: Option<Monotonic>,
    watch: DiskWatch,
    /// Since when the VM has been here.
    here: Option<Monotonic>,
    /// When QEMU was last said not to answer.
    stuck: Option<Monotonic>,
}

impl VolumeWatch {
    pub(crate) fn new(volumes: usize, budget: Budget) -> Self {
        Self { looked: None, watch: DiskWatch::new(volumes, budget), here: None, stuck: None }
    }
}

impl Core {
    pub(crate) fn check_volumes(&mut self) {
        let now = self.now.monotonic;
        if self.volumes.looked.is_some_and(|looked| now.since(looked) < EVERY) {
            return;
        }
        self.volumes.looked = Some(now);
        let names: Vec<_> = self.settings.vm.hardware.volumes.iter().map(|v| v.name.clone()).collect();
        let looks: Vec<Look> = self.observed.volumes.iter().map(|v| v.look.clone()).collect();
        for (n, name) in names.iter().enumerate() {
            let Some(seen) = self.observed.volumes.get(n) else { continue };
            let (failed, stalled) = (seen.look.failure.is_some(), seen.look.stalled.unwrap_or_default());
            let metric = Metric::Volume { name: name.clone(), held: seen.held, failed, stalled };
            self.measure(metric);
        }
        let here = self.has_vm.then(|| self.volumes.here.unwrap_or(now));
        self.volumes.here = here;
        let (held, mut said) = (self.observed.held, Vec::new());
        // One that was booted here has left no other host's disk.
        let here_for = here.map(|since| if self.former.is_some() { now.since(since) } else { Duration::MAX });
        let leave = self.volumes.watch.look(now, &looks, held, here_for, &mut said);
        let name = |n: usize| names.get(n).cloned();
        let limit = self.settings.budget.hard as u64;
        for said in said {
            let event = match said {
                Said::Failed(n, reason) => name(n).map(|volume| EventKind::VolumeFailed { volume, reason }),
                Said::Slow(n, time) => name(n).map(|volume| EventKind::VolumeSlow { volume, stalled_ms: millis(time) }),
                Said::Recovered(n) => name(n).map(|volume| EventKind::VolumeRecovered { volume }),
                Said::Full(held) => Some(EventKind::WritesWait { held: held as u64, limit }),
                Said::Room => Some(EventKind::WritesGoOn),
            };
            event.into_iter().for_each(|event| self.event(event));
        }
        self.measure(Metric::WritesWait(self.observed.full));
        if let Some(reason) = leave.filter(|_| self.rules.leave_a_failing_disk) {
            self.leave_disk(reason);
        }
    }

    fn leave_disk(&mut self, reason: String) {
        let bound = |r: &&Replica| self.protocol.phase(r.session) == Some(Phase::Bound);
        if let Some(to) = self.replicas.iter().find(bound).map(|r| r.backup.clone())
            && self.witness_trouble.is_none()
            && self.final_epoch.is_none()
        {
            self.volumes.watch.tried(self.now.monotonic);
            self.input(Input::Switchover { to: Some(to), reason });
        }
    }

    /// QEMU lives and has not answered for long. It is given up only if somebody else has the VM: a backup that the witness can
    /// let go on, or the log of this host, unless it is the disk that QEMU waits for.
    pub(crate) fn stuck(&mut self, generation: u64, step: &str, waited: Duration) {
        if !self.is_here(generation) {
            return;
        }
        let names = self.settings.vm.hardware.volumes.iter().map(|v| &v.name);
        let stalled = names.zip(&self.observed.volumes).filter_map(|(name, v)| Some((name, v.look.stalled?)));
        let stalled = stalled.filter(|(_, time)| *time >= SLOW).max_by_key(|(_, time)| *time);
        let disk = stalled.map(|(name, _)| format!("the disk of volume {name} is slow: "));
        let is_disk = disk.is_some();
        let reason = format!("{}QEMU has not answered '{step}' for {} s", disk.unwrap_or_default(), waited.as_secs());
        let now = self.now.monotonic;
        let last = self.volumes.stuck.replace(now);
        if last.is_none_or(|last| now.since(last) > OVER) {
            self.event(EventKind::Stuck { reason: reason.clone() });
        }
        let heir = self.replicas.iter().any(|r| self.protocol.phase(r.session) == Some(Phase::Bound));
        if (heir && self.witness_trouble.is_none()) || (self.log_is_on() && !is_disk) {
            self.start_failed(ninefold_control::Refusal::StartFailed { reason: reason.clone() });
            self.input(Input::MachineLost { reason });
        }
    }

    /// For `status`.
    pub(crate) fn volume_status(&self) -> Vec<VolumeStatus> {
        let one = |(spec, seen): (&VolumeSpec, &VolumeSeen)| VolumeStatus {
            name: spec.name.clone(),
            held: seen.held as u64,
            failure: seen.look.failure.as_ref().map(|failure| failure.reason.clone()).or_else(|| {
                let stalled = seen.look.stalled.filter(|time| *time >= SLOW)?;
                Some(format!("its disk has not answered for {} s", stalled.as_secs()))
            }),
        };
        self.settings.vm.hardware.volumes.iter().zip(&self.observed.volumes).map(one).collect()
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
