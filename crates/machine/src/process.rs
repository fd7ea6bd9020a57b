//! A child process that dies with the keeper and whose death is an event.
//!
//! ```text
//!   spawn() --> owner thread: fork, exec --> running --> (exit or signal) --> reaped, [`Exit`] kept
//!                    |                          ^
//!                    +-- PR_SET_PDEATHSIG ------+   SIGKILL when the owner thread ends, however the keeper ends
//! ```
//!
//! PR_SET_PDEATHSIG (prctl(2)) fires when the *thread* that forked ends, not the process. A dedicated thread therefore
//! forks and then stays until the child is gone. The child checks its parent after the prctl, which closes the gap in
//! which the keeper might already have died.

use std::ffi::OsString;
use std::fmt;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{ChildStderr, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::error::{MachineError, Result};

/// How much of the end of the child's stderr is kept, bytes.
pub const STDERR_TAIL: usize = 8 << 10;

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Exit code, unless a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// The end of what it said on stderr.
    pub stderr: String,
}

impl Exit {
    fn new(status: Option<ExitStatus>, stderr: &[u8]) -> Exit {
        Exit {
            code: status.and_then(|s| s.code()),
            signal: status.and_then(|s| s.signal()),
            stderr: String::from_utf8_lossy(stderr).trim().to_owned(),
        }
    }

    /// As an error.
    pub fn into_error(self) -> MachineError {
        MachineError::Exited { status: self.to_string(), stderr: self.stderr }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "exit code {code}"),
            (None, Some(signal)) => write!(f, "signal {signal}"),
            (None, None) => f.write_str("unknown status"),
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    exit: Mutex<Option<Exit>>,
    ended: Condvar,
}

/// The child. Dropping it kills and reaps it.
#[derive(Debug)]
pub struct Child {
    pid: u32,
    pidfd: OwnedFd,
    shared: Arc<Shared>,
    owner: Option<JoinHandle<()>>,
}

/// Starts `program`. It inherits exactly the standard streams (/dev/null, stderr to a bounded buffer) and `inherited`,
/// under the same numbers.
///
/// # Errors
/// `Spawn`.
pub fn spawn(
    program: &Path,
    args: &[OsString],
    env: &[(&'static str, String)],
    inherited: &[BorrowedFd<'_>],
) -> Result<Child> {
    let failed = |source| MachineError::Spawn { program: program.into(), source };
    let numbers: Vec<RawFd> = inherited.iter().map(AsRawFd::as_raw_fd).collect();
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.envs(env.iter().map(|(k, v)| (*k, v)));
    let keeper = rustix::process::getpid();
    let prepare = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        if rustix::process::getppid() != Some(keeper) {
            return Err(Errno::SRCH.into());
        }
        for fd in &numbers {
            // SAFETY: the caller of `spawn` holds these descriptors until the child has been started, and this is
            // the child's own copy of the table.
            let fd = unsafe { BorrowedFd::borrow_raw(*fd) };
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
        }
        Ok(())
    };
    // SAFETY: `prepare` makes only system calls, no allocation and no locks, as is right after a fork.
    unsafe { command.pre_exec(prepare) };

    let shared = Arc::new(Shared::default());
    let (started, report) = mpsc::sync_channel(1);
    let for_owner = Arc::clone(&shared);
    let owner = std::thread::Builder::new()
        .name("qemu-owner".into())
        .spawn(move || {
            // From here on this thread must not end before the child: see the module.
            let mut child = match command.spawn() {
                Ok(child) => child,
                Err(error) => {
                    let _ = started.send(Err(error));
                    return;
                }
            };
            let pidfd = i32::try_from(child.id())
                .ok()
                .and_then(Pid::from_raw)
                .ok_or(Errno::SRCH)
                .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
            let pair = pidfd.and_then(|fd| Ok((rustix::io::fcntl_dupfd_cloexec(&fd, 3)?, fd)));
            let mut tail = Vec::new();
            match pair {
                Ok((copy, pidfd)) => {
                    let _ = started.send(Ok((child.id(), copy)));
                    if let Some(stderr) = child.stderr.take() {
                        keep_tail(stderr, &pidfd, &mut tail);
                    }
                }
                Err(error) => {
                    let _ = child.kill();
                    let _ = started.send(Err(error.into()));
                }
            }
            let exit = Exit::new(child.wait().ok(), &tail);
            *for_owner.exit.lock().unwrap_or_else(PoisonError::into_inner) = Some(exit);
            for_owner.ended.notify_all();
        })
        .map_err(failed)?;
    let (pid, pidfd) = report.recv().map_err(|_| failed(Errno::SRCH.into()))?.map_err(failed)?;
    Ok(Child { pid, pidfd, shared, owner: Some(owner) })
}

/// Reads stderr until the process has ended, keeping the last [`STDERR_TAIL`] bytes. The end of the process decides, not
/// the end of the stream: something else may have inherited that.
fn keep_tail(mut stderr: ChildStderr, pidfd: &OwnedFd, tail: &mut Vec<u8>) {
    let mut open = rustix::io::ioctl_fionbio(&stderr, true).is_ok();
    let mut buffer = [0; 4096];
    loop {
        let mut fds = [PollFd::new(pidfd, PollFlags::IN), PollFd::new(&stderr, PollFlags::IN)];
        let watched = if open { 2 } else { 1 };
        match poll(&mut fds[..watched], None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return,
        }
        let ended = !fds[0].revents().is_empty();
        while open {
            match stderr.read(&mut buffer) {
                Ok(0) => open = false,
                Ok(count) => {
                    tail.extend_from_slice(&buffer[..count]);
                    if tail.len() > 2 * STDERR_TAIL {
                        tail.drain(..tail.len() - STDERR_TAIL);
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => open = false,
            }
        }
        if ended {
            let surplus = tail.len().saturating_sub(STDERR_TAIL);
            tail.drain(..surplus);
            return;
        }
    }
}

impl Child {
    /// Process id. Only for display and `/proc`: signals go through the pidfd.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Readable (poll(2), POLLIN) from the process's death on.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// How it ended, once it has.
    pub fn exit(&self) -> Option<Exit> {
        self.shared.exit.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for its end; None when it still runs after `timeout`.
    pub fn wait(&self, timeout: Duration) -> Option<Exit> {
        let deadline = Instant::now() + timeout;
        let mut exit = self.shared.exit.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if exit.is_some() {
                return exit.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            exit = self.shared.ended.wait_timeout(exit, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Sends SIGKILL. Not an error when it has already ended.
    pub fn kill(&self) {
        match pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => tracing::warn!(pid = self.pid, %error, "kill"),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
        if let Some(owner) = self.owner.take() {
            let _ = owner.join();
        }
    }
}
