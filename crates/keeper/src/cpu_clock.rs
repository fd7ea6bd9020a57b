//! How much CPU time another process has used, cheaply.

use std::time::Duration;

/// The CPU-time clock of a process (clock_getcpuclockid(3)).
#[derive(Debug, Clone, Copy)]
pub struct CpuClock(libc::clockid_t);

impl CpuClock {
    /// That of process `pid`, if there is one.
    pub fn of(pid: u32) -> Option<Self> {
        let mut clock = 0;
        let pid = libc::pid_t::try_from(pid).ok()?;
        // SAFETY: the call writes one clockid_t to the pointer, which is valid for that.
        let failed = unsafe { libc::clock_getcpuclockid(pid, &mut clock) };
        (failed == 0).then_some(Self(clock))
    }

    /// The time used so far by all its threads; nothing once it has ended.
    pub fn read(&self) -> Option<Duration> {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the call writes one timespec to the pointer, which is valid for that.
        let failed = unsafe { libc::clock_gettime(self.0, &mut time) };
        (failed == 0).then(|| Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
    }
}
