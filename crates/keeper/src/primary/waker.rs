//! What wakes the thread that owns the running VM.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};

use crate::error::KeeperError;

/// Rings the VM's thread out of its `poll`.
#[derive(Debug, Clone)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    /// One that nobody has rung yet.
    ///
    /// # Errors
    /// There are no more descriptors.
    pub fn new() -> Result<Self, KeeperError> {
        let fd =
            eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).map_err(|e| KeeperError::Thread(e.into()))?;
        Ok(Self(Arc::new(fd)))
    }

    pub fn ring(&self) {
        // It fails only when the counter is full, and then it has been rung.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// It has been heard.
    pub fn quieten(&self) {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.0, &mut count);
    }
}

impl AsFd for Waker {
    /// Readable when it has been rung.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
