//! What one may ask of a keeper.

use ninefold_model::SnapshotName;
use ninefold_model::event::Position;
use ninefold_model::health::HealthySign;
use ninefold_model::spec::{Boot, EpochPolicy};
use serde::{Deserialize, Serialize};

/// A request. Its fields lie beside those of the [envelope](crate::wire) and have other names; each is written out, also where it has a default
/// ([`crate::wire`] knows by that which fields there are).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
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
