//! What is measured, in which order and how often. Pure: a plan is data, [`super::run`] carries it out.
//!
//! The two sides of a comparison take turns in one run on one VM: *unprotected, protected, protected, unprotected, …*, so
//! that each round's two sides are neighbours in time, no side is always first, and the VM's protection is switched only
//! once a round.

use std::fmt;
use std::time::Duration;

use ninefold_model::spec::EpochPolicy;
use serde::{Deserialize, Serialize};

/// A guest's memory, MiB, and its vCPUs.
pub const SIZES: [(u64, u16); 7] = [(256, 1), (1024, 1), (4096, 1), (16_384, 1), (65_536, 1), (256, 4), (4096, 4)];

/// Sizes of guest memory, MiB.
pub const SNAPSHOT_SIZES: [u64; 3] = [256, 1024, 4096];

/// The longest adaptive epoch, milliseconds.
const ADAPTIVE_MAX_MS: u32 = 100;

/// How the VM runs while it is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    Unprotected,
    /// Protected, with adaptive epochs: the default.
    Adaptive,
    /// Protected, with a checkpoint every so many milliseconds.
    Fixed(u32),
}

impl Mode {
    /// The modes that are compared with each other.
    pub const ALL: [Mode; 6] =
        [Mode::Unprotected, Mode::Adaptive, Mode::Fixed(10), Mode::Fixed(25), Mode::Fixed(50), Mode::Fixed(100)];

    /// Its epochs; `None` when there are none.
    pub fn epochs(self) -> Option<EpochPolicy> {
        match self {
            Mode::Unprotected => None,
            Mode::Adaptive => Some(EpochPolicy::Adaptive { max_ms: ADAPTIVE_MAX_MS }),
            Mode::Fixed(ms) => Some(EpochPolicy::Fixed { ms }),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mode::Unprotected => f.pad("unprotected"),
            Mode::Adaptive => f.pad("adaptive"),
            Mode::Fixed(ms) => f.pad(&format!("{ms} ms")),
        }
    }
}

/// A redis command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    Get,
    Set,
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Command::Get => "GET",
            Command::Set => "SET",
        })
    }
}

/// One thing that is measured, in the guest or through its network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// `redis-benchmark -t set -c 8 -P 500 -r RANGE`.
    SetPipelined { range: u32 },
    /// `redis-benchmark` without pipelining, over the middle key range.
    Redis { command: Command, clients: u32 },
    /// A fixed amount of computing, timed from outside: the guest's own clock stands still while it is paused.
    Cpu,
    /// Writing to memory, page after page, at `mbps` MB/s; 0 = as fast as it goes.
    Memory { mbps: u32 },
    /// ICMP echoes, one after the other, to an otherwise idle guest.
    Ping,
}

/// The key ranges of the pipelined SET. The largest is what a guest of 256 MiB holds beside the other workloads.
pub const RANGES: [u32; 3] = [1_000, 30_000, 300_000];
/// The range where only one is measured.
pub const MIDDLE_RANGE: u32 = RANGES[1];
/// Clients and commands on their way for each of them, as the published figures have it.
pub const PIPELINED: (u32, u32) = (8, 500);

impl Measure {
    /// All that protected and unprotected are compared by.
    pub const ALL: [Measure; 12] = [
        Measure::SetPipelined { range: RANGES[0] },
        Measure::SetPipelined { range: RANGES[1] },
        Measure::SetPipelined { range: RANGES[2] },
        Measure::Redis { command: Command::Set, clients: 1 },
        Measure::Redis { command: Command::Set, clients: 50 },
        Measure::Redis { command: Command::Get, clients: 1 },
        Measure::Redis { command: Command::Get, clients: 50 },
        Measure::Cpu,
        Measure::Memory { mbps: 20 },
        Measure::Memory { mbps: 100 },
        Measure::Memory { mbps: 0 },
        Measure::Ping,
    ];

    /// What the epoch policies are compared by.
    pub const OF_POLICIES: [Measure; 5] = [
        Measure::SetPipelined { range: MIDDLE_RANGE },
        Measure::Redis { command: Command::Set, clients: 50 },
        Measure::Cpu,
        Measure::Memory { mbps: 0 },
        Measure::Ping,
    ];

    /// What mutual TLS and plain text are compared by.
    pub const OF_SECURITY: [Measure; 4] = [
        Measure::SetPipelined { range: MIDDLE_RANGE },
        Measure::Redis { command: Command::Set, clients: 50 },
        Measure::Memory { mbps: 0 },
        Measure::Ping,
    ];

