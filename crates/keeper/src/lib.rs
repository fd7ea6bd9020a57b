//! Keeps one VM on one host: machine, replica and net put together.
//!
//! * [`config`]: what a keeper is told · [`keeper`]: how it starts · [`panics`]
//! * `runtime`: the thread that drives the [core](ninefold_core) and does what it says · [`msg`]: what the others tell it
//! * [`vm`]: the thread that owns a running QEMU; [`bell`] wakes it · `stance`: whether its guest runs, sleeps, is paused · [`sink`]: those to whom it is copied ·
//!   [`capture`]: one checkpoint, the pause path · [`overlay`], [`first_copy`]
//! * [`session`]: a primary's connection to its backup · [`connector`]: finding one · [`aside`]: what threads are told beside
//!   their queues
//! * [`standby`]: a backup's side · [`acknowledge`]: when what it holds is acknowledged · [`parking`]: one that was not needed
//! * [`log`]: a non-volatile VM's checkpoints on disk · [`recovery`]: going on from them
//! * [`snapshot`]: taking one, and starting from one · [`freeze`]: the guest's file systems around one
//! * [`arbiter`]: asking the witness
//! * [`disks`]: the VM's volumes · [`resync`]: making a backup's equal to them
//! * [`health`]: the guest's watchdog, images on trial
//! * [`random`]: ids that nothing else has
//! * [`outlets`]: NICs, console and agent behind one gate · [`agent`]: asking the guest's agent, as a client
//! * [`server`]: the control socket · `looks`: what is looked at before the core is asked · [`journal`]: events and measurements · `operations` · `incarnation`: whose · [`metrics`], [`http`]

pub mod acknowledge;
pub mod agent;
mod arbiter;
mod aside;
mod back;
pub mod bell;
mod blocks;
mod booted;
pub mod capture;
mod certificates;
pub mod changed_blocks;
pub mod config;
mod connector;
mod cpu_clock;
pub mod custody;
pub mod disks;
pub mod error;
pub mod first_copy;
pub mod freeze;
mod generation;
pub mod health;
#[cfg(test)]
#[path = "../tests/hello/mod.rs"]
mod hello;
pub mod http;
mod incarnation;
mod journal;
pub mod keeper;
mod launch;
pub mod loaded;
pub mod log;
mod looks;
mod metrics;
mod mixture;
pub mod msg;
mod offer;
mod operations;
pub mod outlets;
mod overlay;
pub mod panics;
pub mod parking;
mod priority;
mod proof;
pub mod random;
pub mod recovery;
pub mod resync;
mod runtime;
mod server;
pub mod session;
pub mod sink;
mod small_file;
pub mod snapshot;
mod stance;
pub mod standby;
pub mod target;
mod unfinished;
pub mod vm;
#[cfg(test)]
mod waits;
pub mod zones;
