//! The guest's memory into a file, for a debugger.
//!
//! QEMU's `dump-guest-memory`, detached: an ELF core file of all physical memory with a note for each vCPU's registers, as
//! gdb, crash and volatility read it. The guest stands still meanwhile: stop it before. QEMU lets one that ran go on afterwards,
//! but only after it has sent the event DUMP_COMPLETED, which ends the dump: a reset in between is its end (`dump_process`,
//! `dump_cleanup` in dump/dump.c; the run state `save-vm` has no way to `prelaunch`), and so would a checkpoint be. No device
//! state can be saved until the event.

use std::os::fd::BorrowedFd;

use ninefold_model::health::DumpProgress;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::json;

use crate::error::Result;
use crate::machine::Machine;

/// `query-dump`'s answer (qapi/dump.json). Before the first piece is written, both numbers are 0.
#[derive(Deserialize)]
struct Answer {
    completed: i64,
    total: i64,
}

impl Machine {
    /// Begins to write the memory of a guest that does not run to `file`. Await [`crate::EventKind::DumpCompleted`].
    ///
    /// # Errors
    /// As [`Machine::begin_pause`]; `Refused` also while another dump is being written.
    pub fn dump(&mut self, file: BorrowedFd<'_>) -> Result<()> {
        self.command_with_fd::<IgnoredAny>("getfd", json!({"fdname": "dump"}), file)?;
        let arguments = json!({"paging": false, "protocol": "fd:dump", "detach": true});
        self.command::<IgnoredAny>("dump-guest-memory", Some(arguments)).map(drop)
    }

    /// How far the dump is.
    ///
    /// # Errors
    /// As [`Machine::begin_pause`].
    pub fn dump_progress(&mut self) -> Result<DumpProgress> {
        let answer: Answer = self.command("query-dump", None::<()>)?;
        let bytes = |n: i64| u64::try_from(n).unwrap_or(0);
        Ok(DumpProgress { bytes_done: bytes(answer.completed), bytes_total: bytes(answer.total) })
    }
}
