//! What a run came to: the contents of `ft.json`.

use std::fs;

use ninefold_model::checkpoint::CheckpointRecord;
use ninefold_model::event::FailoverPhases;
use ninefold_model::spec::Accel;
use serde::{Deserialize, Serialize};

use super::clock::ClockFigures;
use super::plan::{Loss, Measure, Mode, PauseLoad, Plan};
use super::rebind::{Rebind, RebindFigures};
use super::scaling::ScalingRow;
use super::snapshots::SnapshotRow;
use super::spread::Spread;
use super::subject::Sync;
use crate::ledger::LedgerReport;
use ninefold_model::series::{Series, Summary};

/// All of it. Times are microseconds unless a name says otherwise; rates are per second.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Protected / unprotected, adaptive epochs, medians over the rounds.
    pub ratios: Ratios,
    pub ping_us: PingFigures,
    /// Whole pauses at 25 ms epochs (longer ones if the guest cannot dirty 2,000 pages in 25 ms).
    pub pause_us: PauseFigures,
    /// How much faster than the host's the guest's clock is, parts per million.
    #[serde(default)]
    pub clock_ppm: ClockFigures,
    /// QEMU killed: from the kill to the guest running on the other host.
    pub failover_ms: Quantiles,
    /// From the end of a break in protection until it was back.
    pub rebind_ms: RebindFigures,
    /// Pauses of an idle guest, over its memory.
    pub scaling: Vec<ScalingRow>,
    /// Snapshots, over the guest's memory and what it writes.
    #[serde(default)]
    pub snapshot: Vec<SnapshotRow>,
    pub accel: Accel,
    /// QEMU's version.
    pub qemu: String,
    pub accel_reason: String,
    pub machine: MachineDescription,
    pub plan: Plan,
    pub quick: bool,
    pub took_s: u64,
    pub comparisons: Vec<Comparison>,
    pub pings: Vec<PingSeries>,
    pub policies: Vec<PolicyRow>,
    pub pauses: Vec<PauseSeries>,
    pub failovers: Failovers,
    /// Takeovers beside those that were asked for: a host that got no CPU for longer than the failure timeout. Not 0 on
    /// a machine that is too busy to measure on.
    pub unplanned_takeovers: u64,
    pub breaks: Vec<Rebind>,
    /// Breaks, beside these, in which the backup took the VM over.
    pub taken_over_in_breaks: u64,
    /// Initial copies, in order of time.
    pub syncs: Vec<Sync>,
    /// 10^6 bytes a second, over all initial copies.
    pub sync_mb_per_s: Spread,
    pub tls: Option<TlsCost>,
}

/// Headline ratios, protected / unprotected: 1 is free, 0.5 is half as fast.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Ratios {
    /// The median of the three key ranges.
    pub redis_set_pipelined: f64,
    /// 50 clients.
    pub redis_set: f64,
    /// 50 clients.
    pub redis_get: f64,
    pub cpu: f64,
    /// Dirtying flat out.
    pub memory: f64,
}

/// Headline round trips.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PingFigures {
    pub unprotected_p50: u64,
    pub protected_p50: u64,
    pub protected_p99: u64,
}

/// Headline pauses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PauseFigures {
    pub idle: Median,
    pub dirty_2000: Median,
}

/// A series in two numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Median {
    pub p50: u64,
    pub p99: u64,
}

/// A series in three numbers; of fewer than 100 values p99 is the largest.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Quantiles {
    pub count: u64,
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

impl Quantiles {
    /// Of microseconds, in milliseconds.
    pub fn ms(us: &Series) -> Self {
        let s = us.summary();
        let ms = |us: u64| us as f64 / 1e3;
        Self { count: s.count, p50: ms(s.p50), p99: ms(s.p99), max: ms(s.max) }
    }
}

