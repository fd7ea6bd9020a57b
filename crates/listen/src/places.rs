//! Who may come in when a port is full: a pure data structure, without sockets and clock.
//!
//! A place is *idle* while its client keeps it and owes the next word (a request, the next step of a handshake), and *busy*
//! while it is being served. Only an idle one can lose its place. Each has an *origin*: its address, process or host.
//!
//! ```text
//!          enter ──▶ idle ◀──▶ busy          leave: from any
//!                     │ somebody else's need
//!                     ▼
//!                  leaving (shut, its thread has not ended yet)
//! ```
//!
//! Whose place a newcomer gets when there is none, in this order:
//!
//! 1. a *known* peer gets that of a stranger, and never loses its own to one;
//! 2. the place of the origin that has most, if the newcomer's would not have more than that;
//! 3. among these, that of the one which has been idle for longest.
//!
//! So whoever takes all places takes them from itself, and a client that speaks at once is served however many keep
//! silent.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// What a full port does with a newcomer from an origin that has no more than the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// Gives it the place that has been idle for longest: for clients that speak at once and go, or that come back by
    /// themselves.
    Replace,
    /// Turns it away, unless another origin has at least two more: for clients that may sit and listen.
    Share,
}

/// The bounds of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Connections at a time. As many again may be about to end.
    pub places: usize,
    /// How many of them strangers may have; all, where nobody is known.
    pub strangers: usize,
    /// How long a place must have been idle before it can be lost.
    pub grace: Duration,
    pub full: Full,
}

impl Bounds {
    /// All are strangers, and a newcomer replaces the one that was idle for longest.
    pub const fn new(places: usize) -> Self {
        Self { places, strangers: places, grace: Duration::from_millis(50), full: Full::Replace }
    }
}

/// Whether a peer is one that this port is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acquaintance {
    Known,
    Stranger,
}

/// Names a place for as long as it is held, and never another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

/// The answer to a newcomer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It has a place. `instead` of whom: that connection is to be shut.
    In { ticket: Ticket, instead: Option<Ticket> },
    /// There is no place for it.
    Full,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Idle { since: Instant },
    Busy,
    Leaving,
}

#[derive(Debug)]
struct Held<O> {
    origin: O,
    standing: Acquaintance,
    state: State,
}

/// The places of a port. See the [module](self).
#[derive(Debug)]
pub struct Places<O> {
    bounds: Bounds,
    next: u64,
    held: HashMap<Ticket, Held<O>>,
}

impl<O> Held<O> {
    fn stays(&self) -> bool {
        self.state != State::Leaving
    }
}

