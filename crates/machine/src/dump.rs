//! The guest's memory into a file, for a debugger.
//!
//! QEMU's `dump-guest-memory`, detached: an ELF core file of all physical memory with a note for each vCPU's registers, as
//! gdb, crash and volatility read it. The guest stands still meanwhile; QEMU lets one that ran go on afterwards. The event
//! DUMP_COMPLETED ends it. No device state can be saved until then.

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
    /// Begins to write the guest's memory to `file`. Await [`crate::EventKind::DumpCompleted`].
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
