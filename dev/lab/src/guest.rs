//! The test guests, as `guest/build` leaves them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Instant;

use ninefold_keeper::config::cache_dir;

use crate::error::{LabError, io_at};
use crate::ledger;
use crate::topology::GUEST_IP;

/// Where the guest's redis listens.
pub const REDIS_PORT: u16 = 6379;

/// Where the guest's PostgreSQL listens.
pub const POSTGRES_PORT: u16 = 5432;

/// What runs in a lab's VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Guest {
    /// Debian with redis.
    #[default]
    Basic,
    /// Debian with PostgreSQL, on the volume `data`.
    Postgres,
}

impl Guest {
    /// Where its kernel and initramfs are.
    ///
    /// # Errors
    /// When it has not been built.
    pub fn dir(self) -> Result<PathBuf, LabError> {
        let current = match self {
            Guest::Basic => "current",
            Guest::Postgres => "current-postgres",
        };
        let link = cache_dir().join("guest").join(current);
        // Another build may change the link while the VM runs; all hosts have to start the same.
        let at = || format!("the test guest {} is not there (`make guest` builds it)", link.display());
        let dir = std::fs::canonicalize(&link).map_err(io_at(at()))?;
        std::fs::metadata(dir.join("vmlinuz")).map_err(io_at(at()))?;
        Ok(dir)
    }

    /// Its service, as the client sees it.
    pub fn service(self) -> SocketAddr {
        SocketAddr::new(
            GUEST_IP,
            match self {
                Guest::Basic => REDIS_PORT,
                Guest::Postgres => POSTGRES_PORT,
            },
        )
    }

    /// Waits until its service answers from inside a namespace. `false` when the deadline passes.
    ///
    /// # Errors
    /// No such namespace.
    pub fn await_answer(self, netns: &str, deadline: Instant) -> Result<bool, LabError> {
        match self {
            Guest::Basic => ledger::await_answer(netns, self.service(), deadline),
            Guest::Postgres => ledger::sql::await_answer(netns, self.service(), deadline),
        }
    }
}
