//! Guests that have suspended themselves to memory (ACPI S3).
//!
//! ```text
//!             the guest writes SLP_EN                    its alarm, system_wakeup, a reset
//!   running ─────────────────────────► suspended ──────────────────────────────────────────► running
//!                                          │ checkpoint
//!                                          ▼
//!                  another QEMU: load, start, stay_suspended
//! ```
//!
//! The saved devices do not say in every QEMU that the guest was suspended. From 9.0 on the state has it, and `stop` and `cont` keep it.
//! Before, `stop` leaves a suspended guest as it is, with its clocks running, and a QEMU that has loaded its state lets it run
//! on, behind the instruction by which it has suspended itself: there it waits for ever. So the checkpoint says it beside the state
//! ([`Machine::was_suspended`]), and [`Machine::stay_suspended`] repeats what the guest did: it writes to the register that the guest
//! has written to.
//!
//! There a suspended guest may also wake in a pause in which it is to stand still. It runs on, whole; but what was copied of it in that
//! pause is of no moment ([`Machine::woke_in_pause`]).

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;

use crate::alarm::{self, Alarm};
use crate::error::{MachineError, Result};
use crate::machine::{Machine, RunState};
use crate::version::QemuVersion;

/// The first QEMU that stops a suspended guest, and whose state has that it is suspended.
const STOPS: QemuVersion = QemuVersion { major: 9, minor: 0, micro: 0 };
/// PM1_EN and PM1a_CNT of the machine's power management (PIIX4), where the firmware puts them; the ACPI tables name them to guests.
const PM1_EN: u16 = 0x602;
const PM1A_CNT: u16 = 0x604;
/// The guest wants to be woken by its real-time clock.
const RTC_EN: u16 = 1 << 10;
/// SLP_TYP of S3 as the tables have it, and the bits of that field; SLP_EN.
const S3: u16 = 1 << 10;
const SLP_TYP: u16 = 7 << 10;
const SLP_EN: u16 = 1 << 13;
/// How long QEMU may take to suspend the guest.
const LIMIT: Duration = Duration::from_secs(10);

/// What is known of one guest's suspension.
#[derive(Debug)]
pub(crate) struct Suspension {
    /// When the latest state was saved, by what QEMU had said: which suspension it was.
    was: Option<u64>,
    /// QEMU did not stop it for that.
    unstopped: bool,
    /// The suspension in which `stop` has left it as it is, since when it may wake at any time.
    left: Option<u64>,
    /// It has done so before the pause was over.
    woke: bool,
    /// By the states of this suspension.
    alarm: Alarm,
}

impl Default for Suspension {
    fn default() -> Self {
        Self { was: None, unstopped: false, left: None, woke: false, alarm: Alarm::Off }
    }
}

impl Suspension {
    /// A QEMU of this version has answered `stop`.
    pub(crate) fn stopped(&mut self, suspended: Option<u64>, version: QemuVersion) {
        self.left = suspended.filter(|_| version < STOPS);
        self.woke = false;
    }

    /// Whether the guest may wake although it was stopped.
    pub(crate) fn may_wake(&self) -> bool {
        self.left.is_some()
    }

    /// A state has been saved by a QEMU of this version.
    pub(crate) fn saved(&mut self, suspended: Option<u64>, version: QemuVersion) {
        if suspended != self.was {
            // What an earlier state says of the alarm the guest may have seen since.
            self.alarm = Alarm::Off;
        }
        self.was = suspended;
        self.unstopped = suspended.is_some() && version < STOPS;
    }

    /// The saved state was taken while the guest's clocks ran.
    pub(crate) fn clocks_ran(&self) -> bool {
        self.unstopped
    }

    /// Takes note of the alarm in a state. Does not allocate.
    pub(crate) fn note(&mut self, state: &[u8]) {
        self.alarm = self.alarm.or_later(alarm::saved(state), now_ns());
    }

    /// The pause has ended: QEMU has said this since all was done that the guest was to stand still for.
    pub(crate) fn resumed(&mut self, suspended: Option<u64>) {
        self.woke = self.left.take().is_some_and(|left| suspended != Some(left));
    }

    /// The guest, whose state was loaded, is suspended as it was.
    fn stays(&mut self, suspended: Option<u64>) {
        self.was = suspended;
    }

    /// Whether the alarm of this suspension has fallen due.
    fn overslept(&self, suspended: Option<u64>, now_ns: i64) -> bool {
        suspended.is_some() && self.was == suspended && self.alarm.is_due(now_ns)
    }
}

impl Machine {
    /// Whether the guest is suspended, by what QEMU has said so far.
    pub fn is_suspended(&self) -> bool {
        self.qmp.suspended().is_some()
    }

    /// Whether the guest was suspended when its devices were last saved: that is a part of the checkpoint.
    pub fn was_suspended(&self) -> bool {
        self.suspension.was.is_some()
    }

    /// Whether the guest, suspended in a QEMU older than 9.0, has woken between the latest stop and the end of that pause: what was copied
    /// meanwhile is torn, and writes to memory may have been missed. Says so once.
    pub fn woke_in_pause(&mut self) -> bool {
        std::mem::take(&mut self.suspension.woke)
    }

