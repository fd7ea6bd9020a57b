//! The nouns of Ninefold. Every other crate may use this one; it does no I/O.
//!
//! * [`id`]: who a VM is · [`name`]: what hosts, VMs and disks are called
//! * [`count`]: terms and epochs, incarnations of a keeper
//! * [`record`]: what the witness keeps for each VM
//! * [`spec`]: what a VM is made of
//! * [`uuid`]: identities of machines and of lives
//! * [`guest_state`]: how it stands: running, suspended, paused, off
//! * [`health`]: its watchdog, images on trial
//! * [`status`]: what a keeper says about its VM · [`series`]: measurements in few numbers
//! * [`difference`]: what of a VM that runs is otherwise in a host's file
//! * [`event`]: what happened to a VM · [`order`]: one order for what several hosts say
//! * [`checkpoint`]: what is measured of one

pub mod boot;
pub mod checkpoint;
pub mod count;
pub mod difference;
pub mod event;
pub mod guest_state;
pub mod health;
pub mod id;
pub mod name;
pub mod order;
pub mod record;
pub mod series;
pub mod spec;
pub mod status;
pub mod uuid;

pub use count::{Epoch, Incarnation, Term};
pub use guest_state::{Activity, GuestState};
pub use id::{InvalidVmId, VmId};
pub use name::{HostName, InvalidName, Label, SnapshotName, VmName, VolumeName};
pub use record::{Backup, Record, Tombstone};
pub use uuid::Uuid;
