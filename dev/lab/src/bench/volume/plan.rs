//! What is measured, in which order and how often. Pure, as the other plan.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::bench::plan::Mode;

/// Work on a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Job {
    /// `pgbench`, TPC-B like, from the client's host.
    Pgbench,
    /// 4 KiB at random places, four at a time.
    FioRandwrite,
    /// 128 KiB, one behind the other.
    FioSeqwrite,
    /// 4 KiB at random places with a flush after each, four at a time.
    FioFsync,
}

impl Job {
    /// All of them, in the order in which they are measured.
    pub const ALL: [Job; 4] = [Job::Pgbench, Job::FioRandwrite, Job::FioSeqwrite, Job::FioFsync];

    /// What its figure counts. Of all more is better.
    pub fn unit(self) -> &'static str {
        match self {
            Job::Pgbench => "transactions/s",
            Job::FioRandwrite | Job::FioFsync => "writes/s",
            Job::FioSeqwrite => "MB/s",
        }
    }
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Job::Pgbench => "pgbench, 4 clients",
            Job::FioRandwrite => "4 KiB at random, 4 at a time",
            Job::FioSeqwrite => "128 KiB in sequence",
            Job::FioFsync => "4 KiB at random with a flush, 4 at a time",
        })
    }
}

/// One step of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Make the lab, boot the VM with PostgreSQL.
    Boot,
    /// Give the database its tables and the raw volume its contents.
    Fill,
    /// One side of a round.
    Compare { mode: Mode, job: Job },
    /// A snapshot while pgbench runs: a whole one, or what differs from the one before.
    Snapshot { whole: bool },
    /// A golden image and clones of it, in the pool of a host that has no VM.
    Clone,
    /// Another lab, with a VM whose one volume is written from outside of its own work.
    BootResync,
    /// Change so much of the volume while the backup is down, and wait until the VM is protected again.
    Resync { percent: u32 },
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stage::Boot => f.write_str("boot PostgreSQL and protect it"),
            Stage::Fill => f.write_str("fill the volumes"),
            Stage::Compare { mode, job } => write!(f, "{mode}: {job}"),
            Stage::Snapshot { whole: true } => f.write_str("snapshot under pgbench"),
            Stage::Snapshot { whole: false } => f.write_str("snapshot of what differs, under pgbench"),
            Stage::Clone => f.write_str("clone a golden image"),
            Stage::BootResync => f.write_str("boot a VM for the resyncs"),
            Stage::Resync { percent } => write!(f, "resync after {percent} % has changed"),
        }
    }
}

/// Shares of a volume that change while the backup is down, per cent.
pub const CHANGED: [u32; 4] = [0, 1, 10, 50];

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumePlan {
    pub rounds: u32,
    /// Of one measurement with pgbench: whole seconds.
    pub pgbench_s: u32,
    /// Of one of the other measurements.
    pub sample_ms: u32,
    /// Units of 100,000 accounts.
    pub pgbench_scale: u32,
    pub snapshot_rounds: u32,
    /// Of the golden image that is cloned, bytes.
    pub image_bytes: u64,
    pub resync_rounds: u32,
    /// Of the volume that is resynced, bytes.
    pub resync_volume_bytes: u64,
}

impl VolumePlan {
    /// About six minutes.
    pub fn full() -> Self {
        Self {
            rounds: 7,
            pgbench_s: 8,
            sample_ms: 3000,
            pgbench_scale: 4,
            snapshot_rounds: 3,
            image_bytes: 512 << 20,
            resync_rounds: 3,
            resync_volume_bytes: 1 << 30,
        }
    }

    /// Under three minutes, and coarser.
    pub fn quick() -> Self {
        Self {
            rounds: 3,
            pgbench_s: 3,
            sample_ms: 1000,
            pgbench_scale: 2,
            snapshot_rounds: 1,
            image_bytes: 128 << 20,
            resync_rounds: 1,
            resync_volume_bytes: 256 << 20,
        }
    }

    /// All of it, in order.
    pub fn stages(&self) -> Vec<Stage> {
        let mut all = vec![Stage::Boot, Stage::Fill];
        for round in 0..self.rounds {
            let mut sides = [Mode::Unprotected, Mode::Adaptive];
            if round % 2 == 1 {
                sides.reverse();
            }
            for mode in sides {
                all.extend(Job::ALL.map(|job| Stage::Compare { mode, job }));
            }
        }
        for _ in 0..self.snapshot_rounds {
            all.extend([true, false].map(|whole| Stage::Snapshot { whole }));
        }
        all.push(Stage::Clone);
        all.push(Stage::BootResync);
        for _ in 0..self.resync_rounds {
            all.extend(CHANGED.map(|percent| Stage::Resync { percent }));
        }
        all
    }

    /// How long one of the measurements without pgbench takes.
    pub fn sample(&self) -> Duration {
        Duration::from_millis(self.sample_ms.into())
    }

    /// About how long the whole run takes.
    pub fn total(&self) -> Duration {
        self.stages().into_iter().map(|s| self.cost(s)).sum()
    }

    /// About how long a stage takes on a machine of two cores without KVM: for the progress bar.
    pub fn cost(&self, stage: Stage) -> Duration {
        let seconds = |s: f64| Duration::from_secs_f64(s);
        match stage {
            Stage::Boot => seconds(10.0),
            Stage::Fill => seconds(4.0 + 3.0 * f64::from(self.pgbench_scale)),
            Stage::Compare { job: Job::Pgbench, .. } => seconds(1.5 + f64::from(self.pgbench_s)),
            Stage::Compare { .. } => self.sample() + seconds(0.8),
            Stage::Snapshot { .. } => seconds(2.0 + f64::from(self.pgbench_s)),
            Stage::Clone => seconds(1.0 + self.image_bytes as f64 / 150e6),
            Stage::BootResync => seconds(10.0 + self.resync_volume_bytes as f64 / 100e6),
            Stage::Resync { percent } => {
                let changed = self.resync_volume_bytes as f64 * f64::from(percent) / 100.0;
                seconds(2.0 + self.resync_volume_bytes as f64 / 500e6 + changed / 60e6)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_take_turns_and_are_complete() {
        for plan in [VolumePlan::full(), VolumePlan::quick()] {
            let stages = plan.stages();
            for job in Job::ALL {
                let sides: Vec<_> = stages
                    .iter()
                    .filter_map(|s| match s {
                        Stage::Compare { mode, job: j } if *j == job => Some(*mode),
                        _ => None,
                    })
                    .collect();
                assert_eq!(sides.len(), 2 * plan.rounds as usize);
                assert!(sides.chunks(2).all(|round| round[0] != round[1]));
                assert!(sides.windows(2).skip(1).step_by(2).all(|w| w[0] == w[1]));
            }
            for percent in CHANGED {
                let count = stages.iter().filter(|s| **s == Stage::Resync { percent }).count();
                assert_eq!(count, plan.resync_rounds as usize);
            }
        }
    }

    #[test]
    fn runs_are_short_enough() {
        assert!(VolumePlan::full().total() < Duration::from_secs(10 * 60), "{:?}", VolumePlan::full().total());
        assert!(VolumePlan::quick().total() < Duration::from_secs(3 * 60), "{:?}", VolumePlan::quick().total());
    }
}
