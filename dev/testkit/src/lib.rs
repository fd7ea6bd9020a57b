//! What the tests of several crates share. It panics where a test would.
//!
//! * [`guest`]: a guest of one boot sector that counts · [`sleeper`]: one that suspends itself · [`watched`]: one with a watchdog
//! * [`dying`]: a test's own process that dies at a fault point · [`counting`]: an allocator that counts
//! * [`programs`]: the project's programs, built from the sources as they are · [`command`]: one of them, run as its users run it

pub mod command;
pub mod counting;
pub mod dying;
pub mod guest;
pub mod programs;
pub mod sleeper;
pub mod watched;
