//! A primary whose QEMU has died while the witness is being asked to release its backups: because the VM is to be stopped, or to go on without
//! them.
//!
//! ```text
//!   (t,   P, [B in s])     P asks for (t+1, P, []), and its QEMU dies. B is told, and claims
//!   (t+1, P, [])           P was first: nobody may take the VM over any more. It has stopped, if it was to; otherwise it is lost
//!   (t+1, B, [])           B was first: it goes on with the VM
//! ```
//!
//! Who has the VM then is what the witness says, and a record of the term that was asked for, or of a later one, is what says it. That the
//! witness still holds the record of before says nothing: what was asked for may be on its way to it, or may wait there for its disk, and is
//! granted after that.
//!
//! To stop the VM the witness is asked until it has answered, and until nobody is bound: its owner wants that. What was asked for so that the VM
//! goes on here is not asked for again: what has not arrived must not, since B may go on. If nobody does, this host may go on from its log: it then
//! asks for the very record that it has asked for before.

use ninefold_model::Record;
use ninefold_model::event::EventKind;

use super::{Action, Outcome, Proposal, ProposalId, Protocol, State};

/// See the [module](self).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Gone {
    /// Binds nobody; or, if the VM was to be stopped, what was asked for before that.
    pub(super) asked: Proposal,
    /// Why the VM was to be stopped, if it was.
    pub(super) stopping: Option<String>,
    /// Why it is not here any more.
    pub(super) reason: String,
    /// A log is left that speaks of what was proposed up to this: it would bring back what was stopped.
    pub(super) invalidated: Option<ProposalId>,
}

impl Protocol {
    /// The VM is not here any more and was to be stopped.
    pub(super) fn stop_gone(&mut self, gone: Gone, out: &mut Vec<Action>) {
        if gone.asked.sent {
            gone.asked.ask_again(out);
        }
        self.state = State::Gone(gone);
    }

    /// Begins to ask for a record that binds nobody, in place of `from`.
    pub(super) fn release_all(&mut self, from: Record, out: &mut Vec<Action>) -> Proposal {
        let new = from.bound(Vec::new());
        Proposal::begin(self.next_proposal(), Some(from), new, self.rules, out)
    }

    pub(super) fn gone_answered(&mut self, outcome: Outcome, out: &mut Vec<Action>) {
        match outcome {
            Outcome::Won => return self.gone_won(out),
            Outcome::Lost(Some(record)) => self.gone_sees(&record, out),
            // That proves nothing.
            Outcome::Lost(None) | Outcome::Refused(_) => {}
        }
        if let State::Gone(Gone { asked, stopping: Some(_), .. }) = &self.state {
            asked.ask_again(out);
        }
    }

    /// The witness holds `record`.
    pub(super) fn gone_sees(&mut self, record: &Record, out: &mut Vec<Action>) {
        let State::Gone(gone) = &self.state else { return };
        if *record == gone.asked.new {
            return self.gone_won(out);
        }
        let granted_to_another = record.term >= gone.asked.new.term;
        let not_yet = gone.asked.expected.as_ref() == Some(record);
        if granted_to_another || (not_yet && !self.rules.wait_for_what_was_asked) {
            self.state = State::Standby;
        }
    }

    /// The witness holds what was asked for. If that binds nobody, nobody has the VM, and nobody may take it over.
    fn gone_won(&mut self, out: &mut Vec<Action>) {
        let State::Gone(gone) = &self.state else { return };
        let is_known_to_the_log = gone.invalidated.is_some_and(|last| gone.asked.id <= last);
        if !gone.asked.new.is_alone() || (gone.stopping.is_some() && is_known_to_the_log) {
            let gone = gone.clone();
            let asked = self.release_all(gone.asked.new.clone(), out);
            self.state = State::Gone(Gone { asked, ..gone });
            return;
        }
        out.push(Action::Emit(match &gone.stopping {
            Some(reason) => EventKind::Stopped { reason: reason.clone() },
            None => EventKind::Lost { reason: gone.reason.clone() },
        }));
        self.state = State::Standby;
    }
}
