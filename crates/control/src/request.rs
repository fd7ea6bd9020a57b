//! What one may ask of a keeper.

use ninefold_model::event::Position;
use ninefold_model::health::HealthySign;
use ninefold_model::spec::{Boot, EpochPolicy};
use ninefold_model::{SnapshotName, VmName};
use serde::{Deserialize, Serialize};

use crate::operation_id::OperationId;

/// A request. Its fields lie beside those of the [envelope](crate::wire) and have other names; each is written out, also where it has a default
/// ([`crate::wire`] knows by that which fields there are).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Request {
    Status,
    /// Boot the VM here: an operation, until the guest runs. Refused when the witness says that it may live elsewhere, unless `force`.
    Start {
        #[serde(default)]
        force: bool,
    },
    /// End the VM (as by pulling its plug) and give up the role: an operation, until it has ended.
    Stop,
    /// Press the guest's power button, and wait for it to switch itself off, for so long at most: then it is ended, or left to run:
    /// an operation, until it has ended. `asked`: its agent has been asked for that, and the button is not pressed.
    Shutdown {
        within_ms: u64,
        end: bool,
        #[serde(default)]
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
    /// Write the guest's memory to a file on the host where it runs. The guest stands still meanwhile. An
    /// operation.
    Dump,
    /// Take a snapshot of the running VM into the pool of this host; with a parent only what differs from that is stored; with the
    /// guest's file systems frozen, or not. An operation.
    Snapshot {
        name: SnapshotName,
        #[serde(default)]
        parent: Option<SnapshotName>,
        #[serde(default)]
        freeze: FreezeChoice,
    },
    /// Start the VM here from a snapshot: memory, devices and volumes. Refused as a boot is. `clone`: it is a snapshot of
    /// another VM. An operation, until the guest runs.
    Restore {
        name: SnapshotName,
        #[serde(default)]
        force: bool,
        #[serde(default)]
        clone: bool,
    },
    /// What the VM's log on this host would be gone back to, and what is lost then. With `force` the VM goes on from it, although it is damaged
    /// or another host may have newer: an operation; and the log is kept aside.
    Recover {
        #[serde(default)]
        force: bool,
    },
    /// Boot the guest from an image that becomes the committed one if it is found healthy within `within_ms`: an
    /// operation, until it is committed.
    Trial {
        image: Boot,
        within_ms: u64,
        sign: HealthySign,
    },
    /// The image on trial is healthy.
    CommitImage,
    /// End the trial: boot the committed image.
    FallBack,
    /// The VM is to be no more: the witness never gives it to anybody again, under any name. Only while it does not run here; refused when it may
    /// live elsewhere, unless `force`: then it ends there, too. What is on the hosts' disks stays. An operation.
    Retire {
        #[serde(default)]
        force: bool,
    },
    /// The VM is called so from now on, on all of its hosts. An operation, until this host calls it so.
    Rename {
        name: VmName,
    },
    /// Ask for fault tolerance: an operation, until a backup is bound.
    Protect,
    /// Go on without a backup.
    Unprotect,
    /// Hand the VM to its backup: an operation, until another host has it.
    Switchover,
    SetEpochs {
        policy: EpochPolicy,
    },
    /// Events after a position, or from now on; answers at once when there are some, else when one comes or after `wait_ms`. After a
    /// position of an earlier life of the keeper a gap is told, and come all that this life has said.
    Events {
        #[serde(default)]
        after: Option<Position>,
        #[serde(default)]
        wait_ms: u64,
    },
    /// An operation as it is; waits up to `wait_ms` until it has ended.
    Operation {
        operation: OperationId,
        #[serde(default)]
        wait_ms: u64,
    },
    /// All operations of this life of the keeper, those that run and the latest that have ended.
    Operations,
    /// End an operation before its time, where that is possible: a start (the VM ends), a protect (what was wanted before is wanted), a
    /// snapshot, a trial (the committed image is booted), a restore or a recovery whose loading has not begun, a shutdown (the guest is not
    /// ended for not obeying; that it has been asked cannot be undone).
    Cancel {
        operation: OperationId,
    },
    /// The record of the latest checkpoints, for measurements.
    Checkpoints {
        after: u64,
    },
}

/// Whether the guest's agent is asked to freeze its file systems for a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum FreezeChoice {
    /// Yes; if it does not, there is a snapshot all the same, which says so.
    #[default]
    Auto,
    /// No.
    Never,
    /// Yes; if it does not, there is no snapshot.
    Require,
}