    /// What its figure counts. Of all but [`Measure::Ping`] more is better.
    pub fn unit(self) -> &'static str {
        match self {
            Measure::SetPipelined { .. } | Measure::Redis { .. } => "requests/s",
            Measure::Cpu => "iterations/s",
            Measure::Memory { .. } => "MB/s",
            Measure::Ping => "us (median)",
        }
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Measure::SetPipelined { range } => f.pad(&format!("SET pipelined, {} keys", grouped(*range))),
            Measure::Redis { command, clients: 1 } => f.pad(&format!("{command}, 1 client")),
            Measure::Redis { command, clients } => f.pad(&format!("{command}, {clients} clients")),
            Measure::Cpu => f.pad("computing"),
            Measure::Memory { mbps: 0 } => f.pad("dirtying, flat out"),
            Measure::Memory { mbps } => f.pad(&format!("dirtying, {mbps} MB/s")),
            Measure::Ping => f.pad("ping, round trip"),
        }
    }
}

/// With thin groups of three digits: 300,000.
fn grouped(n: u32) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// What the guest does while pauses are taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PauseLoad {
    Idle,
    /// About 2,000 pages an epoch.
    #[serde(rename = "dirty_2000")]
    Dirty2000,
}

/// How the primary is taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// Its QEMU is killed.
    QemuKilled,
    /// All its processes stop where they are.
    HostFrozen,
    /// Not at all: it hands the VM over.
    Switchover,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Loss::QemuKilled => "QEMU killed",
            Loss::HostFrozen => "host frozen",
            Loss::Switchover => "switchover",
        })
    }
}

/// How the backup is away for a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Break {
    /// The two hosts are cut off from each other.
    #[serde(rename = "cut_300ms")]
    Cut300Ms,
    /// Its keeper is killed and started again.
    BackupKeeperRestarted,
}

impl fmt::Display for Break {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Break::Cut300Ms => "cut for 300 ms",
            Break::BackupKeeperRestarted => "backup's keeper killed and restarted",
        })
    }
}

/// Memory of the guest whose protection breaks, beside the one on which all else is measured, MiB.
pub const LARGE_MIB: u64 = 8192;

/// One step of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Make the lab, boot the VM.
    Boot,
    /// Give redis its keys, so that each side of each round finds the same.
    Fill,
    /// Find out how much work fills the time of one measurement. Not counted.
    WarmUp {
        mode: Mode,
        measure: Measure,
    },
    /// One side of a round.
    Compare {
        mode: Mode,
        measure: Measure,
    },
    /// One mode in a round of the epoch policies.
    Policies {
        mode: Mode,
        measure: Measure,
    },
    Pauses {
        load: PauseLoad,
    },
    /// How well the guest's clock keeps time.
    Clock {
        load: ClockLoad,
    },
    /// Take the primary away and wait until the VM is protected again.
    Lose {
        how: Loss,
    },
    /// Let the backup be away for a moment.
    Rebind {
        large: bool,
        how: Break,
    },
    /// A lab with a VM of more memory.
    BootLarge,
    /// Pauses of a VM of this size, in a lab of its own.
    Scaling {
        memory_mib: u64,
        vcpus: u16,
    },
    /// Snapshots of a VM of this size, in a lab of its own.
    Snapshots {
        memory_mib: u64,
    },
    /// A second lab, without encryption; boot and fill its VM.
    BootPlain,
    /// One side of a round of plain text against mutual TLS.
    Security {
        plain: bool,
        measure: Measure,
    },
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stage::Boot => f.write_str("boot the VM and protect it"),
            Stage::Fill => f.write_str("fill redis"),
            Stage::WarmUp { mode, measure } => write!(f, "warm up ({mode}): {measure}"),
            Stage::Compare { mode, measure } => write!(f, "{mode}: {measure}"),
            Stage::Policies { mode, measure } => write!(f, "epochs {mode}: {measure}"),
            Stage::Pauses { load: PauseLoad::Idle } => f.write_str("pauses, idle guest"),
            Stage::Pauses { load: PauseLoad::Dirty2000 } => f.write_str("pauses, 2,000 dirty pages"),
            Stage::Clock { load } => write!(f, "the guest's clock: {load}"),
            Stage::Lose { how } => write!(f, "failover: {how}"),
            Stage::Rebind { large: false, how } => write!(f, "a break: {how}"),
            Stage::Rebind { large: true, how } => write!(f, "a break, {LARGE_MIB} MiB: {how}"),
            Stage::BootLarge => write!(f, "boot a VM of {LARGE_MIB} MiB"),
            Stage::Scaling { memory_mib, vcpus } => write!(f, "pauses, {memory_mib} MiB, vCPUs: {vcpus}"),
            Stage::Snapshots { memory_mib } => write!(f, "snapshots, {memory_mib} MiB"),
            Stage::BootPlain => f.write_str("boot a VM in a lab without TLS"),
            Stage::Security { plain: true, measure } => write!(f, "plain text: {measure}"),
            Stage::Security { plain: false, measure } => write!(f, "mutual TLS: {measure}"),
        }
    }
}

