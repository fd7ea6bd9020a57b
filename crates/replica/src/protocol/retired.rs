//! The witness says that the VM was retired: nobody wins anything for it any more, and nobody has won it since.
//!
//! Whatever of it is here ends, whoever has it: that is what was asked for, by the record's primary, which did not run it, or by an operator who was
//! told what is lost. A host that waited for an answer has it: another proposal could only be answered in the same way. As after a start by force,
//! a primary that nobody could reach learns it when it reads the record.

use ninefold_model::{Record, Term};

use super::{Action, Protocol, Refused, State};

impl Protocol {
    /// What is here of the VM ends. `term` is that of its end.
    pub(super) fn retired(&mut self, term: Term, out: &mut Vec<Action>) {
        match &self.state {
            State::Standby => {}
            // Nothing of the VM is here, and the answer that is waited for has come.
            State::Gone(_) => self.state = State::Standby,
            State::Starting { .. }
            | State::Backup(_)
            | State::Claiming { .. }
            | State::Spare(_)
            | State::Primary(_)
            | State::GivingBack(_) => self.stand_down(term, "the VM was retired", out),
        }
    }

    /// Whether the VM may be retired from here while the witness holds `record`; true if only because an operator wants it so (`force`), for it may
    /// be another host's.
    ///
    /// # Errors
    /// Why not.
    pub fn may_retire(&self, record: &Record, force: bool) -> Result<bool, Refused> {
        self.check_free()?;
        let ours = record.primary == self.me && record.is_alone();
        if !ours && !force {
            return Err(Refused::Held { record: record.clone(), me: self.me.clone() });
        }
        Ok(record.primary != self.me)
    }
}
