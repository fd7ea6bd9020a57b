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

use ninefold_core::KEEP;
use ninefold_machine::{Machine, Ports, Tracker};
use ninefold_model::spec::{Boot, Hardware};
use ninefold_model::{Epoch, Term};
use ninefold_replica::continuation::History;
use ninefold_replica::stream::Layout;

use crate::backup::custody::{Custody, Kept};
use crate::backup::proof::Proof;

/// How long a session waits for the former one's thread to let go of its standby.
const FORMER: Duration = Duration::from_secs(2);

/// A standby without a session.
pub struct Parked {
    pub standby: StandbyMachine,
    /// Its last checkpoint is in memory, whole.
    pub history: History,
    /// Of a non-volatile VM: this host's log ends with that, too, as of this session.
    pub logged: Option<(Term, Epoch)>,
}

/// A QEMU that waits for the state of a VM.
pub struct StandbyMachine {
    pub machine: Machine,
    pub ports: Ports,
    pub layout: Layout,
    /// As it was built.
    pub built: Built,
    /// That it can load what it holds.
    pub proof: Proof,
    /// Its memory outlives this keeper. None where that cannot be had.
    pub custody: Option<Custody>,
    /// Follows what QEMU writes from when it was built, for a guest that others, or a log, will hold as well when it runs here.
    /// It is begun early because that takes a time in proportion to the memory. The checkpoints that are put into the
    /// memory from outside of QEMU are not noted.
    pub tracker: Option<Tracker>,
}

/// Of what a standby was made. One that is to go on with another session has to be made of the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    pub hardware: Hardware,
    pub boot: Boot,
}

/// What is taken out because another VM's QEMU comes here. Dropped, it ends: a QEMU takes its time for that, and memory a time in proportion.
pub struct Former {
    _parked: Option<Box<Parked>>,
    _kept: Option<Kept>,
}

impl Former {
    fn is_nothing(&self) -> bool {
        self._parked.is_none() && self._kept.is_none()
    }
}

/// Room for one.
#[derive(Default)]
pub struct Parking {
    slot: Mutex<Slot>,
    changed: Condvar,
}

#[derive(Default)]
struct Slot {
    /// The newest session: an older one that is slow parks nothing, and takes nothing.
    session: Term,
    /// The newest session that was accepted.
    announced: Term,
    /// Up to this session nothing is parked any more.
    void: Term,
    /// The newest session's thread has a standby, or may have.
    occupied: bool,
    parked: Option<(Instant, Box<Parked>)>,
    /// What an earlier keeper has left, since this one has begun.
    kept: Option<(Instant, Kept)>,
}

impl Slot {
    /// Takes out what is due, by when it came.
    fn take_if(&mut self, is_due: impl Fn(Instant) -> bool) -> Former {
        Former {
            _parked: self.parked.take_if(|(since, _)| is_due(*since)).map(|(_, parked)| parked),
            _kept: self.kept.take_if(|(since, _)| is_due(*since)).map(|(_, kept)| kept),
        }
    }
}

/// The core waits neither for a QEMU nor for memory to be given back.
fn end(former: Former) {
    if former.is_nothing() {
        return;
    }
    if let Err(error) = thread::Builder::new().name("unpark".into()).spawn(move || drop(former)) {
        tracing::error!(%error, "a parked standby was ended by the core itself");
    }
}

impl Parking {
    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// With what an earlier keeper has left.
    pub fn with(kept: Option<Kept>) -> Self {
        let slot = Slot { kept: kept.map(|kept| (Instant::now(), kept)), ..Slot::default() };
        Self { slot: Mutex::new(slot), changed: Condvar::new() }
    }

    /// Takes out what an earlier keeper has left.
    pub fn take_kept(&self) -> Option<Kept> {
        self.slot().kept.take().map(|(_, kept)| kept)
    }

    /// A session is accepted: older ones that have not begun will not.
    pub fn announce(&self, session: Term) {
        let mut slot = self.slot();
        slot.announced = slot.announced.max(session);
        drop(slot);
        self.changed.notify_all();
    }

