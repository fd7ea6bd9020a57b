//! The guest's file systems around a snapshot: frozen, and thawed by whoever goes on with the guest.

use ninefold_model::control::FreezeChoice;
use ninefold_model::event::EventKind;
use ninefold_model::health::Health;

use super::Core;
use crate::config::KeeperConfig;
use crate::error;
use crate::freeze::{self, End, Freezer, Freezing, Limits};
use crate::msg::Msg;

impl Core {
    /// How a snapshot freezes them. While its memory is trapped it is found out whether there is an agent.
    ///
    /// # Errors
    /// They have to be frozen, and cannot be.
    pub(super) fn freezing(&self, choice: FreezeChoice) -> Result<Freezing, String> {
        let required = choice == FreezeChoice::Require;
        if choice == FreezeChoice::Never {
            return Ok(Freezing::Never);
        }
        let begun = if self.standing.runs() {
            let socket = KeeperConfig::agent_socket(&self.parts.config.run_dir);
            Freezer::begin(socket, Limits::default(), self.health.told(), self.hears_end()).map_err(|e| e.to_string())
        } else {
            Err("the guest does not run".into())
        };
        match begun {
            Ok(freezer) => Ok(Freezing::By { freezer, required }),
            Err(reason) if required => Err(format!("the guest's file systems cannot be frozen: {reason}")),
            Err(reason) => Ok(Freezing::Cannot(reason)),
        }
    }

    /// A guest goes on here: whoever goes on from its checkpoints is to know whether it has to be thawed.
    pub(super) fn goes_on_frozen(&self, health: &Health) -> bool {
        let frozen = health.freeze.as_ref().is_some_and(|freeze| freeze.thaw);
        self.health.told().frozen(frozen);
        frozen
    }

    /// Has the guest thawed that goes on here.
    pub(super) fn thaw(&self) {
        let socket = KeeperConfig::agent_socket(&self.parts.config.run_dir);
        let begun = freeze::thaw_later(socket, Limits::default(), self.health.told(), self.hears_end());
        if let Err(failed) = begun {
            self.may_be_frozen(error::report(&failed));
        }
    }

    fn hears_end(&self) -> impl FnOnce(End) + Send + 'static {
        let (core, generation) = (self.parts.core.clone(), self.generation);
        move |end| {
            let _ = core.send(Msg::Frozen { generation, end });
        }
    }

    pub(super) fn frozen_end(&self, generation: u64, end: End) {
        // Of a guest that is not here any more somebody else has to know.
        if let End::Unsure(reason) = end
            && generation == self.generation
            && self.vm.is_some()
        {
            self.may_be_frozen(reason);
        }
    }

    fn may_be_frozen(&self, reason: String) {
        self.event(EventKind::MayBeFrozen { reason });
    }
}
