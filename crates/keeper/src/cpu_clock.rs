//! Whether a guest is at work, as seen from outside: its QEMU's CPU time and what its vCPUs' threads are doing.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Duration;

/// The CPU-time clock of a QEMU process (clock_getcpuclockid(3)) and the states of its vCPUs' threads (proc(5),
/// `/proc/pid/task/tid/stat`).
#[derive(Debug)]
pub struct CpuClock {
    clock: libc::clockid_t,
    vcpus: Vec<File>,
}

impl CpuClock {
    /// That of process `pid`, if there is one.
    pub fn of(pid: u32) -> Option<Self> {
        let mut clock = 0;
        let id = libc::pid_t::try_from(pid).ok()?;
        // SAFETY: the call writes one clockid_t to the pointer, which is valid for that.
        let failed = unsafe { libc::clock_getcpuclockid(id, &mut clock) };
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
        let vcpus = tasks
            .filter_map(|task| {
                let task = task.ok()?.path();
                // QEMU names them "CPU 0/KVM" and so on when asked for thread names.
                fs::read_to_string(task.join("comm")).ok()?.starts_with("CPU ").then_some(task)
            })
            .filter_map(|task| File::open(task.join("stat")).ok())
            .collect();
        (failed == 0).then_some(Self { clock, vcpus })
    }

    /// The time used so far by all threads; nothing once the process has ended.
    pub fn read(&self) -> Option<Duration> {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the call writes one timespec to the pointer, which is valid for that.
        let failed = unsafe { libc::clock_gettime(self.clock, &mut time) };
        (failed == 0).then(|| Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
    }

    /// Whether a vCPU runs or waits for a processor. One that waits for a processor uses no CPU time and is busy all
    /// the same.
    pub fn runnable(&self) -> bool {
        let mut stat = [0; 64];
        self.vcpus.iter().any(|file| {
            let read = file.read_at(&mut stat, 0).unwrap_or(0);
            state(&stat[..read]) == Some(b'R')
        })
    }
}

/// The state: the letter after the name, which stands in parentheses and may contain any byte.
fn state(stat: &[u8]) -> Option<u8> {
    let end = stat.iter().rposition(|&b| b == b')')?;
    stat.get(end + 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_of_a_thread() {
        assert_eq!(state(b"12 (CPU 0/TCG) R 1 12"), Some(b'R'));
        assert_eq!(state(b"12 (a) S) S 1 12"), Some(b'S'));
        assert_eq!(state(b"12 (cut"), None);
        assert_eq!(state(b""), None);
    }

    #[test]
    fn this_process_uses_time() {
        let clock = CpuClock::of(std::process::id()).unwrap();
        assert!(clock.read().unwrap() > Duration::ZERO);
        assert!(!clock.runnable(), "it has no vCPUs");
    }
}
