//! Why a request is not carried out: a code that stays, and what belongs to it as data. The words for people are the command line's
//! (`ninefold_shell::refusal`); a reason here is what another program said, a library or the kernel.

use std::fmt;

use ninefold_model::{Epoch, HostName, Incarnation, Record, Term, VmId, VmName, VolumeName};
use serde::{Deserialize, Serialize};

use crate::operation_id::{OperationId, OperationKind};

/// Why a request is not carried out. On the wire `{"code":"busy","details":{"with":"dump"}}`; `details` is missing where there are none.
///
/// A code never changes its meaning. A new one, or a new field of an old one, is no new version: clients treat a code that they do not know as a
/// failure of which they know nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "code", content = "details", rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Refusal {
    // ---- the request itself ----
    /// It is none: no JSON, no such request, a field that is missing, is not known or is not of its kind.
    BadRequest {
        /// The field at fault, as a path such as `image.kernel`, where that is known.
        field: Option<String>,
        problem: String,
    },
    /// The keeper does not speak this version.
    UnsupportedVersion {
        asked: u64,
        spoken: Vec<u32>,
    },
    /// The line is longer than this, bytes. The connection is closed.
    TooLong {
        limit: u64,
    },

    // ---- the keeper ----
    /// It has been told to end.
    KeeperEnds,
    /// It has not come to an answer within this time. What was asked for may happen all the same.
    NoAnswer {
        limit_ms: u64,
    },
    /// It is at something that has to end first.
    Busy {
        with: Work,
    },
    /// What the request needs of this host cannot be had: a thread, a program, a file.
    Failed {
        reason: String,
    },

    // ---- where the VM is ----
    /// The VM runs on this host already.
    RunsHere,
    /// The VM runs on another host, or this host is about to take it over from there.
    RunsElsewhere {
        host: Option<HostName>,
    },
    /// The VM does not run on this host; on `host`, as far as is known here.
    NotRunningHere {
        host: Option<HostName>,
    },
    /// Another host has just taken the VM over, and this one keeps its checkpoint for a while.
    JustTakenOver,
    /// By the witness's record the VM may be another host's. `host` had it last and alone: that one may start it.
    HeldElsewhere {
        record: Record,
        host: Option<HostName>,
    },
    /// Another host has got the VM meanwhile.
    Overtaken,
    /// The VM was retired: it is no more. `at_s`: when, by the witness's clock, seconds since 1970.
    Retired {
        term: Term,
        at_s: u64,
    },
    /// The witness has no record of the VM: it has never been booted, or was retired very long ago.
    NoRecord,
    /// This host keeps another VM of that name: `vm`.
    NameTaken {
        name: VmName,
        vm: VmId,
    },
    /// No backup is ready to take the VM, or not the one that was named.
    NoBackup {
        host: Option<HostName>,
    },

    // ---- the witness ----
    /// It does not answer.
    WitnessSilent {
        reason: String,
    },
    /// It answers, and its answers prove nothing.
    WitnessDoubted {
        reason: String,
    },

    // ---- what is on this host's disks ----
    /// The VM's volumes here are of no one moment: what was to overwrite them was cut off. `snapshot`: which was being restored.
    VolumesMixed {
        by: Mixture,
        snapshot: Option<String>,
    },
    /// A volume may be behind what clients were told since then; `record`: the witness's.
    VolumesBehind {
        volume: VolumeName,
        since: Option<String>,
        record: Option<Record>,
    },
    /// The VM is not non-volatile: it has no log.
    NotLogged,
    /// The VM goes on from its log, which ends with this epoch, by itself, as soon as the witness allows.
    LogGoesOn {
        epoch: Option<Epoch>,
    },
    /// There is a log, or should be, and it cannot be used.
    LogUnusable {
        reason: String,
    },

    // ---- the guest ----
    /// Its QEMU did not come up.
    StartFailed {
        reason: String,
    },
    /// It has switched itself off.
    GuestOff,
    GuestPaused,
    GuestSuspended,
    NotPaused,
    NotSuspended,
    /// Its file systems cannot be frozen, and were to be.
    CannotFreeze {
        reason: String,
    },
    /// The image cannot be tried on this host.
    ImageUnusable {
        reason: String,
    },
    /// No image is on trial.
    NothingOnTrial,

    // ---- operations ----
    /// There is no operation of this name, or none any more.
    UnknownOperation {
        operation: OperationId,
    },
    /// It was begun in an earlier life of this keeper, of which nothing is known any more: what became of it, `status` and `events` show.
    EarlierKeeper {
        operation: OperationId,
        incarnation: Incarnation,
    },
    /// Operations of its kind cannot be cancelled, or it has come too far.
    NotCancellable {
        operation: OperationId,
        kind: OperationKind,
    },
    /// So many run already.
    TooManyOperations {
        limit: u64,
    },
    /// The token was given to another request, of another kind or with other parameters, which has begun this operation; none: it
    /// has not begun yet.
    TokenUsed {
        operation: Option<OperationId>,
        kind: OperationKind,
    },
    /// It was cancelled, or what it waited for is not wanted any more.
    Cancelled,
    /// The VM has ended on this host, or left it, before the operation had.
    VmEnded {
        reason: String,
    },
    /// The VM's QEMU was launched anew before the operation had ended: of the former guest nothing is there any more.
    Relaunched {
        reason: String,
    },
    /// The switchover came to nothing: the VM runs here.
    Stayed {
        reason: String,
    },
    /// The guest has not switched itself off in time, and runs on.
    ShutdownIgnored {
        within_ms: u64,
    },
    /// The image on trial has failed: the committed one is booted.
    FellBack {
        reason: String,
    },
}

