//! Whether a device state can be loaded here, tried with a QEMU of its own.
//!
//! A QEMU that has loaded a state cannot wait for another one, so a standby cannot try. Another QEMU is built as the standby is, loads
//! the state on the same memory, and ends. It sees the memory as the standby has it and writes none of it: its mapping is private, and
//! what it writes is its own copy. Its volumes are empty, its network interfaces, console and agent's channel lead nowhere, and its guest
//! never runs.

use std::sync::Arc;

use crate::blocks::PAGE_SIZE;
use crate::dirty::PageRun;
use crate::error::{MachineError, Result};
use crate::machine::{Machine, MachineConfig};
use crate::memory::Memory;
use crate::ram::Ram;

/// Pages of a private block that are copied at once.
const PAGES: u32 = 64;

/// A QEMU that waits for a state to try. Dropping it ends it.
#[derive(Debug)]
pub struct Rehearsal(Machine);

impl Rehearsal {
    /// Starts it, as the standby that `config` describes, on that one's memory.
    ///
    /// # Errors
    /// As [`Machine::launch`].
    pub fn launch(config: &MachineConfig, ram: Arc<Ram>) -> Result<Self> {
        let config = MachineConfig { incoming: true, ..config.clone() };
        // What would leave it has nowhere to go.
        let (machine, _ports) = Machine::launch_as(&config, ram, true)?;
        Ok(Self(machine))
    }

    /// Whether `state` can be loaded on the memory of `standby`, which is that of the same checkpoint.
    ///
    /// # Errors
    /// `Load` with what QEMU says; `Layout` when the standby is another machine; those of reading its memory.
    pub fn load(mut self, standby: &Memory, state: &[u8]) -> Result<()> {
        let memory = Arc::clone(self.0.memory());
        memory.layout().check_same(standby.layout())?;
        let mut pages = vec![0; PAGES as usize * PAGE_SIZE as usize];
        // Block 0 is the guest's memory, which both map.
        for run in standby.all_runs(PAGES).filter(|run: &PageRun| run.block > 0) {
            let pages = &mut pages[..run.bytes()];
            standby.read_run(run, pages)?;
            memory.write_run(run, pages)?;
        }
        self.0.load_devices(state).map_err(|error| match error {
            MachineError::Load { reason } => {
                MachineError::Load { reason: format!("tried in a QEMU of its own: {reason}") }
            }
            other => other,
        })
    }
}
