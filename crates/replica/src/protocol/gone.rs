//! A primary whose QEMU has died while the witness is being asked to release its backups: because the VM is to be stopped, or to go on without
//! them.
//!
//! ```text
//!   (t,   P, [B in s])     P asks for (t+1, P, []), and its QEMU dies. B is told, and claims
//!   (t+1, P, [])           P was first: nobody may take the VM over any more. It has stopped, if it was to; otherwise it is lost
//!   (t+1, B, [])           B was first: it goes on with the VM
//! ```
//!
//! Who has the VM then is what the witness says, so its answer is waited for. Nothing is asked again: what has not arrived must not, since B may
//! go on. When the witness is seen to hold what it held before, what was asked for is taken for lost.

use ninefold_model::Record;
use ninefold_model::event::EventKind;

use super::{Action, Outcome, Proposal, Protocol, State};

/// See the [module](self).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Gone {
    /// Names nobody but this host.
    pub(super) asked: Proposal,
    /// Why the VM was to be stopped, if it was.
    pub(super) stopping: Option<String>,
    /// Why it is not here any more.
    pub(super) reason: String,
    /// Others were told to take it over.
    pub(super) heirs: bool,
}

impl Protocol {
    pub(super) fn gone_answered(&mut self, outcome: Outcome, out: &mut Vec<Action>) {
        match outcome {
            Outcome::Won => self.gone_for_good(out),
            Outcome::Lost(Some(record)) => self.gone_sees(&record, out),
            // That proves nothing.
            Outcome::Lost(None) | Outcome::Refused(_) => {}
        }
    }

    /// The witness holds `record`.
    pub(super) fn gone_sees(&mut self, record: &Record, out: &mut Vec<Action>) {
        let State::Gone(gone) = &self.state else { return };
        if *record == gone.asked.new {
            return self.gone_for_good(out);
        }
        let granted_to_another = record.term >= gone.asked.new.term;
        let not_granted = gone.asked.expected.as_ref() == Some(record);
        if not_granted && !gone.heirs {
            out.push(Action::Emit(EventKind::Lost { reason: gone.reason.clone() }));
        }
        if granted_to_another || not_granted {
            self.state = State::Standby;
        }
    }

    /// Nobody has the VM, and nobody may take it over.
    fn gone_for_good(&mut self, out: &mut Vec<Action>) {
        let State::Gone(gone) = &self.state else { return };
        out.push(Action::Emit(match &gone.stopping {
            Some(reason) => EventKind::Stopped { reason: reason.clone() },
            None => EventKind::Lost { reason: gone.reason.clone() },
        }));
        self.state = State::Standby;
    }
}
