//! What a keeper says about its VM.

use serde::{Deserialize, Serialize};

use crate::difference::Difference;
use crate::health::HealthStatus;
use crate::spec::{Accel, EpochPolicy, Protection};
use crate::{Epoch, HostName, SnapshotName, Term, Tombstone, Uuid, VmId, VmName, VolumeName};

/// What a keeper is for its VM at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Role {
    /// No part of the VM is here; ready to become its backup, or to boot it.
    Standby,
    /// Receiving checkpoints.
    Backup,
    /// Runs the VM and speaks for it.
    Primary,
}

/// Whether the VM would survive the loss of its primary now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum ProtectionState {
    /// Not asked for.
    Off,
    /// Asked for, and there is no backup.
    Unprotected,
    /// A backup is being synced.
    Syncing,
    /// A backup holds a checkpoint and may take over.
    Protected,
    /// The backup is gone and the witness has not yet allowed to go on without: output waits.
    Waiting,
}

/// A keeper's answer to `status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VmStatus {
    pub id: VmId,
    pub vm: VmName,
    pub host: HostName,
    pub pid: u32,
    pub role: Role,
    /// Only a primary knows it.
    pub protection: Option<ProtectionState>,
    /// What the owner asked for.
    pub wanted: Protection,
    pub term: Term,
    /// The last epoch that the backup acknowledged (primary) or that is held whole (backup).
    pub committed: Epoch,
    pub peer: Option<HostName>,
    pub epoch_policy: EpochPolicy,
    /// It answers, and its answers can be believed.
    pub witness_reachable: bool,
    /// Of the first backup that is being copied to.
    pub sync: Option<SyncProgress>,
    /// Why there is no further backup although one is wanted.
    #[serde(default)]
    pub no_backup: Option<String>,
    /// What the witness keeps of the VM if it was retired: then nothing of it runs any more.
    #[serde(default)]
    pub retired: Option<Tombstone>,
    /// A primary's backups, in the order in which their sessions were opened.
    #[serde(default)]
    pub backups: Vec<BackupStatus>,
    /// A snapshot that is being taken, or from which the VM is being started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotProgress>,
    /// Of a non-volatile VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<LogStatus>,
    /// The VM's volumes as they are on this host.
    #[serde(default)]
    pub volumes: Vec<VolumeStatus>,
    pub machine: Option<MachineStatus>,
    /// In what this host's file differs from the VM that runs here or is held here: what runs is what was booted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differs: Vec<Difference>,
    /// Of a keeper that proves by a certificate who its host is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<CertificateStatus>,
    pub counters: Counters,
    /// The latest pauses, microseconds.
    pub pause_us: Option<PauseSummary>,
    /// Null from keepers that do not watch.
    #[serde(default)]
    pub health: Option<HealthStatus>,
}

/// The certificate by which a host proves who it is, as its keeper uses it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CertificateStatus {
    /// Hexadecimal.
    pub serial: String,
    /// Seconds since the Unix epoch.
    pub valid_until_s: u64,
    /// By when the next revocation list is due, seconds since the Unix epoch. None without a list.
    pub next_update_s: Option<u64>,
    /// Why the files on the disk are not what is used.
    pub problem: Option<String>,
}

/// A volume on one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VolumeStatus {
    pub name: VolumeName,
    /// Bytes of writes in memory, which are not in the image yet.
    pub held: u64,
    /// Why it cannot be written or read, while it cannot.
    pub failure: Option<String>,
}

/// One of a primary's backups.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BackupStatus {
    pub host: HostName,
    /// The session with it.
    pub session: Term,
    pub state: BackupState,
    /// The newest epoch that it has acknowledged.
    pub acked: Option<Epoch>,
    pub sync: Option<SyncProgress>,
    /// In what its host's file differs from the VM that runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differs: Vec<Difference>,
}

/// How far a backup is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum BackupState {
    /// The VM is being copied to it.
    Syncing,
    /// It gets checkpoints; the witness has not yet bound it.
    Binding,
    /// It may take over.
    Bound,
    /// The witness is to release it.
    Unbinding,
}

/// How far a snapshot is, or a start from one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SnapshotProgress {
    pub name: SnapshotName,
    pub doing: SnapshotStep,
    /// Bytes.
    pub done: u64,
    pub total: u64,
    /// For how long, in all, the guest's writes have waited for the snapshot so far, microseconds.
    #[serde(default)]
    pub waited_us: u64,
}

/// What is being done for a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum SnapshotStep {
    Memory,
    Volumes,
    Verifying,
    Loading,
}

/// Where the log of a non-volatile VM stands on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LogStatus {
    pub state: LogState,
    /// The newest epoch that survives a loss of power.
    pub epoch: Epoch,
    /// Bytes written in this epoch, and of all segments.
    pub commit_bytes: u64,
    pub bytes: u64,
    /// From the end of a pause until the epoch was on disk, microseconds, the latest.
    pub commit_us: u64,
}

/// Whether a log could be gone on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum LogState {
    /// There is none.
    Off,
    /// The VM is being copied to it.
    Copying,
    /// It has all that was ever said, or all that was acknowledged.
    On,
    /// The VM could be recovered from it: the witness's word is awaited.
    Recovering,
}

/// A running initial copy.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SyncProgress {
    pub bytes_sent: u64,
    pub bytes_total: u64,
    pub round: u32,
}

/// The QEMU process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct MachineStatus {
    pub pid: u32,
    pub qemu: String,
    pub accel: Accel,
    pub accel_reason: String,
    /// How the guest stands: `running`, `paused`, `suspended`, `shutdown`; before that QEMU's own state, such as `prelaunch`, or
    /// `inmigrate` at a backup.
    pub run_state: String,
    /// The generation id that the guest is shown: another one after a restore, a clone or a recovery from a log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<Uuid>,
}

/// Counters since the keeper started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Counters {
    pub checkpoints: u64,
    pub pages_sent: u64,
    pub bytes_sent: u64,
    pub failovers: u64,
    pub frames_out: u64,
    pub frames_in: u64,
    pub frames_held: u64,
    /// Frames dropped because the gate was full or shut.
    pub frames_dropped: u64,
    /// Committed frames that a host dropped after it had been out of touch for longer than the failure timeout.
    pub frames_stale: u64,
}

/// Pauses of the guest, microseconds, over the latest checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PauseSummary {
    pub count: u64,
    pub p50: u64,
    pub p99: u64,
    pub max: u64,
}