    /// Suspends a guest whose checkpoint was taken while it was suspended. Follows [`Machine::load`] and the start. Before QEMU 9.0,
    /// and with a state from there, the guest runs in between, in the loop in which it waits to be suspended.
    ///
    /// # Errors
    /// As [`Machine::begin_pause`]; `Load` when QEMU does not suspend it.
    pub fn stay_suspended(&mut self) -> Result<()> {
        if self.query_status()? == RunState::Suspended {
            self.qmp.set_suspended();
            self.suspension.stays(self.qmp.suspended());
            return Ok(());
        }
        let value = (self.port(PM1A_CNT)? & !SLP_TYP) | S3 | SLP_EN;
        self.monitor(&format!("o/h {PM1A_CNT:#x} {value:#x}"))?;
        let deadline = Instant::now() + LIMIT;
        while self.poll_events().map(|_| !self.is_suspended())? {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(MachineError::Load { reason: "the suspended guest cannot be suspended again".into() });
            }
            let limit = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            match poll(&mut [PollFd::from_borrowed_fd(self.qmp_fd(), PollFlags::IN)], Some(&limit)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(MachineError::os("waiting for QEMU")(error)),
            }
        }
        self.suspension.stays(self.qmp.suspended());
        Ok(())
    }

    /// Wakes a suspended guest, as by its power button. One that is not suspended (any more) is left alone.
    ///
    /// # Errors
    /// As [`Machine::begin_pause`].
    pub fn wake(&mut self) -> Result<()> {
        match self.no_answer("system_wakeup") {
            Ok(()) | Err(MachineError::Refused { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether the guest is suspended, and the alarm by which it wants to be woken has fallen due in a pause, or while no host had
    /// it.
    ///
    /// # Errors
    /// As [`Machine::begin_pause`].
    pub fn has_overslept(&mut self) -> Result<bool> {
        if !self.suspension.overslept(self.qmp.suspended(), now_ns()) {
            return Ok(false);
        }
        let wants = self.port(PM1_EN)? & RTC_EN != 0;
        if !wants {
            self.suspension.alarm = Alarm::Off;
        }
        Ok(wants)
    }

    /// Reads a 16-bit port, as the guest would: one whose reading changes nothing.
    fn port(&mut self, port: u16) -> Result<u16> {
        let said = self.monitor(&format!("i/h {port:#x}"))?;
        let value = said.rsplit("0x").next().and_then(|hex| u16::from_str_radix(hex.trim(), 16).ok());
        value.ok_or_else(|| MachineError::Protocol { reason: format!("port {port:#x} is not read: {said}") })
    }

    fn monitor(&mut self, line: &str) -> Result<String> {
        self.command("human-monitor-command", Some(json!({"command-line": line})))
    }
}

/// The host's wall clock, by which QEMU's real-time clock goes.
fn now_ns() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: QemuVersion = QemuVersion { major: 7, minor: 2, micro: 9 };

    #[test]
    fn an_alarm_is_that_of_its_suspension() {
        // From a state that was loaded.
        let mut suspension = Suspension { alarm: Alarm::At(5), ..Suspension::default() };
        assert!(!suspension.overslept(None, 9), "it runs");
        suspension.stays(Some(1));
        assert!(suspension.overslept(Some(1), 9) && !suspension.overslept(Some(1), 4));
        suspension.saved(Some(1), STOPS);
        assert!(suspension.overslept(Some(1), 9), "of the same suspension");
        // It has woken and is suspended again, and no checkpoint says anything of its alarm.
        assert!(!suspension.overslept(Some(2), 9));
        suspension.saved(Some(2), STOPS);
        assert!(!suspension.overslept(Some(2), 9));
    }

    #[test]
    fn a_guest_that_wakes_in_a_pause_spoils_it_unless_it_was_stopped() {
        for (version, spoils) in [(OLD, true), (STOPS, false)] {
            let woke = |stopped, saved, resumed| {
                let mut suspension = Suspension::default();
                suspension.stopped(stopped, version);
                suspension.saved(saved, version);
                suspension.resumed(resumed);
                suspension.woke
            };
            assert!(!woke(Some(1), Some(1), Some(1)), "it has slept on");
            assert_eq!(woke(Some(1), Some(1), None), spoils);
            assert_eq!(woke(Some(1), Some(1), Some(2)), spoils, "and has suspended itself again");
            assert_eq!(woke(Some(1), None, None), spoils, "before it was saved");
            assert_eq!(woke(Some(1), Some(2), Some(2)), spoils);
            assert!(!woke(None, None, None), "it ran");
            let mut suspension = Suspension::default();
            suspension.saved(Some(1), version);
            assert_eq!(suspension.clocks_ran(), spoils);
            // What is said of one pause is not said of the next.
            suspension.stopped(Some(1), version);
            suspension.resumed(None);
            suspension.stopped(None, version);
            assert!(!suspension.woke);
            suspension.resumed(None);
            assert!(!suspension.woke);
        }
    }
}
