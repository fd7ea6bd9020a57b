//! What keepers say from one moment on, as it comes, also across their deaths and restarts.

use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ninefold_control::Gap;
use ninefold_model::event::{Event, Position};
use ninefold_shell::keepers::{Keeper, ask_each};

use super::keepers::Keepers;

/// One long poll of a keeper.
const POLL: Duration = Duration::from_secs(5);
/// Before a keeper that is not there is asked again.
const RETRY: Duration = Duration::from_millis(100);

/// How far several keepers had come at one moment.
#[derive(Debug, Clone)]
pub struct Marks(Vec<(Keeper, Mark)>);

/// How far one keeper had come.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mark {
    /// It had said this much.
    At(Position),
    /// It did not answer then, at this time (microseconds since the Unix epoch). It keeps its VM on this machine, so its clock is this one.
    Silent { unix_us: u64 },
}

impl Mark {
    /// From where on it is asked.
    fn begin(self) -> Position {
        match self {
            Self::At(position) => position,
            Self::Silent { .. } => Position::START,
        }
    }

    /// Whether an event was after that moment.
    fn is_before(self, event: &Event) -> bool {
        match self {
            Self::At(_) => true,
            Self::Silent { unix_us } => event.unix_us >= unix_us,
        }
    }
}

impl Keepers {
    /// How far they have come now. Taken before a request is made, so that nothing is missed that comes of it.
    pub fn marks(&self) -> Marks {
        Marks::at(self, ask_each(&self.all, ninefold_control::Client::now))
    }
}

impl Marks {
    /// How far they have come that have said this, or did not answer.
    pub fn after(keepers: &Keepers, said: &[Result<Vec<Event>, String>]) -> Self {
        let last = |events: &Vec<Event>| events.last().map_or(Position::START, Event::position);
        Self::at(keepers, said.iter().map(|said| said.as_ref().map(last).map_err(String::clone)))
    }

    /// How far they have come that are at these positions, or did not answer.
    fn at(keepers: &Keepers, positions: impl IntoIterator<Item = Result<Position, String>>) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_micros()).unwrap_or(0));
        let mark = |position: Result<Position, String>| match position {
            Ok(position) => Mark::At(position),
            Err(_) => Mark::Silent { unix_us: now },
        };
        Self(keepers.all.iter().cloned().zip(positions.into_iter().map(mark)).collect())
    }

    /// All that they say from there on.
    pub fn follow(&self) -> Receiver<Event> {
        self.follow_with_gaps(|_, _| {})
    }

    /// The same; `missed` is told of each gap, before the events behind it, with the host's name.
    pub fn follow_with_gaps(&self, missed: impl Fn(&str, &Gap) + Clone + Send + 'static) -> Receiver<Event> {
        let (sender, events) = mpsc::channel();
        for (keeper, mark) in &self.0 {
            let (keeper, sender, mark, missed) = (keeper.clone(), sender.clone(), *mark, missed.clone());
            // Each ends when nobody listens any more, at the latest with this process.
            thread::spawn(move || {
                let mut after = mark.begin();
                loop {
                    let Ok(told) = keeper.client.events(after, POLL) else {
                        thread::sleep(RETRY);
                        continue;
                    };
                    if let Some(gap) = &told.gap {
                        missed(&keeper.host, gap);
                    }
                    after = told.next;
                    for event in told.events {
                        if mark.is_before(&event) && sender.send(event).is_err() {
                            return;
                        }
                    }
                }
            });
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use ninefold_model::event::EventKind;
    use ninefold_model::{Incarnation, Term};

    use super::*;

    fn event(incarnation: u64, seq: u64, unix_us: u64) -> Event {
        let kind = EventKind::Booted { term: Term(1) };
        let (host, incarnation) = ("a".parse().unwrap(), Incarnation(incarnation));
        Event { incarnation, seq, unix_us, monotonic_us: 0, host, times: 1, first: None, kind }
    }

    #[test]
    fn a_keeper_is_asked_from_where_it_had_come_to() {
        let keepers = Keepers { all: ["a", "b", "c"].map(|h| Keeper::new(h, h.as_ref())).to_vec() };
        let said = [Ok(vec![event(5, 1, 10), event(5, 2, 20)]), Ok(Vec::new()), Err("no answer".into())];
        let marks: Vec<_> = Marks::after(&keepers, &said).0.into_iter().map(|(_, mark)| mark).collect();
        assert_eq!(marks[0], Mark::At(Position { incarnation: Incarnation(5), seq: 2 }));
        assert_eq!(marks[1], Mark::At(Position::START), "it had said nothing: all is new");
        // One that did not answer is asked for all, and what it had said before is left out: it may have been frozen.
        let Mark::Silent { unix_us } = marks[2] else { panic!("{:?}", marks[2]) };
        assert_eq!(marks[2].begin(), Position::START);
        assert!(!marks[2].is_before(&event(4, 8, unix_us - 1)) && marks[2].is_before(&event(4, 9, unix_us)));
        assert!(marks[0].is_before(&event(6, 1, 0)), "a new life is after it, whatever its clock says");
    }
}