/// How long the same work is done before it counts, for requests from the client.
pub fn warm_up(sample: Duration) -> Duration {
    (sample / 2).min(Duration::from_millis(600))
}

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub rounds: u32,
    pub policy_rounds: u32,
    pub security_rounds: u32,
    /// Of one measurement.
    pub sample_ms: u32,
    /// Of one measurement in a round of the policies or of TLS.
    pub short_sample_ms: u32,
    pub pauses_ms: u32,
    /// Of each look at the guest's clock.
    pub clock_ms: u32,
    pub kills: u32,
    pub freezes: u32,
    pub switchovers: u32,
    /// Breaks of each kind with each size of memory.
    pub breaks: u32,
    /// Of [`SIZES`], how many.
    pub sizes: usize,
    /// Of [`SNAPSHOT_SIZES`], how many.
    #[serde(default)]
    pub snapshot_sizes: usize,
}

impl Plan {
    /// About twenty-seven minutes.
    pub fn full() -> Self {
        Self {
            rounds: 7,
            policy_rounds: 3,
            security_rounds: 5,
            sample_ms: 2000,
            short_sample_ms: 1200,
            pauses_ms: 12_000,
            clock_ms: 20_000,
            kills: 30,
            freezes: 6,
            switchovers: 6,
            breaks: 12,
            sizes: SIZES.len(),
            snapshot_sizes: SNAPSHOT_SIZES.len(),
        }
    }

    /// Under five minutes, of which half a minute is the boot of a large guest; and coarser.
    pub fn quick() -> Self {
        Self {
            rounds: 3,
            policy_rounds: 1,
            security_rounds: 1,
            sample_ms: 600,
            short_sample_ms: 600,
            pauses_ms: 3000,
            clock_ms: 2500,
            kills: 6,
            freezes: 1,
            switchovers: 1,
            breaks: 2,
            sizes: 0,
            snapshot_sizes: 1,
        }
    }

    /// All of it, in order.
    pub fn stages(&self) -> Vec<Stage> {
        let mut all = vec![Stage::Boot, Stage::Fill];
        for mode in [Mode::Adaptive, Mode::Unprotected] {
            all.extend(Measure::ALL.map(|measure| Stage::WarmUp { mode, measure }));
        }
        for round in 0..self.rounds {
            let mut sides = [Mode::Unprotected, Mode::Adaptive];
            if round % 2 == 1 {
                sides.reverse();
            }
            for mode in sides {
                all.extend(Measure::ALL.map(|measure| Stage::Compare { mode, measure }));
            }
        }
        for round in 0..self.policy_rounds {
            let mut modes = Mode::ALL;
            if round % 2 == 1 {
                modes.reverse();
            }
            for mode in modes {
                all.extend(Measure::OF_POLICIES.map(|measure| Stage::Policies { mode, measure }));
            }
        }
        all.extend([PauseLoad::Idle, PauseLoad::Dirty2000].map(|load| Stage::Pauses { load }));
        all.extend(ClockLoad::ALL.map(|load| Stage::Clock { load }));
        let losses =
            [(Loss::QemuKilled, self.kills), (Loss::HostFrozen, self.freezes), (Loss::Switchover, self.switchovers)];
        for (how, count) in losses {
            all.extend((0..count).map(|_| Stage::Lose { how }));
        }
        for large in [false, true] {
            if large && self.breaks > 0 {
                all.push(Stage::BootLarge);
            }
            for how in [Break::Cut300Ms, Break::BackupKeeperRestarted] {
                all.extend((0..self.breaks).map(|_| Stage::Rebind { large, how }));
            }
        }
        all.extend(SIZES.iter().take(self.sizes).map(|&(memory_mib, vcpus)| Stage::Scaling { memory_mib, vcpus }));
        let sizes = SNAPSHOT_SIZES.iter().take(self.snapshot_sizes);
        all.extend(sizes.map(|&memory_mib| Stage::Snapshots { memory_mib }));
        if self.security_rounds > 0 {
            all.push(Stage::BootPlain);
        }
        for round in 0..self.security_rounds {
            let mut sides = [false, true];
            if round % 2 == 1 {
                sides.reverse();
            }
            for plain in sides {
                all.extend(Measure::OF_SECURITY.map(|measure| Stage::Security { plain, measure }));
            }
        }
        all
    }

