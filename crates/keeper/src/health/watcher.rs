//! The VM's thread's part: it hears of failures, resets the guest, has its memory written.
//!
//! ```text
//!             WATCHDOG, GUEST_PANICKED            Reset
//!   watching ─────────────────────────► waiting ─────────► watching
//!      │                                   │ Dump             ▲
//!      │ Dump (asked for)                  ▼                  │ Reset
//!      └─────────────────────────────► dumping ──────► waiting, or watching
//! ```
//!
//! While it waits for the core's decision or for a dump, no checkpoint is taken: the guest stands still.

use std::os::fd::AsFd;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use ninefold_machine::{Machine, MachineError, RunState};
use ninefold_model::GuestState;
use ninefold_model::event::EventKind;
use ninefold_model::health::Failure;

use super::dumps::{DumpError, Dumps, Staged};
use super::shared::{Passed, SharedHealth};
use crate::error::report;
use crate::msg::Msg;

/// How often a dump's progress is told.
const TELL: Duration = Duration::from_millis(200);
/// A dump that makes no progress for so long: QEMU, or its disk, hangs.
const STUCK: Duration = Duration::from_secs(60);

/// What the core wants done.
#[derive(Debug)]
pub enum Order {
    /// Press the reset button, and let the guest run.
    Reset,
    /// Write the guest's memory to a file; keep so many of those.
    Dump { keep: u32 },
}

/// See the [module](self).
#[derive(Debug)]
pub struct Watcher {
    generation: u64,
    dumps: Dumps,
    told: SharedHealth,
    passed: Passed,
    core: Sender<Msg>,
    /// A failure that the core has not been told of yet.
    found: Option<Failure>,
    /// The core is to decide.
    waiting: bool,
    dump: Option<Dumping>,
    /// Wanted while a dump was being written.
    reset: bool,
}

#[derive(Debug)]
struct Dumping {
    staged: Staged,
    keep: u32,
    began: Instant,
    told: Instant,
    /// How far it was, and since when.
    at: (u64, Instant),
    /// The guest ran before.
    ran: bool,
}

impl Watcher {
    pub fn new(generation: u64, dumps: Dumps, told: SharedHealth, core: Sender<Msg>) -> Self {
        let passed = Passed::default();
        Self { generation, dumps, told, passed, core, found: None, waiting: false, dump: None, reset: false }
    }

    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether the guest stands still until the core has decided, or its memory is written.
    pub fn busy(&self) -> bool {
        self.waiting || self.found.is_some() || self.dump.is_some()
    }

    /// The guest has failed. [`Watcher::report`] follows.
    pub fn failed(&mut self, failure: Failure) {
        self.found.get_or_insert(failure);
    }

    /// What a checkpoint that was just taken says of the guest's health: a failure that was found since may be in it.
    pub fn fill(&mut self, joining: bool, standing: GuestState, into: &mut Vec<u8>) {
        self.told.pass(&mut self.passed, joining, standing, self.found, into);
    }

    /// Tells the core of a failure that was found.
    pub fn report(&mut self) {
        if let Some(failure) = self.found.take() {
            self.waiting = true;
            let _ = self.core.send(Msg::GuestFailed { generation: self.generation, failure });
        }
    }

    /// Does what the core wants. `still`: the guest must not run on.
    ///
    /// # Errors
    /// QEMU has ended or hangs.
    pub fn obey(&mut self, order: Order, machine: &mut Machine, still: bool) -> Result<(), MachineError> {
        match order {
            Order::Reset if self.dump.is_some() => self.reset = true,
            Order::Reset => {
                self.waiting = false;
                machine.reset()?;
                if !still {
                    machine.cont()?;
                }
            }
            // Whoever asked for the one that is under way has this one, too.
            Order::Dump { .. } if self.dump.is_some() => {}
            Order::Dump { keep } => {
                // Stopped by us: QEMU would let it run again by itself some time after it has said that the dump is done.
                let ran = machine.query_status()? == RunState::Running;
                if ran {
                    machine.stop()?;
                }
                let begun = self.dumps.begin(machine.memory().ram().bytes(), keep);
                match begun.map(|staged| (machine.dump(staged.file.as_fd()), staged)) {
                    Ok((Ok(()), staged)) => {
                        let now = Instant::now();
                        self.dump = Some(Dumping { staged, keep, began: now, told: now, at: (0, now), ran });
                    }
                    Ok((Err(MachineError::Refused { message, .. }), _)) => self.no_dump(message),
                    Ok((Err(error), _)) => return Err(error),
                    Err(error) => self.no_dump(report(&error)),
                }
                if ran && self.dump.is_none() {
                    machine.cont_in_time()?;
                }
            }
        }
        Ok(())
    }

