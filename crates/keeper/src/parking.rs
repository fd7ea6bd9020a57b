//! A standby that was not needed is kept for a while: its QEMU still waits for device state, and its memory is that of a
//! checkpoint. The host that took over has gone on from the same or a neighbouring one and opens a session soon; then only
//! what differs has to come, and no QEMU has to be launched.
//!
//! ```text
//!   session 1 ── the claim is lost ──► parked ── session 2 suits ──► its standby
//!                                        │
//!                                        └─ another VM is started here, too old, of no use ──► ended
//! ```

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ninefold_machine::{Machine, Ports};
use ninefold_model::spec::VmSpec;
use ninefold_replica::continuation::History;
use ninefold_replica::stream::Layout;

/// How long a standby is kept for a session that suits it.
pub const KEEP: Duration = Duration::from_secs(30);
/// How long a session waits for the former one's thread to let go of its standby.
const FORMER: Duration = Duration::from_secs(2);

/// A standby without a session.
pub struct Parked {
    pub standby: StandbyMachine,
    /// Its last checkpoint is in memory, whole.
    pub history: History,
}

/// A QEMU that waits for the state of a VM.
pub struct StandbyMachine {
    pub machine: Machine,
    pub ports: Ports,
    pub layout: Layout,
    /// As it was built.
    pub spec: VmSpec,
}

/// Room for one.
#[derive(Default)]
pub struct Parking {
    slot: Mutex<Slot>,
    changed: Condvar,
}

#[derive(Default)]
struct Slot {
    /// Counts sessions, so that one that was given up for dead parks nothing.
    session: u64,
    /// The newest session's thread has a standby, or may have.
    occupied: bool,
    parked: Option<(Instant, Box<Parked>)>,
}

impl Parking {
    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session begins; what the one before has parked is its own to use. Waits, not forever, until that has ended.
    pub fn enter(self: &Arc<Self>) -> (Place, Option<Box<Parked>>) {
        let former = |slot: &mut Slot| slot.occupied;
        let (mut slot, _) =
            self.changed.wait_timeout_while(self.slot(), FORMER, former).unwrap_or_else(PoisonError::into_inner);
        slot.session += 1;
        slot.occupied = true;
        let place = Place { parking: Arc::clone(self), session: slot.session };
        (place, slot.parked.take().map(|(_, parked)| parked))
    }

    /// Ends what is parked, in a thread of its own: a QEMU may take its time.
    pub fn clear(&self) {
        self.end_if(|_| true);
    }

    /// Ends what has waited for too long.
    pub fn expire(&self) {
        self.end_if(|since| since.elapsed() > KEEP);
    }

    fn end_if(&self, is_due: impl FnOnce(Instant) -> bool) {
        let mut slot = self.slot();
        if slot.parked.as_ref().is_some_and(|(since, _)| is_due(*since))
            && let Some((_, parked)) = slot.parked.take()
        {
            drop(slot);
            let ended = thread::Builder::new().name("unpark".into()).spawn(move || drop(parked));
            if let Err(error) = ended {
                tracing::error!(%error, "a parked standby was ended by the core itself");
            }
        }
    }
}

/// The place of the running session.
pub struct Place {
    parking: Arc<Parking>,
    session: u64,
}

impl Place {
    /// Leaves a standby for the next session.
    pub fn park(self, parked: Parked) {
        let mut slot = self.parking.slot();
        if slot.session == self.session {
            slot.parked = Some((Instant::now(), Box::new(parked)));
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut slot = self.parking.slot();
        if slot.session == self.session {
            slot.occupied = false;
            self.parking.changed.notify_all();
        }
    }
}
