//! The guest's file systems around a snapshot: frozen, and thawed by whoever goes on with the guest.

use ninefold_control::{FreezeChoice, Refusal};
use ninefold_model::event::EventKind;
use ninefold_model::health::Health;

use crate::core::Core;
use crate::effect::{FreezePlan, GuestOrder};

impl Core {
    /// How a snapshot freezes them. While its memory is trapped it is found out whether there is an agent.
    ///
    /// # Errors
    /// They have to be frozen, and cannot be.
    pub(crate) fn freezing(&self, choice: FreezeChoice) -> Result<FreezePlan, Refusal> {
        let required = choice == FreezeChoice::Require;
        match choice {
            FreezeChoice::Never => Ok(FreezePlan::Never),
            _ if self.standing.runs() => Ok(FreezePlan::Ask { required }),
            _ if required => Err(Refusal::CannotFreeze { reason: "the guest does not run".into() }),
            _ => Ok(FreezePlan::Cannot("the guest does not run".into())),
        }
    }

    /// A guest goes on here: whoever goes on from its checkpoints is to know whether it has to be thawed.
    pub(crate) fn goes_on_frozen(&mut self, health: &Health) -> bool {
        let frozen = health.freeze.as_ref().is_some_and(|freeze| freeze.thaw);
        self.guest(GuestOrder::Frozen(frozen));
        frozen
    }

    /// Has the guest thawed that goes on here.
    pub(crate) fn thaw(&mut self) {
        let generation = self.generation;
        self.guest(GuestOrder::Thaw { generation });
    }

    pub(crate) fn freeze_ends(&mut self, generation: u64, unsure: Option<String>) {
        // Of a guest that is not here any more somebody else has to know.
        if let Some(reason) = unsure
            && self.is_here(generation)
        {
            self.event(EventKind::MayBeFrozen { reason });
        }
    }
}
