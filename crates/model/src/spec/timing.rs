//! Detection of a silent peer.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// When a peer counts as silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timing {
    /// Milliseconds between two signs of life.
    pub heartbeat_ms: u32,
    /// Milliseconds of silence after which the peer counts as lost and the witness is asked.
    pub failure_timeout_ms: u32,
    /// Milliseconds without carrier on the uplink before the VM is handed over.
    pub uplink_hold_ms: u32,
}

impl Default for Timing {
    fn default() -> Self {
        Self { heartbeat_ms: 40, failure_timeout_ms: 250, uplink_hold_ms: 200 }
    }
}

impl Timing {
    /// A host that stood still for less is merely busy.
    pub const MIN_STILL: Duration = Duration::from_millis(50);

    /// Between two signs of life.
    pub fn heartbeat(&self) -> Duration {
        Duration::from_millis(self.heartbeat_ms.into())
    }

    /// After so long a silence the peer counts as lost.
    pub fn failure_timeout(&self) -> Duration {
        Duration::from_millis(self.failure_timeout_ms.into())
    }

    /// From how long on a primary that stood still may have been replaced, and so asks: a backup counts from the last sign of life, and
    /// that was up to a heartbeat before; and the sender's own beat may be late by as much.
    pub fn stall_limit(&self) -> Duration {
        self.failure_timeout().saturating_sub(2 * self.heartbeat()).max(Self::MIN_STILL)
    }

    /// A batch that leaves is preceded by a look at the clock: one that is older than this is none.
    pub fn look_limit(&self) -> Duration {
        self.failure_timeout() / 2
    }
}
