//! Replication of a running VM.
//!
//! * [`protocol`]: who may run the VM and who may speak for it: a pure state machine
//! * [`stream`]: the checkpoint stream: records, page encoding, the assembler
//! * [`pacing`]: when the next checkpoint is due
//! * [`continuation`]: what a backup that did not take over has to be sent
//! * [`target`]: to whom a running VM is copied

pub mod continuation;
pub mod pacing;
pub mod protocol;
pub mod stream;
pub mod target;