    /// About how long the whole run takes.
    pub fn total(&self) -> Duration {
        self.stages().into_iter().map(|s| self.cost(s)).sum()
    }

    /// How long one measurement shall take.
    pub fn sample(&self, stage: Stage) -> Duration {
        let ms = match stage {
            Stage::Compare { .. } => self.sample_ms,
            Stage::Pauses { .. } | Stage::Scaling { .. } => self.pauses_ms,
            Stage::Clock { .. } => self.clock_ms,
            _ => self.short_sample_ms,
        };
        Duration::from_millis(ms.into())
    }

    fn warm_up(&self, stage: Stage, measure: Measure) -> Duration {
        match measure {
            Measure::SetPipelined { .. } | Measure::Redis { .. } => warm_up(self.sample(stage)),
            _ => Duration::ZERO,
        }
    }

    /// About how long a stage takes on a machine of two cores without KVM: for the progress bar.
    pub fn cost(&self, stage: Stage) -> Duration {
        // The start of a process, the switching of protection, what a sample takes longer than planned.
        let overhead = Duration::from_millis(350);
        match stage {
            Stage::Boot => Duration::from_secs(12),
            Stage::BootPlain | Stage::BootLarge => Duration::from_secs(25),
            Stage::Rebind { .. } => Duration::from_millis(1500),
            // Booting takes longer the more memory there is to describe.
            Stage::Scaling { memory_mib, .. } => {
                self.sample(stage) + Duration::from_secs(30) + Duration::from_millis(memory_mib)
            }
            Stage::Snapshots { memory_mib } => Duration::from_secs(22) + Duration::from_millis(memory_mib * 15),
            Stage::Fill => Duration::from_secs(10),
            Stage::Pauses { load: PauseLoad::Dirty2000 } => self.sample(stage) + Duration::from_secs(3),
            Stage::Lose { how: Loss::HostFrozen } => Duration::from_secs(3),
            Stage::Lose { .. } => Duration::from_secs(2),
            Stage::Security { measure, .. } => self.sample(stage) + self.warm_up(stage, measure) + 2 * overhead,
            Stage::WarmUp { measure, .. } | Stage::Compare { measure, .. } | Stage::Policies { measure, .. } => {
                self.sample(stage) + self.warm_up(stage, measure) + overhead
            }
            _ => self.sample(stage) + overhead,
        }
    }
}

/// What the guest does meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClockLoad {
    /// Idle, without protection.
    Unprotected,
    /// Idle, protected.
    Idle,
    /// Protected, and 100 MB/s are written to memory.
    Dirty100,
    /// Protected, under redis-benchmark with pipelining.
    Redis,
}

impl ClockLoad {
    /// In the order in which they are measured.
    pub const ALL: [ClockLoad; 4] = [Self::Unprotected, Self::Idle, Self::Dirty100, Self::Redis];
}

impl fmt::Display for ClockLoad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Unprotected => "idle, unprotected",
            Self::Idle => "idle",
            Self::Dirty100 => "dirtying, 100 MB/s",
            Self::Redis => "SET pipelined",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_take_turns_and_are_complete() {
        for plan in [Plan::full(), Plan::quick()] {
            let stages = plan.stages();
            for measure in Measure::ALL {
                let sides: Vec<_> = stages
                    .iter()
                    .filter_map(|s| match s {
                        Stage::Compare { mode, measure: m } if *m == measure => Some(*mode),
                        _ => None,
                    })
                    .collect();
                assert_eq!(sides.len(), 2 * plan.rounds as usize);
                // Every round has both, and the one that ends a round begins the next.
                assert!(sides.chunks(2).all(|round| round[0] != round[1]));
                assert!(sides.windows(2).skip(1).step_by(2).all(|w| w[0] == w[1]));
            }
        }
    }

    #[test]
    fn runs_are_short_enough() {
        assert!(Plan::full().total() < Duration::from_secs(28 * 60), "{:?}", Plan::full().total());
        assert!(Plan::quick().total() < Duration::from_secs(5 * 60), "{:?}", Plan::quick().total());
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([grouped(1), grouped(1000), grouped(300_000)], ["1", "1,000", "300,000"]);
    }
}
