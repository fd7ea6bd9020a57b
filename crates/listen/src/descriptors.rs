//! How many descriptors this process may have, and one that is kept for bad times.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, getrlimit, setrlimit};

/// Whether accept(2) failed because the process or the system has no more descriptors or memory.
pub fn exhausted(error: &io::Error) -> bool {
    use rustix::io::Errno;
    Errno::from_io_error(error).is_some_and(|e| [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS].contains(&e))
}

/// Raises this process's limit of open files to what it may raise it to, and answers the limit. The usual soft limit, 1,024, is
/// for programs that call select(2).
pub fn raise_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    let now = if setrlimit(Resource::Nofile, raised).is_ok() { raised.current } else { limit.current };
    now.unwrap_or(u64::MAX)
}

/// A descriptor that is kept so that a client can be told to go away when there is none: a connection that nobody accepts
/// would keep its client waiting, and a listener that is polled ready for ever.
#[derive(Debug, Default)]
pub struct Spare(Option<OwnedFd>);

impl Spare {
    /// Kept from now on, if there is one.
    pub fn new() -> Self {
        Self(rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok())
    }

    /// Gives it up for as long as `with` runs.
    pub fn lend<T>(&mut self, with: impl FnOnce() -> T) -> T {
        self.0 = None;
        let done = with();
        *self = Self::new();
        done
    }
}