/// What a keeper is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Work {
    /// The VM is being started.
    Start,
    /// It is being started from a snapshot.
    Restore,
    /// It is being started from its log.
    Recover,
    /// It is being looked what the log would be gone back to.
    LogLook,
    /// What another client has asked for is being looked at on the disk, which may not answer.
    DiskLook,
    Snapshot,
    /// The guest's memory is being written to a file.
    Dump,
    /// The VM's QEMU is being launched.
    Launch,
    /// The VM is being handed to another host.
    Switchover,
    /// The VM is being stopped.
    Stop,
    /// An image is on trial.
    Trial,
    /// The VM is being retired.
    Retire,
    /// It is being renamed.
    Rename,
    /// The witness is being asked for what comes first.
    Witness,
}

/// By what a host's volumes become a mixture that is of no one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Mixture {
    /// Another host's volumes were copied to here.
    Resync,
    /// A log's operations were played onto them; that can be repeated.
    Log,
    /// A snapshot was restored; that can be repeated.
    Restore,
}

impl Refusal {
    /// The host whose keeper is to be asked instead, where one is known.
    pub fn host(&self) -> Option<&HostName> {
        match self {
            Self::RunsElsewhere { host } | Self::NotRunningHere { host } | Self::HeldElsewhere { host, .. } => {
                host.as_ref()
            }
            _ => None,
        }
    }

    /// The code and the details, as they are on the wire.
    pub fn parts(&self) -> (String, serde_json::Value) {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        let code = value.get("code").and_then(|code| code.as_str()).unwrap_or("failed").to_owned();
        (code, value.get_mut("details").map(serde_json::Value::take).unwrap_or_default())
    }
}

/// For logs and tests; people are told in words.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (code, details) = self.parts();
        match details {
            serde_json::Value::Null => f.write_str(&code),
            details => write!(f, "{code} {details}"),
        }
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_a_code_and_data() {
        let elsewhere = Refusal::NotRunningHere { host: Some("b".parse().unwrap()) };
        let text = serde_json::to_string(&elsewhere).unwrap();
        assert_eq!(text, r#"{"code":"not_running_here","details":{"host":"b"}}"#);
        assert_eq!(serde_json::from_str::<Refusal>(&text).unwrap(), elsewhere);
        assert_eq!(elsewhere.host().map(HostName::as_str), Some("b"));
        assert_eq!(elsewhere.to_string(), r#"not_running_here {"host":"b"}"#);
        let here = Refusal::RunsHere;
        assert_eq!(serde_json::to_string(&here).unwrap(), r#"{"code":"runs_here"}"#);
        assert_eq!((here.host(), here.to_string()), (None, "runs_here".to_owned()));
        // What a later keeper adds to a code does not hide it.
        let more = r#"{"code":"busy","details":{"with":"dump","until":5}}"#;
        assert_eq!(serde_json::from_str::<Refusal>(more).unwrap(), Refusal::Busy { with: Work::Dump });
    }
}
