//! What the demo does to a primary, and how it is made good.

use serde::{Deserialize, Serialize};

use crate::error::LabError;
use crate::lab::Lab;

/// A fault of the host on which the VM runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// Its QEMU is killed. The keeper stays and makes the host a backup again by itself.
    KillQemu,
    /// Its keeper is killed, and QEMU with it. The keeper is started again.
    KillKeeper,
    /// The whole host loses power. It is switched on again.
    KillHost,
}

impl Fault {
    /// In the order in which a demo shows them.
    pub const ALL: [Fault; 3] = [Fault::KillQemu, Fault::KillKeeper, Fault::KillHost];

    /// The fault of the `number`th failover, counted from 0.
    pub fn of(number: u32) -> Self {
        Self::ALL[number as usize % Self::ALL.len()]
    }

    /// In words, for "we … on host a".
    pub fn words(self) -> &'static str {
        match self {
            Fault::KillQemu => "kill QEMU",
            Fault::KillKeeper => "kill the keeper",
            Fault::KillHost => "pull the plug",
        }
    }

    pub(super) fn inject(self, lab: &Lab, host: &str) -> Result<(), LabError> {
        match self {
            Fault::KillQemu => lab.kill_qemu(host),
            Fault::KillKeeper => lab.kill_keeper(host),
            Fault::KillHost => lab.kill_host(host),
        }
    }

    /// Brings back what does not come back by itself. `false`: nothing was to be done.
    pub(super) fn repair(self, lab: &Lab, host: &str) -> Result<bool, LabError> {
        match self {
            Fault::KillQemu => return Ok(false),
            Fault::KillKeeper => lab.start_keeper(host)?,
            Fault::KillHost => lab.restart_host(host)?,
        }
        Ok(true)
    }
}