    /// A session begins; what the one before has parked is its own to use. Waits, not forever, until that has ended. Nothing
    /// if there is a newer one.
    pub fn enter(self: &Arc<Self>, session: Term) -> Option<(Place, Option<Box<Parked>>)> {
        let waits = |slot: &mut Slot| slot.occupied && slot.announced <= session;
        let (mut slot, _) =
            self.changed.wait_timeout_while(self.slot(), FORMER, waits).unwrap_or_else(PoisonError::into_inner);
        if slot.announced > session || slot.session > session {
            return None;
        }
        slot.session = session;
        slot.occupied = true;
        let place = Place { parking: Arc::clone(self), session };
        Some((place, slot.parked.take().map(|(_, parked)| parked)))
    }

    /// Takes out what is parked, and what an earlier keeper has left. What a session that has begun would still park is of no use either.
    pub fn take(&self) -> Former {
        let mut slot = self.slot();
        slot.void = slot.session;
        slot.take_if(|_| true)
    }

    /// Ends all of that, in a thread of its own.
    pub fn clear(&self) {
        end(self.take());
    }

    /// Ends what has waited for too long.
    pub fn expire(&self) {
        let former = self.slot().take_if(|since| since.elapsed() > KEEP);
        end(former);
    }
}

/// The place of the running session.
pub struct Place {
    parking: Arc<Parking>,
    session: Term,
}

impl Place {
    /// Leaves a standby for the next session.
    pub fn park(self, parked: Parked) {
        let parked = Box::new(parked);
        let mut slot = self.parking.slot();
        if slot.session == self.session && slot.void < self.session {
            slot.parked = Some((Instant::now(), parked));
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

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::mpsc::channel;

    use ninefold_replica::stream::Reign;

    use super::*;
    use crate::backup::custody::Note;

    /// Memory that an earlier keeper has left is given back by whoever waits for that, or by nobody whom others wait for.
    #[test]
    fn what_was_left_is_not_given_back_by_who_takes_it_out() {
        let note = Note { reign: Reign { term: Term(4), generation: 2 }, epoch: Epoch(77) };
        let left = || {
            let (mut given_back, memory) = std::io::pipe().unwrap();
            rustix::io::ioctl_fionbio(&given_back, true).unwrap();
            let parking = Parking::with(Some(Kept::of(note, memory.into())));
            let is_given_back = move || given_back.read(&mut [0]).is_ok();
            (parking, is_given_back)
        };
        let (parking, mut is_given_back) = left();
        let former = parking.take();
        assert!(!is_given_back() && parking.take_kept().is_none());
        drop(former);
        assert!(is_given_back());
        let (parking, mut is_given_back) = left();
        parking.expire();
        assert!(!is_given_back(), "it has not waited for too long");
        parking.clear();
        while !is_given_back() {
            thread::yield_now();
        }
    }

    #[test]
    fn a_session_waits_for_the_former_and_not_for_a_newer() {
        let parking = Arc::new(Parking::default());
        let (first, parked) = parking.enter(Term(3)).unwrap();
        assert!(parked.is_none());
        let (told, heard) = channel();
        let others: Vec<_> = [5, 7]
            .map(|session| {
                parking.announce(Term(session));
                let (parking, told) = (Arc::clone(&parking), told.clone());
                thread::spawn(move || {
                    let place = parking.enter(Term(session)).map(|(place, _)| place);
                    told.send((session, place.is_some())).unwrap();
                    place
                })
            })
            .into();
        // The older one does not wait for what is not for it.
        assert_eq!(heard.recv().unwrap(), (5, false));
        assert!(heard.recv_timeout(Duration::from_millis(50)).is_err());
        drop(first);
        assert_eq!(heard.recv().unwrap(), (7, true));
        assert!(parking.enter(Term(5)).is_none(), "it is late");
        for other in others {
            drop(other.join().unwrap());
        }
        assert!(parking.enter(Term(7)).is_some());
    }
}
