//! What the VM is called. All of its hosts hear of a new name from the witness, whose label counts; each has it on record itself, and where people look for
//! the VM.
//!
//! ```text
//!   request ──► WitnessRequest::Rename ──► the witness ──► Labelled ──► Effect::Name ──► Named ──► event
//!                                    on other hosts, by a look ──┘
//! ```

use ninefold_control::{Answer, OperationKind, Refusal, Work};
use ninefold_model::event::EventKind;
use ninefold_model::{Label, VmId, VmName};

use crate::core::Core;
use crate::effect::{Effect, WitnessRequest};
use crate::event::RequestId;

/// See the [module](self).
pub(crate) struct Naming {
    pub(crate) label: Label,
    /// Somebody has asked for another name, and waits.
    wanted: bool,
}

impl Naming {
    pub(crate) fn new(label: Label) -> Self {
        Self { label, wanted: false }
    }
}

impl Core {
    /// Somebody wants the VM to be called so. `taken`: another VM is, on this host.
    pub(crate) fn rename(&mut self, id: RequestId, name: VmName, taken: Option<VmId>) {
        let refusal = match taken {
            Some(vm) => Some(Refusal::NameTaken { name: name.clone(), vm }),
            None => self.naming.wanted.then_some(Refusal::Busy { with: Work::Rename }),
        };
        if let Some(refusal) = refusal {
            return self.reply(id, Err(refusal));
        }
        self.naming.wanted = true;
        self.reply(id, Ok(Answer::Done));
        if self.naming.label.name == name {
            return self.rename_ends(Ok(None));
        }
        self.ask(WitnessRequest::Rename { name });
    }

    /// By the witness the VM is called so.
    pub(crate) fn labelled(&mut self, label: Label) {
        if label.number > self.naming.label.number {
            self.effect(Effect::Name(label));
        }
    }

    /// It is, on this host; or this host cannot.
    pub(crate) fn named(&mut self, label: Label, failure: Option<String>) {
        if let Some(reason) = failure {
            self.event(EventKind::NotRenamed { name: label.name, reason: reason.clone() });
            return self.rename_ends(Err(Refusal::Failed { reason }));
        }
        let from = std::mem::replace(&mut self.naming.label, label.clone()).name;
        let renamed = EventKind::Renamed { from, to: label.name };
        self.event(renamed.clone());
        self.rename_ends(Ok(Some(renamed)));
    }

    pub(crate) fn rename_ends(&mut self, outcome: Result<Option<EventKind>, Refusal>) {
        if std::mem::take(&mut self.naming.wanted) {
            self.operation_ends(OperationKind::Rename, outcome);
        }
    }
}