/// One measure, both sides.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Comparison {
    pub measure: Measure,
    pub name: String,
    pub unit: String,
    pub unprotected: Spread,
    pub protected: Spread,
    /// Round by round, protected / unprotected.
    pub ratio: Spread,
    /// Of the protected side.
    pub checkpoints: Checkpoints,
}

/// Round trips of all rounds of one mode.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PingSeries {
    pub mode: Mode,
    pub rtt_us: Summary,
    pub lost: u64,
    /// Every one, in order of time.
    pub all_us: Vec<u64>,
}

/// What the checkpoints of one measurement were like.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Checkpoints {
    pub per_second: f64,
    /// The guest stood still for this share of the time, 0 to 1.
    pub paused_share: f64,
    pub bytes_per_second: f64,
    pub dirty_pages: Summary,
    pub pause: Summary,
    /// From the end of the pause to the acknowledgement.
    pub commit: Summary,
    pub steps: Steps,
}

/// The steps of a pause, and what is between their sum and the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Steps {
    pub stop: Summary,
    pub save: Summary,
    pub scan: Summary,
    pub copy: Summary,
    pub cont: Summary,
}

impl Checkpoints {
    /// Of the checkpoints of `seconds`.
    pub fn of(all: &[CheckpointRecord], seconds: f64) -> Self {
        let series = |f: fn(&CheckpointRecord) -> u64| all.iter().map(f).collect::<Series>().summary();
        let per_second = |n: f64| if seconds > 0.0 { n / seconds } else { 0.0 };
        let sum = |f: fn(&CheckpointRecord) -> u64| all.iter().map(f).sum::<u64>() as f64;
        Self {
            per_second: per_second(all.len() as f64),
            paused_share: per_second(sum(|c| c.pause_us) / 1e6),
            bytes_per_second: per_second(sum(|c| c.wire_bytes)),
            dirty_pages: series(|c| c.dirty_pages),
            pause: series(|c| c.pause_us),
            commit: series(|c| c.commit_us),
            steps: Steps {
                stop: series(|c| c.stop_us),
                save: series(|c| c.save_us),
                scan: series(|c| c.scan_us),
                copy: series(|c| c.copy_us),
                cont: series(|c| c.cont_us),
            },
        }
    }
}

/// One epoch policy; the row of [`Mode::Unprotected`] is what the others are compared with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PolicyRow {
    pub mode: Mode,
    pub cells: Vec<PolicyCell>,
}

/// One measure under one policy.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PolicyCell {
    pub measure: Measure,
    pub name: String,
    pub unit: String,
    pub value: Spread,
    /// Round by round, to the unprotected side.
    pub ratio: Spread,
    pub checkpoints: Checkpoints,
}

/// Pauses taken apart.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PauseSeries {
    pub load: PauseLoad,
    /// The fixed epoch, milliseconds.
    pub epoch_ms: u32,
    /// What the guest was asked to dirty.
    pub dirtied_mb_per_s: u32,
    pub checkpoints: Checkpoints,
}

/// One loss of the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failover {
    pub how: Loss,
    /// From the deed to the guest running on the other host.
    pub total_us: u64,
    /// What the new primary says.
    pub phases: FailoverPhases,
    /// The longest time that a client waited for an answer, milliseconds.
    pub client_gap_ms: u64,
    /// From the deed to being protected again, milliseconds.
    pub reprotected_ms: u64,
}

/// All losses, and the client that checked its writes throughout.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Failovers {
    pub all: Vec<Failover>,
    pub killed_ms: Quantiles,
    pub frozen_ms: Quantiles,
    pub switchover_ms: Quantiles,
    pub client_gap_killed_ms: Quantiles,
    pub client_gap_frozen_ms: Quantiles,
    pub client_gap_switchover_ms: Quantiles,
    pub client: LedgerReport,
}

