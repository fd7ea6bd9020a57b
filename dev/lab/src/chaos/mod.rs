//! Random faults, several at once, for a given time and seed, and the rule that a VM whose state is whole on a living host is never
//! lost, and that nothing acknowledged is.
//!
//! ```text
//!   seed, seconds ──► plan ──► script ──► run ──► scene: boot, burst, mend, rest, burst, …, read back
//!                     pure                          │ what was done, said, held
//!                                                   ▼
//!                                                 judge: was a loss legitimate?   pure
//! ```
//!
//! * [`fault`]: what can be done · [`plan`]: when it is done · [`judge`]: who holds the state at each moment
//! * `inflict`: a burst, done to a lab · `pressure`: on processors and memory · `register`: what the witness holds
//! * `restart`: from a disk, when nobody holds it any more
//! * `scene`: one VM · [mod@run]: a whole run · [`report`]: what came of it

mod dice;
pub mod fault;
mod inflict;
pub mod judge;
#[cfg(test)]
mod judge_tests;
pub mod plan;
mod pressure;
mod register;
pub mod report;
mod restart;
pub mod run;
mod scene;

pub use fault::{Fault, Kind};
pub use inflict::Done;
pub use judge::Start;
pub use plan::{Burst, Script, Subject};
pub use report::{ChaosReport, Violation, ViolationKind};
pub use run::{ChaosOptions, ChaosStep, run};
