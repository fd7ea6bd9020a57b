//! The book-keeping: what was asked, what was acknowledged, what must therefore be there. Pure.
//!
//! The commands alternate between `INCR` of a counter and `SET` of a slot to a value never used before. Answers come in
//! the order of the commands. A command whose connection broke before its answer may or may not have been carried out.

use std::collections::{BTreeSet, VecDeque};

use super::resp::Reply;
use crate::ledger::complain;

/// Slots that `SET` goes round.
pub const SLOTS: usize = 64;

/// A command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Incr,
    Set { slot: usize, value: u64 },
}

/// The book.
#[derive(Debug)]
pub(super) struct Book {
    /// Sent and not answered, oldest first.
    open: VecDeque<Op>,
    sent: u64,
    pub acked: u64,
    /// The last acknowledged count: what every later answer must exceed.
    counter: i64,
    /// Increments of unknown outcome: lost with a connection.
    doubtful: i64,
    slots: Vec<Slot>,
    pub lost: u64,
    /// Writes carried out more often than they were sent.
    pub repeated: u64,
    pub complaints: Vec<String>,
}

#[derive(Debug, Clone, Default)]
struct Slot {
    acked: Option<u64>,
    /// Sent after `acked` over a connection that broke: one of them may be there instead.
    doubtful: BTreeSet<u64>,
}

impl Book {
    pub fn new() -> Self {
        Self {
            open: VecDeque::new(),
            sent: 0,
            acked: 0,
            counter: 0,
            doubtful: 0,
            slots: vec![Slot::default(); SLOTS],
            lost: 0,
            repeated: 0,
            complaints: Vec::new(),
        }
    }

    /// The next command, to be sent now.
    pub fn send(&mut self) -> Op {
        let n = self.sent;
        self.sent += 1;
        let op = match n % 2 {
            0 => Op::Incr,
            _ => Op::Set { slot: (n / 2) as usize % SLOTS, value: n },
        };
        self.open.push_back(op);
        op
    }

    /// Commands without an answer.
    pub fn in_flight(&self) -> usize {
        self.open.len()
    }

    /// The answer to the oldest open command.
    pub fn answered(&mut self, reply: &Reply) {
        let Some(op) = self.open.pop_front() else {
            return self.complain(format!("an answer that nobody asked for: {reply:?}"));
        };
        match (op, reply) {
            (Op::Incr, Reply::Integer(count)) => {
                self.acked += 1;
                self.check_counter(*count, self.counter + 1);
                self.counter = (*count).max(self.counter + 1);
            }
            (Op::Set { slot, value }, Reply::Simple(ok)) if ok == "OK" => {
                self.acked += 1;
                self.slots[slot] = Slot { acked: Some(value), doubtful: BTreeSet::new() };
            }
            _ => self.complain(format!("{op:?} was answered by {reply:?}")),
        }
    }

    /// The connection broke: nobody knows about the open commands.
    pub fn broken(&mut self) {
        for op in self.open.drain(..) {
            match op {
                Op::Incr => self.doubtful += 1,
                Op::Set { slot, value } => drop(self.slots[slot].doubtful.insert(value)),
            }
        }
    }

    /// What the counter is at the end.
    pub fn final_counter(&mut self, count: i64) {
        self.check_counter(count, self.counter);
    }

    /// What a slot holds at the end.
    pub fn final_slot(&mut self, slot: usize, found: Option<u64>) {
        let known = self.slots.get(slot).cloned().unwrap_or_default();
        let good = found == known.acked || found.is_some_and(|v| known.doubtful.contains(&v));
        if !good {
            self.lost += 1;
            self.complain(format!("slot {slot} holds {found:?} instead of {:?}", known.acked));
        }
    }

    /// `least` counts every acknowledged write; doubtful ones may have come on top.
    fn check_counter(&mut self, count: i64, least: i64) {
        let most = least + self.doubtful;
        if count < least {
            self.lost += least.abs_diff(count);
            self.complain(format!("the counter is {count}, {} acknowledged writes are lost", least - count));
            // Each lost write is counted once: from here on the server's own count goes.
            self.counter = count - 1;
        } else if count > most {
            self.repeated += count.abs_diff(most);
            self.complain(format!("the counter is {count}, at most {most} writes were sent"));
        }
        self.doubtful = (most - count).clamp(0, self.doubtful);
    }

    fn complain(&mut self, words: String) {
        complain(&mut self.complaints, words);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ok() -> Reply {
        Reply::Simple("OK".into())
    }

    /// A book after `n` acknowledged pairs of INCR and SET.
    fn book(n: i64) -> Book {
        let mut book = Book::new();
        for i in 1..=n {
            book.send();
            book.send();
            book.answered(&Reply::Integer(i));
            book.answered(&ok());
        }
        book
    }

    #[test]
    fn all_well() {
        let mut b = book(3);
        b.final_counter(3);
        for (slot, value) in [(0, 1), (1, 3), (2, 5)] {
            b.final_slot(slot, Some(value));
        }
        b.final_slot(3, None);
        assert_eq!((b.acked, b.lost, b.repeated, b.complaints.len()), (6, 0, 0, 0));
    }

    #[test]
    fn lost_increments_are_counted_once() {
        let mut b = book(5);
        b.send();
        b.answered(&Reply::Integer(3)); // 5 were acknowledged, so 6 was due.
        assert_eq!(b.lost, 3);
        b.send();
        b.answered(&ok());
        b.send();
        b.answered(&Reply::Integer(4));
        assert_eq!((b.lost, b.repeated), (3, 0));
    }

    #[test]
    fn a_lost_set_is_found_at_the_end() {
        let mut b = book(70);
        b.final_slot(5, Some(11)); // The value of the round before.
        assert_eq!(b.lost, 1);
    }

    #[test]
    fn a_broken_connection_leaves_doubt_but_hides_no_loss() {
        let mut b = book(3);
        for _ in 0..4 {
            b.send(); // INCR, SET slot 3 := 7, INCR, SET slot 4 := 9
        }
        b.broken();
        b.send();
        b.answered(&Reply::Integer(5)); // One of the two doubtful ones was carried out.
        assert_eq!((b.lost, b.repeated), (0, 0));
        b.send();
        b.answered(&ok());
        b.final_slot(3, Some(7));
        b.final_slot(4, None);
        assert_eq!(b.lost, 0);
        b.final_counter(4);
        assert_eq!(b.lost, 1);
    }

    #[test]
    fn more_than_was_sent() {
        let mut b = book(1);
        b.final_counter(3);
        assert_eq!(b.repeated, 2);
    }
}
