//! Whole cores in a simulated world that misbehaves by seed. See `docs/simulator.md`.
//!
//! * [`plan`]: what goes wrong, and when · [`run`]: runs a plan, makes a failing one smaller · [`trace`]: for people
//! * `world`: time, hosts, the queue of what happens · `network`, `witness`: what lies between them · `faults`
//! * `keeper`, `step`: a keeper's process, and how it carries out what its core says
//! * `client`, `session`, `standby`, `vm`, `durable`, `applier`: its threads · `guest`, `guest_io`, `parking`, `volumes`, `disk`: what they deal with
//! * [`judge`]: what must never be · `observer`: what is seen of that

#![forbid(unsafe_code)]

mod applier;
mod client;
mod disk;
mod durable;
mod faults;
mod guest;
mod guest_io;
pub mod judge;
mod keeper;
mod network;
mod observer;
mod parking;
pub mod plan;
pub mod rules;
pub mod run;
mod session;
mod standby;
mod step;
pub mod trace;
mod vm;
mod volumes;
mod witness;
mod world;
