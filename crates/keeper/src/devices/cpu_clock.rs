//! Whether a guest is at work, as seen from outside: its QEMU's CPU time and what its vCPUs' threads are doing.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use crate::runtime::priority::Processors;

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

    /// The processors on which vCPUs run or wait to run.
    pub fn processors(&self) -> Processors {
        let mut all = Processors::NONE;
        let mut stat = [0; STAT];
        for file in &self.vcpus {
            let read = file.read_at(&mut stat, 0).unwrap_or(0);
            if state(&stat[..read]) == Some(b'R')
                && let Some(number) = processor(&stat[..read])
            {
                all.insert(number);
            }
        }
        all
    }
}

/// Longer than a thread's `stat`: 52 numbers and its name.
const STAT: usize = 1200;
/// Fields between the state and the number of the processor.
const BEFORE_PROCESSOR: usize = 36;

/// What stands behind the name, which is in parentheses and may contain any byte: the state comes first.
fn behind_name(stat: &[u8]) -> Option<&[u8]> {
    let end = stat.iter().rposition(|&b| b == b')')?;
    stat.get(end + 2..)
}

fn state(stat: &[u8]) -> Option<u8> {
    behind_name(stat)?.first().copied()
}

fn processor(stat: &[u8]) -> Option<usize> {
    let number = behind_name(stat)?.split(|&b| b == b' ').nth(BEFORE_PROCESSOR)?;
    std::str::from_utf8(number).ok()?.parse().ok()
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
    fn the_processor_of_a_thread() {
        let numbers: Vec<String> = (4..=52).map(|field: u32| (field * 10).to_string()).collect();
        let stat = format!("12 (CPU 0/TCG) R {}", numbers.join(" "));
        // proc(5) numbers the fields from 1: (39) processor.
        assert_eq!(processor(stat.as_bytes()), Some(390));
        assert_eq!(processor(b"12 (CPU 0/TCG) R 1 12"), None);
        let own = fs::read(format!("/proc/self/task/{}/stat", rustix::thread::gettid().as_raw_nonzero())).unwrap();
        assert!(own.len() < STAT && processor(&own).is_some(), "{}", String::from_utf8_lossy(&own));
    }

    #[test]
    fn this_process_uses_time() {
        let clock = CpuClock::of(std::process::id()).unwrap();
        assert!(clock.read().unwrap() > Duration::ZERO);
        assert!(!clock.runnable(), "it has no vCPUs");
    }
}
