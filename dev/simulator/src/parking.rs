//! A standby without a session, as a keeper keeps it for the next; and the memory of one whose keeper has gone.

use ninefold_model::{Epoch, Term};
use ninefold_replica::continuation::History;
use ninefold_replica::stream::Reign;

use crate::guest::Node;

/// A standby that was not needed.
#[derive(Debug, Clone)]
pub struct Parked {
    pub history: History,
    pub memory: Vec<Node>,
}

/// What a keeper has left of its standby's memory: with the checkpoint of which it is noted to be, though it may have pages of the next.
#[derive(Debug, Clone)]
pub struct Kept {
    pub reign: Reign,
    pub epoch: Epoch,
    pub memory: Vec<Node>,
}

/// Room for one.
#[derive(Debug, Default)]
pub struct Parking {
    /// The newest session that has begun.
    pub session: Term,
    /// The newest session that was accepted.
    pub announced: Term,
    /// Up to this session nothing is parked any more.
    void: Term,
    /// Since when.
    parked: Option<(u64, Parked)>,
    kept: Option<(u64, Kept)>,
}

impl Parking {
    /// With what an earlier keeper has left.
    pub fn with(kept: Option<Kept>, now: u64) -> Self {
        Self { kept: kept.map(|kept| (now, kept)), ..Self::default() }
    }

    pub fn announce(&mut self, session: Term) {
        self.announced = self.announced.max(session);
    }

    /// A session begins: what the one before has parked is its own to use.
    pub fn enter(&mut self, session: Term) -> Option<Parked> {
        self.session = session;
        self.parked.take().map(|(_, parked)| parked)
    }

    pub fn take_kept(&mut self) -> Option<Kept> {
        self.kept.take().map(|(_, kept)| kept)
    }

    pub fn park(&mut self, session: Term, now: u64, parked: Parked) {
        if self.session == session && self.void < session {
            self.parked = Some((now, parked));
        }
    }

    /// What is parked is of no use, nor what a session that has begun would still park.
    pub fn clear(&mut self) {
        (self.void, self.parked, self.kept) = (self.session, None, None);
    }

    /// Ends what has waited for too long.
    pub fn expire(&mut self, now: u64) {
        let over = |since: u64| now - since > ninefold_core::KEEP.as_micros() as u64;
        self.parked.take_if(|(since, _)| over(*since));
        self.kept.take_if(|(since, _)| over(*since));
    }

    /// What a keeper that ends leaves of it.
    pub fn leaves(&self) -> Option<Kept> {
        let (_, Parked { history, memory }) = self.parked.as_ref()?;
        Some(Kept { reign: history.origin().reign, epoch: history.last(), memory: memory.clone() })
    }

    /// Its QEMU is killed.
    pub fn dies(&mut self) {
        self.parked = None;
    }
}
