//! One QEMU process, as the keeper (its parent) needs it.
//!
//! * [`machine`]: ties the rest together: launch, pause, save, load, resume
//! * `clock`: the guest's time goes on while it stands still
//! * `suspension`: a suspended guest stays so, and wakes; `alarm`: when by its clock
//! * [`command_line`]: QEMU's arguments as typed data
//! * [`process`]: the child process: dies with the keeper, its death is an event
//! * [`qmp`]: the control socket (QEMU Machine Protocol)
//! * [`ram`]: guest memory, a memfd that keeper and QEMU share
//! * [`blocks`]: every RAM block of the QEMU, the shared one and its private ones
//! * [`memory`]: reads, writes and compares pages of all blocks
//! * [`dirty`]: which pages the guest has written: by PAGEMAP_SCAN, or by soft-dirty bits
//! * `dump`: guest memory into a file
//! * [`device_state`]: CPU and device state, out and in
//! * [`accel`]: whether KVM really runs an ordinary kernel here
//! * [`doctor`]: what this host can do
//! * [`version`]: which QEMUs are supported
//! * `rehearsal`: whether a device state can be loaded here
//! * [`error`]: everything that can go wrong

pub mod accel;
mod alarm;
pub mod blocks;
mod clock;
pub mod command_line;
pub mod device_state;
pub mod dirty;
pub mod doctor;
mod dump;
pub mod error;
pub mod machine;
pub mod memory;
mod preload;
pub mod process;
pub mod qmp;
pub mod ram;
mod rehearsal;
mod suspension;
mod sys;
pub mod version;

pub use accel::{AccelReport, probe};
pub use blocks::{Block, BlockLayout, PAGE_SIZE};
pub use dirty::{DirtySet, Mechanism, Moment, PageMap, PageRun, Pages, Tracker};
pub use doctor::{Check, CheckState};
pub use error::{MachineError, Result};
pub use machine::{Machine, MachineConfig, Ports, RunState, StepTimes};
pub use memory::Memory;
pub use process::Exit;
pub use qmp::{Event, EventKind, Patience};
pub use ram::{PageSize, Ram};
pub use rehearsal::Rehearsal;
pub use version::QemuVersion;
