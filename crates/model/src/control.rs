//! What one may ask of a keeper: one JSON object a line over its Unix socket `keeper.sock`, one line back.

use serde::{Deserialize, Serialize};

use crate::event::{Event, Position};
use crate::health::HealthySign;
use crate::spec::{Boot, EpochPolicy};
use crate::status::VmStatus;
use crate::{Epoch, HostName, SnapshotName, Term};

/// A request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    Status,
    /// Boot the VM here. Refused when the witness says that it may live elsewhere, unless `force`.
    Start {
        #[serde(default)]
        force: bool,
    },
    /// End the VM (as by pulling its plug) and give up the role.
    Stop,
    /// Press the guest's power button, and wait for it to switch itself off, for so long at most: then it is ended, or left to run,
    /// and an event says so. `asked`: its agent has been asked for that, and the button is not pressed.
    Shutdown {
        within_ms: u64,
        end: bool,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        asked: bool,
    },
    /// Stop the guest's processors until `resume`. It is protected meanwhile, and stays paused wherever it goes.
    Pause,
    /// Let a paused guest go on.
    Resume,
    /// Wake a guest that has suspended itself.
    Wake,
    /// Press the guest's reset button.
    Reset,
    /// Write the guest's memory to a file on the host where it runs. The guest stands still meanwhile. An event tells
    /// the end.
    Dump,
    /// Take a snapshot of the running VM into the pool of this host; with a parent only what differs from that is stored; with the
    /// guest's file systems frozen, or not. An event tells the end.
    Snapshot {
        name: SnapshotName,
        #[serde(default)]
        parent: Option<SnapshotName>,
        #[serde(default)]
        freeze: FreezeChoice,
    },
    /// Start the VM here from a snapshot: memory, devices and volumes. Refused as a boot is. `clone`: it is a snapshot of
    /// another VM. An event tells the end.
    Restore {
        name: SnapshotName,
        #[serde(default)]
        force: bool,
        #[serde(default)]
        clone: bool,
    },
    /// What the VM's log on this host would be gone back to, and what is lost then. With `force` the VM goes on from it, although it is damaged
    /// or another host may have newer; an event tells the end, and the log is kept aside.
    Recover {
        #[serde(default)]
        force: bool,
    },
    /// Boot the guest from an image that becomes the committed one if it is found healthy within `within_ms`.
    Trial {
        image: Boot,
        within_ms: u64,
        sign: HealthySign,
    },
    /// The image on trial is healthy.
    CommitImage,
    /// End the trial: boot the committed image.
    FallBack,
    /// Ask for fault tolerance.
    Protect,
    /// Go on without a backup.
    Unprotect,
    /// Hand the VM to its backup.
    Switchover,
    SetEpochs {
        policy: EpochPolicy,
    },
    /// Events after a position; answers at once when there are some, else when one comes or after `wait_ms`. After a position of another
    /// incarnation come all that this keeper has.
    Events {
        after: Position,
        #[serde(default)]
        wait_ms: u64,
    },
    /// The record of the latest checkpoints, for measurements.
    Checkpoints {
        after: u64,
    },
}

/// Whether the guest's agent is asked to freeze its file systems for a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FreezeChoice {
    /// Yes; if it does not, there is a snapshot all the same, which says so.
    #[default]
    Auto,
    /// No.
    Never,
    /// Yes; if it does not, there is no snapshot.
    Require,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "response", rename_all = "snake_case")]
pub enum Response {
    Done,
    Status {
        status: Box<VmStatus>,
    },
    Events {
        events: Vec<Event>,
    },
    Log {
        report: Box<LogReport>,
    },
    Checkpoints {
        checkpoints: Vec<CheckpointRecord>,
    },
    /// The request could not be carried out: what is wrong and what to do.
    Error {
        message: String,
        help: Option<String>,
        try_host: Option<HostName>,
    },
}

/// What a log of checkpoints on disk would be gone back to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogReport {
    pub host: HostName,
    /// The host that ran the VM then.
    pub primary: HostName,
    /// The newest term that the last whole checkpoint is known to be of, and its epoch.
    pub term: Term,
    pub epoch: Epoch,
    /// When that was taken, by the clock of the host that wrote the log, milliseconds since 1970; 0: not known.
    pub time_ms: u64,
    /// What is wrong with what comes after it.
    pub damage: Option<String>,
    /// Checkpoints after it that were durable in this log, as far as it can be read.
    pub lost_checkpoints: u64,
    /// From it to the last moment of which the log knows, milliseconds. What the VM did after that is not counted.
    pub lost_ms: u64,
    /// Why another state is, or may be, newer; `None`: all that anybody was told up to the log's end is in it.
    pub newer: Option<String>,
    /// Why the VM cannot go on from it, not even with `force`.
    pub refused: Option<String>,
}

/// One checkpoint as measured, microseconds and counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CheckpointRecord {
    pub seq: u64,
    pub epoch: u64,
    /// From the end of the pause before to the start of this one.
    pub run_us: u64,
    pub stop_us: u64,
    pub save_us: u64,
    pub scan_us: u64,
    pub copy_us: u64,
    pub cont_us: u64,
    /// From before `stop` to after `cont`.
    pub pause_us: u64,
    pub dirty_pages: u64,
    /// Of these, copied before the pause; and how many pages were copied (again or only) in the pause then.
    #[serde(default)]
    pub early_pages: u64,
    #[serde(default)]
    pub again_pages: u64,
    /// Held in the pause as they were, and copied when the guest ran again: there was much to copy.
    #[serde(default)]
    pub held_pages: u64,
    pub state_bytes: u64,
    pub wire_bytes: u64,
    /// From the end of the pause to the backup's acknowledgement.
    pub commit_us: u64,
}
