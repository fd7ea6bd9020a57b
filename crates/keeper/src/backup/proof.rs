//! That a standby can load what it holds is proven before its host says so (promise I4), not found out at the take-over.
//!
//! ```text
//!   session ──► standby is launched ─┬─► Ready ──► first copy ──► first checkpoint whole ──► tried ──► acknowledged
//!           └─► rehearsal is launched┘                                                         └ no: the session ends, and why
//! ```
//!
//! What a state needs of its loader depends on both QEMUs, on the accelerator and on the machine's description, and these stay as
//! they are while a standby lives: so a standby that is used again, for checkpoints of a QEMU of the same version, is not tried again.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use ninefold_machine::{MachineConfig, Memory, Ram, Rehearsal};

use crate::error::report;

/// What is known of a standby.
#[derive(Debug)]
pub enum Proof {
    /// A QEMU in which its first checkpoint is to be tried; it is being launched, or it waits.
    Wanted(Option<Trying>),
    /// A state that a QEMU of this version saved was loaded.
    Given { qemu: String },
}

#[derive(Debug)]
pub enum Trying {
    Launching(JoinHandle<Result<Rehearsal, String>>),
    Waiting(Box<Rehearsal>),
}

impl Proof {
    /// Begins to launch the QEMU, which is built as `machine`, on the same memory. In a thread: the standby is launched meanwhile.
    pub fn begin(machine: MachineConfig, ram: Arc<Ram>) -> Self {
        let launch = move || Rehearsal::launch(&machine, ram).map_err(|e| report(&e));
        // Without a thread it is launched when it is needed, and fails then.
        let thread = thread::Builder::new().name("rehearsal".into()).spawn(launch).ok();
        Self::Wanted(thread.map(Trying::Launching))
    }

    /// Whether a checkpoint of a QEMU of this version need not be tried.
    pub fn is_given(&self, of: &str) -> bool {
        matches!(self, Self::Given { qemu } if qemu == of)
    }

    /// Waits until a state can be tried without delay: output is held while it is.
    ///
    /// # Errors
    /// The QEMU to try it in cannot be launched.
    pub fn ready(&mut self) -> Result<(), String> {
        let Self::Wanted(trying) = self else { return Ok(()) };
        *trying = match trying.take() {
            Some(Trying::Launching(thread)) => {
                let launched = thread.join().unwrap_or_else(|_| Err("its thread has failed".into()));
                let launched = launched.map_err(|e| format!("what its state is to be tried in: {e}"))?;
                Some(Trying::Waiting(Box::new(launched)))
            }
            other => other,
        };
        Ok(())
    }

    /// Tries the state that a QEMU of version `of` has saved.
    ///
    /// # Errors
    /// It cannot be loaded here, and why.
    pub fn give(&mut self, of: &str, standby: &Memory, state: &[u8]) -> Result<(), String> {
        if self.is_given(of) {
            return Ok(());
        }
        self.ready()?;
        match self {
            Self::Wanted(trying) => match trying.take() {
                Some(Trying::Waiting(rehearsal)) => {
                    let tried = rehearsal.load(standby, state);
                    tried.map_err(|e| {
                        format!("the VM could not go on here, its devices cannot be loaded: {}", report(&e))
                    })?;
                }
                _ => return Err("there is nothing to try the VM's state in".into()),
            },
            Self::Given { qemu } => return Err(format!("only a state of QEMU {qemu} was tried, not one of {of}")),
        }
        *self = Self::Given { qemu: of.to_owned() };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_for_one_version() {
        let given = Proof::Given { qemu: "7.2.22".into() };
        assert!(given.is_given("7.2.22"));
        assert!(!given.is_given("10.0.2"));
        assert!(!Proof::Wanted(None).is_given("7.2.22"));
    }
}