impl Failovers {
    /// Takes the losses together.
    pub fn of(all: Vec<Failover>, client: LedgerReport) -> Self {
        let series = |how: Loss, f: fn(&Failover) -> u64| {
            Quantiles::ms(&all.iter().filter(|l| l.how == how).map(f).collect::<Series>())
        };
        Self {
            killed_ms: series(Loss::QemuKilled, |f| f.total_us),
            frozen_ms: series(Loss::HostFrozen, |f| f.total_us),
            switchover_ms: series(Loss::Switchover, |f| f.total_us),
            client_gap_killed_ms: series(Loss::QemuKilled, |f| f.client_gap_ms * 1000),
            client_gap_frozen_ms: series(Loss::HostFrozen, |f| f.client_gap_ms * 1000),
            client_gap_switchover_ms: series(Loss::Switchover, |f| f.client_gap_ms * 1000),
            client,
            all,
        }
    }

    /// The phases of one kind of loss, microseconds: detection, arbitration, loading, resumption.
    pub fn phases(&self, how: Loss) -> [Summary; 4] {
        let of = |f: fn(&FailoverPhases) -> u64| {
            self.all.iter().filter(|l| l.how == how).map(|l| f(&l.phases)).collect::<Series>().summary()
        };
        [of(|p| p.detect_us), of(|p| p.arbitrate_us), of(|p| p.load_us), of(|p| p.resume_us)]
    }
}

/// Mutual TLS against plain text, both protected.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TlsCost {
    pub rows: Vec<TlsRow>,
    pub sync_mb_per_s_tls: Spread,
    pub sync_mb_per_s_plain: Spread,
}

/// One measure with and without encryption.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TlsRow {
    pub measure: Measure,
    pub name: String,
    pub unit: String,
    pub plain: Spread,
    pub tls: Spread,
    /// TLS / plain text, round by round.
    pub ratio: Spread,
    pub plain_checkpoints: Checkpoints,
    pub tls_checkpoints: Checkpoints,
}

/// Where this was measured.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct MachineDescription {
    pub cpu: String,
    pub cores: usize,
    pub memory_mib: u64,
    pub kernel: String,
    /// One-minute load averages before and after. Before it should be near 0: else something else ran.
    pub load_before: f64,
    pub load_after: f64,
    /// A debug build is slower.
    pub debug_build: bool,
    pub guest_vcpus: u16,
    pub guest_memory_mib: u64,
}

impl MachineDescription {
    /// This machine now (proc(5)).
    pub fn here(guest_vcpus: u16, guest_memory_mib: u64) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, key: &str| {
            let line = text.lines().find(|l| l.starts_with(key)).unwrap_or_default().to_owned();
            line.split_once(':').map(|(_, v)| v.trim().to_owned()).unwrap_or_default()
        };
        let memory = field(&read("/proc/meminfo"), "MemTotal");
        Self {
            cpu: field(&read("/proc/cpuinfo"), "model name"),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_mib: memory.split(' ').next().and_then(|kb| kb.parse::<u64>().ok()).unwrap_or(0) / 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load_before: load(),
            load_after: 0.0,
            debug_build: cfg!(debug_assertions),
            guest_vcpus,
            guest_memory_mib,
        }
    }
}

/// The one-minute load average.
pub fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|l| l.parse().ok()).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_in_numbers() {
        let one = CheckpointRecord { pause_us: 2000, dirty_pages: 7, wire_bytes: 500, ..Default::default() };
        let two = CheckpointRecord { pause_us: 4000, ..one };
        let c = Checkpoints::of(&[one, two], 0.1);
        assert_eq!((c.per_second, c.bytes_per_second), (20.0, 10_000.0));
        assert!((c.paused_share - 0.06).abs() < 1e-9);
        assert_eq!((c.pause.p50, c.pause.max, c.dirty_pages.p50), (2000, 4000, 7));
        assert_eq!(Checkpoints::of(&[], 0.0), Checkpoints::default());
    }

    #[test]
    fn a_copy_has_a_rate() {
        assert_eq!(Sync { bytes: 200_000_000, ms: 500 }.rate(), 400.0);
    }
}
