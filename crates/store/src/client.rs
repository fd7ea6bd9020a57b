//! The client of the witness server.

use std::net::SocketAddr;
use std::time::Duration;

use ninefold_model::{HostName, Record, VmName};
use ninefold_transport::Security;

use crate::witness::{Swap, Witness, WitnessError};

/// How long a call may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For a new connection with its handshake.
    pub connect: Duration,
    /// For a whole call, connecting included.
    pub request: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_millis(500),
            request: Duration::from_secs(1),
        }
    }
}

/// A blocking client: connects when needed, keeps its connection warm, one request at a time.
pub struct WitnessClient {
    addr: SocketAddr,
    witness: HostName,
    security: Security,
    timeouts: Timeouts,
}

impl WitnessClient {
    /// Does not connect yet.
    pub fn new(
        addr: SocketAddr,
        witness: HostName,
        security: Security,
        timeouts: Timeouts,
    ) -> Self {
        Self {
            addr,
            witness,
            security,
            timeouts,
        }
    }

    /// Asks for a sign of life; connects if there is no connection. Call it now and then so that a compare-and-swap
    /// that matters finds a connection that works.
    pub fn ping(&mut self) -> Result<(), WitnessError> {
        Err(self.unreachable())
    }

    /// All records, by name.
    pub fn list(&mut self) -> Result<Vec<(VmName, Record)>, WitnessError> {
        Err(self.unreachable())
    }

    fn unreachable(&self) -> WitnessError {
        let _ = (&self.security, self.timeouts);
        WitnessError::Unreachable {
            addr: self.addr.to_string(),
            reason: format!("{} is not built yet", self.witness),
        }
    }
}

impl Witness for WitnessClient {
    fn read(&mut self, _vm: &VmName) -> Result<Option<Record>, WitnessError> {
        Err(self.unreachable())
    }

    fn compare_and_swap(
        &mut self,
        _: &VmName,
        _: Option<&Record>,
        _: &Record,
    ) -> Result<Swap, WitnessError> {
        Err(self.unreachable())
    }
}
