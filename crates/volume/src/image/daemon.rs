//! A child `qemu-storage-daemon` with one export.
//!
//! ```text
//!   listen, connect (waits in the backlog), unlink --> owner thread: fork, exec with the listener --> daemon answers
//!                                                                |
//!                                                                +-- PR_SET_PDEATHSIG: SIGKILL when the owner ends
//! ```
//!
//! The daemon inherits a socket that already listens, and our connection already waits there. So nothing has to be
//! polled: the daemon greets when it is ready, and if it fails the kernel ends the connection. No name of the
//! socket is left in the file system.
//!
//! PR_SET_PDEATHSIG (prctl(2)) fires when the *thread* that forked ends; a thread of its own therefore forks and stays.

use std::fs::DirBuilder;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::child::die_with_thread;
use super::tools::{Tools, name, short};
use crate::error::VolumeError;
use crate::random;

/// Bytes of the daemon's messages that are kept.
const REPORT: u64 = 8 << 10;

/// How long a daemon may take to write what it holds and end, seconds. After that it is killed.
const PATIENCE: i64 = 10;

/// The daemon. Dropping it asks it to end, so that it writes its metadata, and reaps it.
#[derive(Debug)]
pub(super) struct Daemon {
    pid: u32,
    pidfd: OwnedFd,
    owner: Option<JoinHandle<Vec<u8>>>,
    program: String,
}

impl Daemon {
    /// Starts a daemon that exports the block node described by the JSON text `node` (node name "disk") as "disk", and
    /// gives a connection to it.
    pub(super) fn start(tools: &Tools, node: &str) -> Result<(Daemon, UnixStream), VolumeError> {
        let program = tools.storage_daemon.clone();
        let failed = |source| VolumeError::File { what: "cannot run", path: program.clone(), source };
        let (listener, stream) = waiting_connection().map_err(failed)?;
        let mut command = Command::new(&program);
        command
            .env("LC_ALL", "C")
            .arg("--blockdev")
            .arg(node)
            .arg("--nbd-server")
            .arg(format!("addr.type=fd,addr.str={},max-connections=1", listener.as_raw_fd()))
            .args(["--export", "type=nbd,id=disk,node-name=disk,name=disk,writable=on"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        die_with_thread(&mut command);
        let number = listener.as_raw_fd();
        let prepare = move || {
            // SAFETY: the listener is moved to the owner thread and open there until the child has been started; this is
            // the child's own copy of the table.
            let listener = unsafe { BorrowedFd::borrow_raw(number) };
            fcntl_setfd(listener, FdFlags::empty())?;
            Ok(())
        };
        // SAFETY: `prepare` makes only system calls, no allocation and no locks, as is right after a fork.
        unsafe { command.pre_exec(prepare) };

        let (started, report) = mpsc::sync_channel(1);
        let owner = std::thread::Builder::new()
            .name("qsd-owner".into())
            .spawn(move || {
                let mut child = match command.spawn() {
                    Ok(child) => child,
                    Err(error) => {
                        let _ = started.send(Err(error));
                        return Vec::new();
                    }
                };
                // Now the daemon alone has it: when the daemon ends, so does our connection.
                drop(listener);
                let handle = handle(&child);
                if handle.is_err() {
                    let _ = child.kill();
                }
                let _ = started.send(handle);
                let mut said = Vec::new();
                if let Some(mut stderr) = child.stderr.take() {
                    let _ = Read::by_ref(&mut stderr).take(REPORT).read_to_end(&mut said);
                    let _ = io::copy(&mut stderr, &mut io::sink());
                }
                let _ = child.wait();
                said
            })
            .map_err(failed)?;
        let (pid, pidfd) = report.recv().map_err(|_| failed(Errno::SRCH.into()))?.map_err(failed)?;
        Ok((Daemon { pid, pidfd, owner: Some(owner), program: name(&program) }, stream))
    }

    /// Its process.
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Ends it; what it said, as an error.
    pub(super) fn into_error(mut self) -> VolumeError {
        let said = self.end();
        VolumeError::Tool { program: self.program.clone(), report: short(&said) }
    }

    fn end(&mut self) -> Vec<u8> {
        let _ = pidfd_send_signal(&self.pidfd, Signal::TERM);
        let patience = Timespec { tv_sec: PATIENCE, tv_nsec: 0 };
        match poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&patience)) {
            Ok(1..) => {}
            _ => {
                let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
            }
        }
        self.owner.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
    }
}

fn handle(child: &Child) -> io::Result<(u32, OwnedFd)> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
    Ok((child.id(), pidfd_open(pid, PidfdFlags::empty())?))
}

/// A listening socket that nobody else can find, and a connection that waits in its backlog.
fn waiting_connection() -> io::Result<(OwnedFd, UnixStream)> {
    let directory = std::env::temp_dir().join(format!("ninefold-{}", random::hex128()?));
    DirBuilder::new().mode(0o700).create(&directory)?;
    let pair = connect_at(&directory.join("s"));
    let _ = std::fs::remove_dir_all(&directory);
    pair
}

fn connect_at(path: &Path) -> io::Result<(OwnedFd, UnixStream)> {
    let listener = UnixListener::bind(path)?;
    let stream = UnixStream::connect(path)?;
    // Above the standard streams, which the child replaces.
    Ok((fcntl_dupfd_cloexec(&listener, 3)?, stream))
}
