//! The guest's devices as the keeper serves them: volumes, NICs, console and agent.

pub mod agent;
pub(crate) mod blocks;
pub(crate) mod cpu_clock;
pub mod disks;
pub mod guest_io;
