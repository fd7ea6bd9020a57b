//! How long a VM is without protection when its backup was away for a moment.

use std::thread;
use std::time::{Duration, Instant};

use ninefold_model::event::EventKind;
use ninefold_transport::clock::monotonic_us;
use serde::{Deserialize, Serialize};

use super::plan::{Break, Mode};
use super::subject::Subject;
use crate::error::LabError;
use crate::faults::Cut;
use crate::topology::Network;
use ninefold_model::series::Series;

/// How long the two hosts are cut off from each other: longer than a primary waits for its backup.
const CUT: Duration = Duration::from_millis(300);
/// How long it may take until the VM is protected again.
const PATIENCE: Duration = Duration::from_secs(60);
/// Cuts in a row after which the backup may have won the witness, and the VM, and the next cut is measured.
const ATTEMPTS: u32 = 20;

/// One break.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rebind {
    pub how: Break,
    pub memory_mib: u64,
    /// From the end of the break (the cable is whole, the new keeper is started) until the VM was protected.
    pub us: u64,
    /// Of memory, before the first checkpoint.
    pub bytes: u64,
    /// The backup went on with what it held.
    pub continued: bool,
}

/// Breaks a VM's protection, and waits until the same primary is protected by the same backup. Adds how often the backup took
/// the VM over instead to `lost`.
///
/// # Errors
/// A fault cannot be injected, a keeper does not come up, the VM is not protected again within a minute, or the backup takes it
/// over after each of 20 breaks.
pub fn measure(subject: &mut Subject, how: Break, memory_mib: u64, lost: &mut u64) -> Result<Rebind, LabError> {
    for _ in 0..ATTEMPTS {
        subject.enter(Mode::Adaptive)?;
        let (primary, backup) = (subject.primary.clone(), subject.other());
        let mark = subject.vm.events.mark();
        let ended = match how {
            Break::Cut300Ms => {
                subject.lab.cut(&backup, Network::Replication, Cut::Blackhole)?;
                thread::sleep(CUT);
                subject.lab.heal(&backup, Network::Replication)?;
                monotonic_us()
            }
            Break::BackupKeeperRestarted => {
                subject.lab.kill_keeper(&backup)?;
                let ended = monotonic_us();
                subject.lab.start_keeper(&backup)?;
                ended
            }
        };
        let protected = |kind: &EventKind| matches!(kind, EventKind::Protected { .. });
        let event = subject.vm.events.wait_for(mark, Instant::now() + PATIENCE, |e| protected(&e.kind));
        let Some((event, EventKind::Protected { bytes, continued, .. })) = event.map(|e| (e.clone(), e.kind)) else {
            return Err(subject.timeout("protection after a break"));
        };
        if event.host.as_str() == primary {
            let us = event.monotonic_us.saturating_sub(ended);
            return Ok(Rebind { how, memory_mib, us, bytes, continued });
        }
        *lost += 1;
    }
    Err(subject.timeout("break after which the primary keeps the VM"))
}

/// Headline times.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct RebindFigures {
    /// The two hosts were cut off from each other for 300 ms.
    pub cut_300ms: Vec<RebindRow>,
    /// The backup's keeper was killed and started again.
    pub backup_keeper_restarted: Vec<RebindRow>,
}

/// With one size of guest memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RebindRow {
    pub memory_gib: f64,
    /// Milliseconds.
    pub p50: f64,
    pub max: f64,
    pub count: u64,
    /// Of them, the backup went on with what it held.
    pub continued: u64,
    /// Of memory, before the first checkpoint, on average.
    pub mb_sent: f64,
}

impl RebindFigures {
    /// Of all breaks, in the order of their memory sizes.
    pub fn of(all: &[Rebind]) -> Self {
        Self { cut_300ms: rows(all, Break::Cut300Ms), backup_keeper_restarted: rows(all, Break::BackupKeeperRestarted) }
    }
}

fn rows(all: &[Rebind], how: Break) -> Vec<RebindRow> {
    let mut sizes: Vec<u64> = all.iter().filter(|r| r.how == how).map(|r| r.memory_mib).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let row = |memory_mib| {
        let of: Vec<&Rebind> = all.iter().filter(|r| (r.how, r.memory_mib) == (how, memory_mib)).collect();
        let times = of.iter().map(|r| r.us).collect::<Series>().summary();
        RebindRow {
            memory_gib: memory_mib as f64 / 1024.0,
            p50: times.p50 as f64 / 1e3,
            max: times.max as f64 / 1e3,
            count: times.count,
            continued: of.iter().filter(|r| r.continued).count() as u64,
            mb_sent: of.iter().map(|r| r.bytes as f64).sum::<f64>() / 1e6 / of.len().max(1) as f64,
        }
    };
    sizes.into_iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn breaks_are_summed_up_by_kind_and_size() {
        let one = |how, memory_mib, us, continued| Rebind { how, memory_mib, us, bytes: 1_000_000, continued };
        let all = [
            one(Break::Cut300Ms, 8192, 30_000, true),
            one(Break::Cut300Ms, 256, 10_000, true),
            one(Break::Cut300Ms, 256, 20_000, false),
            one(Break::Cut300Ms, 256, 12_000, true),
            one(Break::BackupKeeperRestarted, 256, 500_000, false),
        ];
        let figures = RebindFigures::of(&all);
        let [small, large] = &figures.cut_300ms[..] else { panic!("{figures:?}") };
        assert_eq!((small.memory_gib, small.p50, small.max, small.count), (0.25, 12.0, 20.0, 3));
        assert_eq!((small.continued, small.mb_sent, large.memory_gib, large.max), (2, 1.0, 8.0, 30.0));
        assert_eq!(figures.backup_keeper_restarted.len(), 1);
    }
}
