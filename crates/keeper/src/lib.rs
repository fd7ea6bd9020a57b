//! Keeps one VM on one host: machine, replica and net put together.
//!
//! * [`config`]: what a keeper is told · [`keeper`]: how it starts · [`panics`]
//! * `runtime`: the thread that drives the [core](ninefold_core) and does what it says · [`msg`]: what the others tell it
//! * [`primary::vm`]: the thread that owns a running QEMU; [`primary::waker`] wakes it · `primary::run_state`: whether its guest runs, sleeps, is paused · [`primary::target_state`]: those to whom it is copied ·
//!   [`primary::capture`]: one checkpoint, the pause path · `primary::overlay`, [`primary::first_copy`]
//! * [`primary::session`]: a primary's connection to its backup · `runtime::connector`: finding one · `runtime::side_channel`: what threads are told beside
//!   their queues
//! * [`backup::standby`]: a backup's side · [`backup::acknowledge`]: when what it holds is acknowledged · [`backup::parking`]: one that was not needed
//! * [`durable::log`]: a non-volatile VM's checkpoints on disk · [`durable::recovery`]: going on from them
//! * [`primary::snapshot`]: taking one, and starting from one · [`primary::freeze`]: the guest's file systems around one
//! * `runtime::proposer`: asking the witness
//! * [`devices::disks`]: the VM's volumes · [`primary::resync`]: making a backup's equal to them
//! * [`health`]: the guest's watchdog, images on trial
//! * [`random`]: ids that nothing else has · [`run_dir`]: where a VM's sockets are, by its id and by its name · [`naming`]: what it is called
//! * [`devices::guest_io`]: NICs, console and agent behind one gate · [`devices::agent`]: asking the guest's agent, as a client
//! * `control::server`: the control socket · `control::preflight`: what is looked at before the core is asked · `control::journal`: events and measurements · `control::operations` · `durable::incarnation`: whose · `control::metrics`, [`control::http`]

pub mod backup;
pub mod bindings;
mod certificates;
pub mod config;
pub mod control;
pub mod devices;
pub mod durable;
pub mod error;
pub mod health;
#[cfg(test)]
#[path = "../tests/hello/mod.rs"]
mod hello;
pub mod keeper;
pub mod msg;
pub mod naming;
pub mod panics;
pub mod primary;
pub mod random;
pub mod run_dir;
pub mod runtime;
pub mod zones;
