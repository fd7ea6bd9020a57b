//! What a run came to: the contents of `volume.json`.

use ninefold_model::spec::Accel;
use serde::{Deserialize, Serialize};

use super::plan::{Job, VolumePlan};
use crate::bench::results::{Checkpoints, MachineDescription};
use crate::bench::spread::Spread;

/// All of it. Rates are per second by the clock outside of the guest.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VolumeReport {
    /// Protected / unprotected, adaptive epochs, medians over the rounds.
    pub ratios: VolumeRatios,
    /// How long a guest at work (pgbench) stood still for a snapshot, microseconds; median of all.
    pub snapshot_pause_us: f64,
    /// Whole ones, and those that keep only what differs from the one before.
    pub snapshots: Vec<SnapshotResult>,
    pub clones: CloneResult,
    /// Against the share of the volume that had changed.
    pub resync: Vec<Resync>,
    pub comparisons: Vec<VolumeComparison>,
    pub accel: Accel,
    /// QEMU's version.
    pub qemu: String,
    pub accel_reason: String,
    pub machine: MachineDescription,
    pub plan: VolumePlan,
    /// The images are on file systems of their own (loop devices), where a flush costs what it costs on this machine's disk;
    /// otherwise in `/run`, which may be in memory.
    pub disks: bool,
    pub quick: bool,
    pub took_s: u64,
    /// Takeovers that nobody asked for. Not 0 on a machine that is too busy to measure on.
    pub unplanned_takeovers: u64,
}

/// Headline ratios, protected / unprotected: 1 is free, 0.5 is half as fast. Above 1 where a flush is answered sooner, because
/// a protected VM's waits for its checkpoint and not for a disk.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct VolumeRatios {
    pub pgbench: f64,
    pub fio_randwrite: f64,
    pub fio_seqwrite: f64,
    pub fio_fsync: f64,
}

/// One job, both sides.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VolumeComparison {
    pub job: Job,
    pub name: String,
    pub unit: String,
    pub unprotected: Spread,
    pub protected: Spread,
    /// Round by round, protected / unprotected.
    pub ratio: Spread,
    /// Of the protected side.
    pub checkpoints: Checkpoints,
}

/// What it takes to make a backup's volume equal again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Resync {
    /// Share of the volume's blocks of 64 KiB that had new contents, 0 to 1.
    pub changed_fraction: f64,
    /// From the beginning of the copy to protection, with the copy of the VM's memory; median.
    pub seconds: f64,
    /// Sent of the volume; median.
    pub bytes: u64,
    /// Sent of the memory; median.
    pub memory_bytes: u64,
    pub rounds_s: Spread,
}

/// Snapshots of one kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SnapshotResult {
    /// Otherwise with the snapshot before as its parent.
    pub whole: bool,
    pub pause_us: Spread,
    /// From the request to the finished file.
    pub seconds: Spread,
    /// The file's.
    pub bytes: Spread,
}

/// A golden image that is full of data, and volumes made of it.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct CloneResult {
    pub image_bytes: u64,
    /// A thin clone (qcow2), milliseconds.
    pub thin_ms: f64,
    /// A whole copy (raw): of the blocks, where the file system cannot share them.
    pub whole_ms: f64,
}