impl<O: Eq + Hash> Places<O> {
    /// All free.
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, next: 0, held: HashMap::new() }
    }

    /// Connections that hold a place.
    pub fn taken(&self) -> usize {
        self.held.values().filter(|h| h.stays()).count()
    }

    /// Connections that hold a place or are about to end.
    pub fn connections(&self) -> usize {
        self.held.len()
    }

    /// Somebody wants to come in; it is idle at first.
    pub fn enter(&mut self, origin: O, standing: Acquaintance, now: Instant) -> Answer {
        let Bounds { places, strangers, .. } = self.bounds;
        // Faster than they can be closed.
        if self.held.len() >= places.saturating_mul(2) {
            return Answer::Full;
        }
        let among = self.held.values().filter(|h| h.stays() && h.standing == Acquaintance::Stranger).count();
        let room = self.taken() < places && (standing == Acquaintance::Known || among < strangers);
        let instead = if room { None } else { self.victim(&origin, standing, now) };
        if !room && instead.is_none() {
            return Answer::Full;
        }
        if let Some(instead) = instead {
            self.set(instead, State::Leaving);
        }
        let ticket = Ticket(self.next);
        self.next += 1;
        self.held.insert(ticket, Held { origin, standing, state: State::Idle { since: now } });
        Answer::In { ticket, instead }
    }

    /// Whose place a newcomer may have.
    fn victim(&self, origin: &O, standing: Acquaintance, now: Instant) -> Option<Ticket> {
        let mut counts: HashMap<&O, usize> = HashMap::new();
        for held in self.held.values().filter(|h| h.stays()) {
            *counts.entry(&held.origin).or_default() += 1;
        }
        let count = |origin: &O| counts.get(origin).copied().unwrap_or(0);
        let own = count(origin);
        let candidates = self.held.iter().filter_map(|(ticket, held)| {
            let State::Idle { since } = held.state else { return None };
            let outranked = standing == Acquaintance::Known && held.standing == Acquaintance::Stranger;
            let theirs = count(&held.origin);
            let may = match self.bounds.full {
                _ if held.standing != standing => false,
                Full::Replace => held.origin == *origin || theirs > own,
                // One's own place would be no gain.
                Full::Share => theirs > own + 1,
            };
            let patient = now.saturating_duration_since(since) >= self.bounds.grace;
            (outranked || may && patient).then_some((outranked, theirs, Reverse(since), Reverse(*ticket)))
        });
        candidates.max().map(|(.., ticket)| ticket.0)
    }

    /// The one that has been idle for longest leaves, so that its descriptor is free.
    pub fn make_room(&mut self, now: Instant) -> Option<Ticket> {
        let grace = self.bounds.grace;
        let idle = self.held.iter().filter_map(|(ticket, h)| match h.state {
            State::Idle { since } if now.saturating_duration_since(since) >= grace => {
                Some((h.standing == Acquaintance::Known, since, *ticket))
            }
            _ => None,
        });
        let (.., ticket) = idle.min()?;
        self.set(ticket, State::Leaving);
        Some(ticket)
    }

    /// It is being served.
    pub fn busy(&mut self, ticket: Ticket) {
        self.change(ticket, State::Busy);
    }

    /// Since now it owes the next word.
    pub fn idle(&mut self, ticket: Ticket, now: Instant) {
        self.change(ticket, State::Idle { since: now });
    }

    /// It is gone.
    pub fn leave(&mut self, ticket: Ticket) {
        self.held.remove(&ticket);
    }

    fn set(&mut self, ticket: Ticket, state: State) {
        if let Some(held) = self.held.get_mut(&ticket) {
            held.state = state;
        }
    }

    /// [`set`](Self::set), but who leaves has lost its place for good.
    fn change(&mut self, ticket: Ticket, state: State) {
        if let Some(held) = self.held.get_mut(&ticket).filter(|h| h.stays()) {
            held.state = state;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn places(bounds: Bounds) -> (Places<u8>, Instant) {
        (Places::new(bounds), Instant::now())
    }

    fn admitted(answer: Answer) -> (Ticket, Option<Ticket>) {
        match answer {
            Answer::In { ticket, instead } => (ticket, instead),
            Answer::Full => panic!("full"),
        }
    }

    #[test]
    fn whoever_takes_all_places_takes_them_from_itself() {
        let (mut places, t0) = places(Bounds::new(4));
        let own = admitted(places.enter(9, Acquaintance::Stranger, t0)).0;
        let greedy: Vec<_> = (1..4).map(|n| admitted(places.enter(1, Acquaintance::Stranger, t0 + n * MS)).0).collect();
        // The other one has been idle for longer, and stays.
        let (_, instead) = admitted(places.enter(1, Acquaintance::Stranger, t0 + 100 * MS));
        assert_eq!(instead, Some(greedy[0]));
        let (_, instead) = admitted(places.enter(2, Acquaintance::Stranger, t0 + 101 * MS));
        assert_eq!(instead, Some(greedy[1]));
        assert_eq!(places.taken(), 4);
        places.idle(own, t0 + 102 * MS);
    }

    #[test]
    fn who_is_served_and_who_has_only_just_come_stays() {
        let (mut places, t0) = places(Bounds::new(2));
        let served = admitted(places.enter(1, Acquaintance::Stranger, t0)).0;
        places.busy(served);
        let idle = admitted(places.enter(1, Acquaintance::Stranger, t0)).0;
        assert_eq!(places.enter(2, Acquaintance::Stranger, t0 + MS), Answer::Full, "in the grace");
        assert_eq!(admitted(places.enter(2, Acquaintance::Stranger, t0 + 60 * MS)).1, Some(idle));
        places.leave(idle);
        places.leave(served);
        assert_eq!(places.connections(), 1);
    }

    #[test]
    fn strangers_never_keep_a_known_peer_out() {
        let bounds = Bounds { strangers: 3, ..Bounds::new(4) };
        let (mut places, t0) = places(bounds);
        let strangers: Vec<_> =
            (0..3).map(|n| admitted(places.enter(n, Acquaintance::Stranger, t0 + u32::from(n) * MS)).0).collect();
        // The fourth place is not for them, not even at once.
        assert_eq!(places.enter(7, Acquaintance::Stranger, t0 + 3 * MS), Answer::Full);
        let known = admitted(places.enter(100, Acquaintance::Known, t0 + 3 * MS));
        assert_eq!(known.1, None);
        let next = admitted(places.enter(100, Acquaintance::Known, t0 + 4 * MS));
        assert_eq!(next.1, Some(strangers[0]), "without grace");
        // Not even after a long time.
        let later = admitted(places.enter(7, Acquaintance::Stranger, t0 + 10_000 * MS));
        assert_eq!(later.1, Some(strangers[1]));
    }

    #[test]
    fn listeners_share() {
        let bounds = Bounds { full: Full::Share, ..Bounds::new(3) };
        let (mut places, t0) = places(bounds);
        let later = |n: u32| t0 + n * 1000 * MS;
        let first = admitted(places.enter(1, Acquaintance::Stranger, t0)).0;
        admitted(places.enter(1, Acquaintance::Stranger, later(1)));
        admitted(places.enter(1, Acquaintance::Stranger, later(2)));
        assert_eq!(places.enter(1, Acquaintance::Stranger, later(3)), Answer::Full, "its own gain nothing");
        assert_eq!(admitted(places.enter(2, Acquaintance::Stranger, later(4))).1, Some(first));
        assert!(matches!(places.enter(3, Acquaintance::Stranger, later(5)), Answer::In { instead: Some(_), .. }));
        assert_eq!(places.enter(4, Acquaintance::Stranger, later(6)), Answer::Full, "each has one");
    }

    #[test]
    fn those_that_end_slowly_are_bounded_too() {
        let (mut places, t0) = places(Bounds { grace: Duration::ZERO, ..Bounds::new(2) });
        let tickets: Vec<_> =
            (0..4).map(|n| admitted(places.enter(1, Acquaintance::Stranger, t0 + n * MS)).0).collect();
        assert_eq!((places.taken(), places.connections()), (2, 4));
        assert_eq!(places.enter(1, Acquaintance::Stranger, t0 + 9 * MS), Answer::Full);
        // Who has lost its place does not get it back by being served.
        places.busy(tickets[0]);
        assert_eq!(places.taken(), 2);
        places.leave(tickets[0]);
        admitted(places.enter(1, Acquaintance::Stranger, t0 + 10 * MS));
    }

    proptest! {
        #[test]
        fn the_bounds_hold(
            ops in prop::collection::vec((0..6u8, 0..5u8, any::<bool>(), 0..80u32), 0..200),
            full in prop::sample::select(vec![Full::Replace, Full::Share]),
        ) {
            let bounds = Bounds { strangers: 4, full, ..Bounds::new(6) };
            let (mut places, mut now) = places(bounds);
            let mut tickets = Vec::new();
            for (op, origin, known, ms) in ops {
                now += ms * MS;
                let standing = if known { Acquaintance::Known } else { Acquaintance::Stranger };
                let some = tickets.get(usize::from(origin) * 7 % tickets.len().max(1)).copied();
                match (op, some) {
                    (0..3, _) => {
                        if let Answer::In { ticket, instead } = places.enter(origin, standing, now) {
                            if let Some(victim) = instead.and_then(|t| places.held.get(&t)) {
                                prop_assert!(known || victim.standing == Acquaintance::Stranger);
                            }
                            tickets.push(ticket);
                        }
                    }
                    (3, Some(t)) => places.busy(t),
                    (4, Some(t)) => places.idle(t, now),
                    (_, Some(t)) => places.leave(t),
                    _ => {}
                }
                let strangers = places.held.values().filter(|h| h.stays() && h.standing == Acquaintance::Stranger);
                prop_assert!(strangers.count() <= 4);
                prop_assert!(places.taken() <= 6 && places.connections() <= 12);
            }
        }
    }
}
