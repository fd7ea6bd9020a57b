//! The guest's time goes on while it stands still.
//!
//! All that a guest takes its time from, QEMU computes from two numbers: an offset to CLOCK_MONOTONIC (PM timer, HPET, APIC and
//! PIT timers) and an offset to the host's TSC (the guest's TSC under TCG). `stop` turns both into the time that the guest has
//! seen, and `cont` turns them back into offsets that are smaller by the time in between: the guest has lost it.
//!
//! ```text
//!                  stop                               cont
//!   running ─────────┼──── standing still ──────────────┼───────────── running
//!   offset C         │  V = C + now                     │  C' = V - now
//!                    │         └─ resume() writes V = C + now here, so that C' = C
//! ```
//!
//! No command of QEMU sets them. They are found by their values, which the device state or the time of the start tells
//! ([`place`]), are verified by that, and are written from outside while the guest stands still and nobody reads them. What
//! they are to be, [`timeline`] computes. Why so: `docs/decisions/0023-a-guests-time-goes-on.md`.

mod kvm;
mod place;
mod timeline;

use std::fs::File;

use kvm::KvmClock;
use place::{Place, Wanted};
use rustix::time::{ClockId, clock_gettime};
pub(crate) use timeline::Reading;
use timeline::Timeline;

use crate::error::{MachineError, Result};

/// The clocks of one QEMU's guest. Without a place nothing is done: the guest then loses the time in which it stands still.
#[derive(Debug)]
pub(crate) struct GuestClock {
    pid: u32,
    place: Option<Place>,
    timeline: Timeline,
    kvm: Option<KvmClock>,
    /// When the process was young: to measure the TSC by.
    early: Reading,
}

/// What a guest with a watchdog is given at once, nanoseconds. Its watchdog counts the guest's time: a leap by more than it waits
/// for would let it fire before the guest could answer. Half a second is far above a checkpoint's pause, and below any time-out that
/// such a watchdog can be given in whole seconds.
const MOST_WITH_WATCHDOG: i64 = 500_000_000;

impl GuestClock {
    /// Of the QEMU with this process id, which is to be found yet. Under KVM, with the place of the preloaded library's words.
    pub(crate) fn new(pid: u32, kvm: Option<u64>, watchdog: bool) -> GuestClock {
        let timeline = Timeline::at_most(watchdog.then_some(MOST_WITH_WATCHDOG));
        GuestClock { pid, place: None, timeline, kvm: kvm.map(KvmClock::new), early: now() }
    }

    /// Whether it is known where QEMU has its clock: then time goes on in pauses.
    pub(crate) fn found(&self) -> bool {
        self.place.is_some()
    }

    /// Finds the offsets of a QEMU that has loaded `state` and stands still.
    pub(crate) fn find_loaded(&mut self, process: &File, state: &[u8]) -> Result<()> {
        let saved = timeline::saved(state).ok_or(MachineError::Clock {
            reason: "the device state has no section 'timer' that is understood".into(),
        })?;
        self.place = Some(place::find(process, self.pid, Wanted::exactly(saved))?);
        Ok(())
    }

    /// Finds the offsets of a QEMU whose guest has begun its life between `before` and `after`.
    pub(crate) fn find_started(&mut self, process: &File, before: Reading, after: Reading) -> Result<()> {
        self.place = Some(place::find(process, self.pid, Wanted::started(before, after))?);
        Ok(())
    }

    /// What QEMU has; None when it is not known where. Does not allocate unless it fails.
    pub(crate) fn read(&self, process: &File) -> Result<Option<Reading>> {
        self.place.map(|place| place.read(process)).transpose()
    }

    /// The guest has been stopped. `before` is what [`GuestClock::read`] answered before that. Does not allocate unless it
    /// fails.
    pub(crate) fn stopped(&mut self, process: &File, before: Option<Reading>) -> Result<()> {
        if let (Some(before), Some(still)) = (before, self.read(process)?) {
            self.timeline.stopped(before, still);
        }
        Ok(())
    }

    /// To be called at the end of a pause, right before `cont`: gives the guest the time that it stood still. Does not
    /// allocate unless it fails.
    pub(crate) fn go_on(&mut self, process: &File) -> Result<()> {
        let Some(place) = self.place else {
            // What a take-over has told the library is for the first time that the guest goes on, not for each.
            return self.kvm.as_mut().map_or(Ok(()), |kvm| kvm.keep(process, false));
        };
        let target = self.timeline.go_on(now());
        if let Some(kvm) = &mut self.kvm {
            kvm.keep(process, target.is_some())?;
        }
        target.map_or(Ok(()), |target| place.write(process, target))
    }

    /// To be called before `cont` of a guest whose state was loaded: it gets `gap` nanoseconds more than it had seen, at once or,
    /// when it is `slewed`, in the pauses to come.
    pub(crate) fn begin(&mut self, process: &File, gap: u64, slewed: bool) -> Result<()> {
        if let Some(kvm) = &mut self.kvm {
            kvm.begin(process, gap)?;
        }
        let Some(place) = self.place else { return Ok(()) };
        let still = place.read(process)?;
        let now = now();
        let gap = timeline::span(gap, self.early, now);
        place.write(process, self.timeline.begin(still, now, gap, slewed && self.kvm.is_none()))
    }

    /// Whether the guest has not been given all of a gap yet: it is given a part of it in each pause.
    pub(crate) fn owes(&self) -> bool {
        self.timeline.owes()
    }

    /// The guest has stood still and is not given that time.
    pub(crate) fn forget(&mut self, process: &File) -> Result<()> {
        self.timeline.forget();
        self.kvm.as_mut().map_or(Ok(()), |kvm| kvm.keep(process, false))
    }
}

/// `state` was saved while the guest's clocks ran: makes it say what the guest sees now. Does not allocate unless it fails.
///
/// # Errors
/// `Clock`: it has no section for that.
pub(crate) fn settle(state: &mut [u8]) -> Result<()> {
    match timeline::settle(state, now()) {
        true => Ok(()),
        false => {
            Err(MachineError::Clock { reason: "the device state has no section 'timer' that is understood".into() })
        }
    }
}

/// The host's two clocks at one time: CLOCK_MONOTONIC in nanoseconds, which is QEMU's, and the TSC.
pub(crate) fn now() -> Reading {
    let mut best = i64::MAX;
    let mut reading = Reading { clock: 0, ticks: 0 };
    // An interruption between the two would set them apart.
    for _ in 0..4 {
        let (before, ticks, after) = (monotonic(), tsc(), monotonic());
        if after - before < best {
            best = after - before;
            reading = Reading { clock: before + best / 2, ticks };
        }
        if best < 1000 {
            break;
        }
    }
    reading
}

fn monotonic() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.wrapping_mul(1_000_000_000).wrapping_add(now.tv_nsec)
}

fn tsc() -> i64 {
    // SAFETY: every x86-64 processor has the instruction, and Linux lets processes use it.
    (unsafe { std::arch::x86_64::_rdtsc() }).cast_signed()
}
