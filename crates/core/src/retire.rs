//! A VM that is to be no more, or that the witness says is no more.
//!
//! ```text
//!   request ──► WitnessRequest::Retire ──► the record ──► may it? ──► WitnessRequest::Bury ──► tombstone
//!                                                                     │
//!                 the record has changed, or no answer: refused ◄─────┘
//! ```
//!
//! Without an answer nothing is known: whoever asks again is told how it is, since a VM that was retired is retired.

use ninefold_control::{Answer, OperationKind, Refusal, Reply};
use ninefold_model::event::EventKind;
use ninefold_model::{Record, Tombstone};
use ninefold_replica::protocol::Input;

use crate::core::Core;
use crate::effect::WitnessRequest;
use crate::refusal;

/// What the core knows of the VM's end.
#[derive(Default)]
pub(crate) struct Retirement {
    /// Somebody has asked for it, and the witness has not answered.
    wanted: bool,
    /// The witness has said so.
    pub(crate) tombstone: Option<Tombstone>,
}

impl Retirement {
    /// Whether the VM is about to be retired: nothing else may be asked of the witness.
    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted
    }
}

impl Core {
    pub(crate) fn begin_retire(&mut self, force: bool) -> Reply {
        if let Some(refusal) = self.why_here(false) {
            return Err(refusal);
        }
        self.may_ask()?;
        self.retirement.wanted = true;
        self.ask(WitnessRequest::Retire { force });
        Ok(Answer::Done)
    }

    /// The witness holds this of the VM that is to be retired.
    pub(crate) fn retire_from(&mut self, found: Option<Record>, force: bool) {
        if !self.retirement.wanted {
            return;
        }
        let Some(expected) = found else { return self.retire_failed(Refusal::NoRecord) };
        match self.protocol.may_retire(&expected, force) {
            Ok(forced) => self.ask(WitnessRequest::Bury { expected, forced }),
            Err(refused) => self.retire_failed(refusal::of_protocol(refused)),
        }
    }

    pub(crate) fn retire_failed(&mut self, refusal: Refusal) {
        if std::mem::take(&mut self.retirement.wanted) {
            self.operation_ends(OperationKind::Retire, Err(refusal));
        }
    }

    /// The witness has said so, to whatever it was asked. Whatever of the VM is here ends.
    pub(crate) fn was_retired(&mut self, tombstone: Tombstone) {
        let Tombstone { term, at_s } = tombstone;
        let before = self.retirement.tombstone.replace(tombstone);
        self.doubt_witness(None);
        if let Some(reply) = self.snapshot.asks_of_log() {
            self.tell_of_log(Err(tombstone.to_string()), reply);
        }
        let refusal = Refusal::Retired { term, at_s };
        self.restore_refused(&tombstone.to_string(), refusal.clone());
        self.start_failed(refusal);
        let event = EventKind::Retired { term, at_s };
        match std::mem::take(&mut self.retirement.wanted) && before == Some(tombstone) {
            // It was said before.
            true => self.operation_ends(OperationKind::Retire, Ok(Some(event))),
            false if before != Some(tombstone) => self.event(event),
            false => {}
        }
        self.input(Input::Retired { term });
        // Nobody goes on from its log, which may be on its way already.
        self.drop_recovery();
        self.leave_log_alone(false);
    }

    /// The witness has said something else of the VM than that it was retired: so it has forgotten that.
    pub(crate) fn not_retired(&mut self) {
        self.retirement.tombstone = None;
    }
}