    fn no_dump(&self, reason: String) {
        self.tell(EventKind::DumpFailed { reason });
    }

    fn tell(&self, outcome: EventKind) {
        let _ = self.core.send(Msg::Dumped { generation: self.generation, outcome });
    }

    /// QEMU says that a dump has ended.
    ///
    /// # Errors
    /// QEMU has ended or hangs.
    pub fn dumped(&mut self, ok: bool, machine: &mut Machine, still: bool) -> Result<(), MachineError> {
        let Some(Dumping { staged, keep, began, ran, .. }) = self.dump.take() else { return Ok(()) };
        let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let finished = if ok { Some(staged.finish(keep)) } else { None };
        match finished {
            Some(Ok((path, bytes))) => self.tell(EventKind::Dumped { path, bytes, took_ms }),
            Some(Err(error @ (DumpError::Io { .. } | DumpError::Full { .. }))) => self.no_dump(report(&error)),
            None => self.no_dump("QEMU cannot write the file: is its disk full?".into()),
        }
        if std::mem::take(&mut self.reset) {
            self.obey(Order::Reset, machine, still)?;
        } else if ran && !still {
            machine.cont_in_time()?;
        }
        Ok(())
    }

    /// Tells how far a dump is.
    ///
    /// # Errors
    /// QEMU has ended.
    pub fn look(&mut self, machine: &mut Machine) -> Result<(), String> {
        let Some(dump) = self.dump.as_mut().filter(|d| d.told.elapsed() >= TELL) else { return Ok(()) };
        dump.told = Instant::now();
        let progress = machine.dump_progress().map_err(|e| report(&e))?;
        if progress.bytes_done != dump.at.0 {
            dump.at = (progress.bytes_done, Instant::now());
        }
        let waited = dump.at.1.elapsed();
        if waited > STUCK {
            // The core gives this QEMU up if another host has the VM.
            let step = "dump-guest-memory".into();
            let _ = self.core.send(Msg::Stuck { generation: self.generation, step, waited });
        }
        let _ = self.core.send(Msg::DumpProgress { generation: self.generation, progress });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::mpsc::channel;

    use super::super::shared::heard;
    use super::*;

    #[test]
    fn a_failure_is_in_the_checkpoint_that_was_taken_before_anybody_knew() {
        let (core, inbox) = channel();
        let mut watcher = Watcher::new(7, Dumps::new(Path::new("/nowhere"), "vm"), SharedHealth::default(), core);
        let mut health = Vec::new();
        watcher.fill(true, GuestState::default(), &mut health);
        assert_eq!(heard(&health).unwrap().pending, None);
        assert!(!watcher.busy());
        // QEMU told of it while the checkpoint was being taken.
        watcher.failed(Failure::Watchdog);
        watcher.fill(false, GuestState::default(), &mut health);
        assert_eq!(heard(&health).unwrap().pending, Some(Failure::Watchdog));
        assert!(inbox.try_recv().is_err(), "the core must not act before the checkpoint says so");
        watcher.report();
        let told = inbox.try_recv();
        assert!(matches!(told, Ok(Msg::GuestFailed { generation: 7, failure: Failure::Watchdog })));
        // No further checkpoint until the core has decided; none says it twice to the core.
        assert!(watcher.busy());
        watcher.report();
        assert!(inbox.try_recv().is_err());
        // The one after the action takes it back.
        watcher.fill(false, GuestState::default(), &mut health);
        assert_eq!(heard(&health).unwrap().pending, None);
    }
}
