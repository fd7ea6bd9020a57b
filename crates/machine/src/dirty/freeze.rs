//! Stops all threads of a child process for a moment.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use crate::error::{MachineError, Result};

/// A thread in an uninterruptible system call stops when that ends; one that takes longer counts as hung.
const LIMIT: Duration = Duration::from_secs(10);
/// First the processor is merely given away, then the wait is a sleep: a stop takes some ten microseconds.
const YIELDS: u32 = 200;
const SLEEP: Duration = Duration::from_micros(50);

/// A child that stands still until this is dropped.
#[derive(Debug)]
pub(super) struct Frozen<'a> {
    pidfd: BorrowedFd<'a>,
}

impl<'a> Frozen<'a> {
    /// Sends SIGSTOP and waits until every thread has stopped: the kernel tells the parent of a stop when the last thread
    /// takes part in it (signal(7), waitid(2)). If the keeper dies here, the child gets SIGKILL, which ends stopped
    /// processes too.
    ///
    /// # Errors
    /// `Io` when the child has ended, or does not stop in time (it goes on then).
    pub(super) fn stop(pidfd: BorrowedFd<'a>) -> Result<Frozen<'a>> {
        pidfd_send_signal(pidfd, Signal::STOP).map_err(MachineError::os("freezing QEMU"))?;
        // From here on an early return lets it go on.
        let frozen = Frozen { pidfd };
        let began = Instant::now();
        let mut tries = 0;
        loop {
            match waitid(WaitId::PidFd(pidfd), WaitIdOptions::STOPPED | WaitIdOptions::NOHANG) {
                Ok(Some(_)) => return Ok(frozen),
                Ok(None) | Err(Errno::INTR) => {}
                Err(error) => return Err(MachineError::os("freezing QEMU")(error)),
            }
            if began.elapsed() > LIMIT {
                let source = io::Error::new(io::ErrorKind::TimedOut, format!("it runs on after {} s", LIMIT.as_secs()));
                return Err(MachineError::Io { what: "freezing QEMU", source });
            }
            tries += 1;
            if tries < YIELDS { std::thread::yield_now() } else { std::thread::sleep(SLEEP) }
        }
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        // Only a child that has ended cannot get it.
        let _ = pidfd_send_signal(self.pidfd, Signal::CONT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process;
    use std::path::Path;

    /// State of each thread (proc_pid_stat(5)).
    fn states(pid: u32) -> Vec<String> {
        let mut found = Vec::new();
        for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
            let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
            found.push(stat.rsplit_once(") ").unwrap().1.chars().next().unwrap().to_string());
        }
        found
    }

    #[test]
    fn a_frozen_child_stands_still_and_goes_on() {
        let child = process::spawn(Path::new("sh"), &["-c".into(), "while :; do :; done".into()], &[], &[]).unwrap();
        for _ in 0..20 {
            let frozen = Frozen::stop(child.pidfd()).unwrap();
            assert_eq!(states(child.pid()), ["T"]);
            drop(frozen);
            assert_ne!(states(child.pid()), ["T"]);
        }
        child.kill();
        child.wait(Duration::from_secs(10)).unwrap();
        assert!(Frozen::stop(child.pidfd()).is_err());
    }
}
