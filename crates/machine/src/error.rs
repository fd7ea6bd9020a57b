//! Everything that can go wrong with one QEMU.

use std::io;
use std::path::PathBuf;

/// Shorthand for this crate.
pub type Result<T, E = MachineError> = std::result::Result<T, E>;

/// What went wrong. The texts are short and name the object.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// A system call failed outside of the cases below.
    #[error("{what}")]
    Io {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    /// The VM's description asks for something that cannot be built.
    #[error("VM {vm}: {reason}")]
    Spec { vm: String, reason: String },
    /// QEMU could not be started at all.
    #[error("{program} cannot be started")]
    Spawn {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A file cannot be used.
    #[error("{what} {path}")]
    File {
        /// What could not be done.
        what: &'static str,
        /// The file.
        path: std::path::PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// QEMU ended. `stderr` is the end of what it said.
    #[error("QEMU ended ({status}){}{stderr}", if stderr.is_empty() { "" } else { ": " })]
    Exited { status: String, stderr: String },
    /// QEMU is too old, or its version cannot be told.
    #[error("QEMU {found} is not supported: {need} or newer is needed")]
    Version { found: String, need: &'static str },
    /// QEMU refused a command.
    #[error("QMP {command}: {message}")]
    Refused { command: String, class: String, message: String },
    /// QEMU said something that is not QMP, or not now. The connection cannot be used any more.
    #[error("QMP: {reason}")]
    Protocol { reason: String },
    /// QEMU did not answer in time. The connection cannot be used any more.
    #[error("QMP {command}: no answer within {millis} ms")]
    Timeout { command: String, millis: u64 },
    /// No userfaultfd could be made inside QEMU.
    #[error("no userfaultfd in QEMU: {reason}")]
    Userfaultfd { reason: String },
    /// This kernel lacks what dirty tracking needs.
    #[error("dirty tracking is not possible here: {reason}")]
    Kernel { reason: String },
    /// A RAM block that cannot be followed: the VM must not be protected.
    #[error("RAM block '{block}' cannot be tracked: {reason}")]
    Untrackable { block: String, reason: String },
    /// QEMU itself refuses to save this VM's devices: the VM must not be protected.
    #[error("the VM's devices cannot be saved: {}", reasons.join("; "))]
    Blocked { reasons: Vec<String> },
    /// The two sides do not have the same RAM blocks.
    #[error("RAM blocks differ: {reason}")]
    Layout { reason: String },
    /// `info ramblock` in a form that is not understood.
    #[error("info ramblock: {reason}")]
    BlockList { reason: String },
    /// A run of pages that is not in its block, or a buffer of the wrong length.
    #[error("pages {first}+{count} of block {block}: {reason}")]
    Range { block: u16, first: u64, count: u32, reason: &'static str },
    /// A [`crate::DirtySet`] had no room. What was not reported stays dirty.
    #[error("the dirty set is full at {capacity} runs")]
    DirtySetFull { capacity: usize },
    /// The saved devices were not accepted.
    #[error("device state refused: {reason}")]
    Load { reason: String },
    /// Where QEMU keeps the guest's clock is not known: the guest loses the time in which it stands still.
    #[error("the guest's clock cannot be kept: {reason}")]
    Clock { reason: String },
    /// The guest's memory as it was at a moment cannot be read to its end.
    #[error("the memory of one moment: {reason}")]
    Moment { reason: String },
    /// A step was called out of order.
    #[error("{call} is not possible now: {reason}")]
    Order { call: &'static str, reason: &'static str },
}

impl MachineError {
    /// Wraps an I/O error with what was being done.
    pub(crate) fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }

    /// As [`Self::io`], for rustix.
    pub(crate) fn os(what: &'static str) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |source| Self::Io { what, source: source.into() }
    }
}
