//! What comes before anything is asked of the witness.
//!
//! ```text
//!                ┌─► the log notes it ───────────────────────┐
//!   Prepare ─────┤                                           ├─► Prepared ─► Propose
//!                └─► (a claim) the standby is ready to go on ┘
//!                      │ one of them fails, or SIGTERM: this host gives up, and nothing is proposed
//! ```
//!
//! A host that finds the record that it proposed knows from its log that it had won it, and that it let nothing go since that is
//! not in the log. And nobody claims who could not go on: the primary may live, and would end for nothing.

use ninefold_model::Record;
use ninefold_model::status::{LogState, Role};
use ninefold_replica::protocol::{Input, LogRole, ProposalId};

use crate::core::Core;
use crate::disk_watch::SLOW;
use crate::effect::{Effect, LogOrder};
use crate::time::Monotonic;

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Preparing {
    tickets: u64,
    waits: Option<Waits>,
}

/// What a proposal waits for.
#[derive(Debug)]
struct Waits {
    id: ProposalId,
    /// The number of its note in the log.
    note: Option<u64>,
    since: Monotonic,
    standby: bool,
}

impl Core {
    pub(crate) fn prepare(&mut self, id: ProposalId, new: Record) {
        let role = self.protocol.role();
        let standby = role == Role::Backup && self.takeover.as_ref().is_some_and(|t| !t.ready && t.loaded.is_none());
        let mut waits = Waits { id, note: None, since: self.now.monotonic, standby };
        let as_primary = self.protocol.log_role().filter(|_| role == Role::Primary);
        if let (Some(standing), Some(log)) = (&mut self.log.standing, self.log.id) {
            // A backup's is one, whatever is said of its state: it speaks for a host that gives the VM back.
            let was_backup = matches!(standing.role, LogRole::Backup { .. });
            if let Some(role) = as_primary {
                standing.role = role;
            }
            standing.propose(new);
            self.preparing.tickets += 1;
            let (ticket, standing) = (self.preparing.tickets, standing.clone());
            self.effects.push(Effect::Log { id: log, order: LogOrder::Stand { ticket, standing } });
            // A primary's is no log yet while it is copied to, and when it becomes one it has this note: nobody waits for a
            // thread that is busy copying.
            if self.log.state != LogState::Copying || role != Role::Primary || was_backup {
                waits.note = Some(self.preparing.tickets);
            }
        }
        self.preparing.waits = Some(waits);
        self.go_on_preparing();
    }

    /// The log has noted this, and all before.
    pub(crate) fn stood(&mut self, id: u64, ticket: u64) {
        if self.log.is_mine(id)
            && let Some(waits) = &mut self.preparing.waits
        {
            waits.note.take_if(|note| *note <= ticket);
            self.go_on_preparing();
        }
    }

    /// The log of a primary has ended. What is proposed is not noted there, and need not be: it is not believed any more, or
    /// will be invalidated.
    pub(crate) fn noted(&mut self) {
        if let Some(waits) = &mut self.preparing.waits {
            waits.note = None;
            self.go_on_preparing();
        }
    }

    /// Others wait for the VM that this host gives back: they do not wait longer for the disk of a log that may be why.
    pub(crate) fn check_noting(&mut self) {
        let now = self.now.monotonic;
        let waits = self.preparing.waits.as_ref().is_some_and(|w| w.note.is_some() && now.since(w.since) >= SLOW);
        if self.unloaded && waits {
            self.noted();
        }
    }

    /// The standby can go on with the VM.
    pub(crate) fn standby_ready(&mut self) {
        if let Some(takeover) = &mut self.takeover {
            takeover.ready = true;
        }
        if let Some(waits) = &mut self.preparing.waits {
            waits.standby = false;
            self.go_on_preparing();
        }
    }

    /// What is not proposed yet will not be.
    pub(crate) fn give_up_preparing(&mut self) {
        self.preparing.waits = None;
    }

    fn go_on_preparing(&mut self) {
        if let Some(Waits { id, .. }) = self.preparing.waits.take_if(|w| w.note.is_none() && !w.standby) {
            self.input(Input::Prepared { id });
        }
    }
}
