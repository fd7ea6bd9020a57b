//! Whole cores in a simulated world that misbehaves by seed. See `docs/simulator.md`.
//!
//! * [`plan`]: what goes wrong, and when · [`run`]: runs a plan, makes a failing one smaller · [`trace`]: for people
//! * `world`: time, hosts, the queue of what happens · `network`, `witness`: what lies between them · `faults`
//! * `keeper`, `step`: a keeper's process, and how it carries out what its core says
//! * `client`, `session`, `standby`, `vm`, `durable`: its threads · `guest`, `guest_io`, `volumes`: what they deal with
//! * [`judge`]: what must never be · `observer`: what is seen of that

#![forbid(unsafe_code)]

mod client;
mod durable;
mod faults;
mod guest;
mod guest_io;
pub mod judge;
mod keeper;
mod network;
mod observer;
pub mod plan;
pub mod run;
mod session;
mod standby;
mod step;
pub mod trace;
mod vm;
mod volumes;
mod witness;
mod world;
