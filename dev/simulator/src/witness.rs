//! The witness: its register by the rules of docs/witness.md, and all that it may do wrong.

use ninefold_model::{HostName, Record, Term};

/// How the witness is now.
#[derive(Debug, Default)]
pub struct Witness {
    /// Each value that the register has had.
    pub records: Vec<Record>,
    pub down: u32,
    pub mute: u32,
    /// Extra time for answers, and for questions, in microseconds.
    pub slow: u64,
    pub late: u64,
    pub refuses: u32,
    /// So many changes are forgotten; all of them.
    pub forgets: Option<Option<usize>>,
}

/// What one asks of it.
#[derive(Debug, Clone)]
pub enum Ask {
    Read,
    Swap { expected: Option<Record>, new: Record },
}

/// What it answers.
#[derive(Debug, Clone)]
pub enum Answer {
    Holds(Option<Record>),
    Won,
    Lost(Option<Record>),
    Refused(String),
}

impl Witness {
    /// What the register holds, whatever is answered.
    pub fn record(&self) -> Option<&Record> {
        self.records.last()
    }

    /// Answers a question. True: the register has changed.
    pub fn answer(&mut self, caller: &HostName, ask: Ask) -> (Answer, bool) {
        if self.refuses > 0 {
            return (Answer::Refused("it is full".into()), false);
        }
        let shown = match self.forgets {
            None => self.record().cloned(),
            Some(None) => None,
            Some(Some(changes)) => self.records.len().checked_sub(changes + 1).map(|n| self.records[n].clone()),
        };
        let (expected, new) = match ask {
            Ask::Read => return (Answer::Holds(shown), false),
            Ask::Swap { expected, new } => (expected, new),
        };
        if let Err(why) = refused(expected.as_ref(), &new, caller) {
            return (Answer::Refused(why.into()), false);
        }
        if shown.as_ref() == Some(&new) {
            (Answer::Won, false)
        } else if shown == expected && self.forgets.is_some() {
            // What it would store now would be gone when its register is back.
            (Answer::Refused("it is read-only".into()), false)
        } else if shown == expected {
            self.records.push(new);
            (Answer::Won, true)
        } else {
            (Answer::Lost(shown), false)
        }
    }
}

fn refused(expected: Option<&Record>, new: &Record, caller: &HostName) -> Result<(), &'static str> {
    if new.primary != *caller {
        return Err("it may not propose another");
    }
    if expected.map_or(Term(0), |r| r.term).next() != new.term {
        return Err("the term does not follow");
    }
    if new.check().is_err() {
        return Err("it makes no sense");
    }
    if expected.is_none_or(|e| e.primary != new.primary) && !new.is_alone() {
        return Err("a new primary begins alone");
    }
    Ok(())
}
