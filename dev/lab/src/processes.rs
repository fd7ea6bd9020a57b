//! The processes of one host: counted, frozen and killed all at once.
//!
//! Where the kernel has cgroup version 2, each host has a control group of its own, `ninefold-LAB/HOST`, and the kernel
//! freezes or kills all of it in one step (`cgroup.freeze`, `cgroup.kill`: kernel documentation,
//! admin-guide/cgroup-v2). Elsewhere the host's processes are those in its network namespace, which are signalled one
//! by one until none is left out.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::error::{LabError, io_at};
use crate::netns;

/// How long the kernel may take to freeze or end processes.
const PATIENCE: Duration = Duration::from_secs(20);

/// A process of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: u32,
    /// The program's file name.
    pub program: String,
}

/// Where the control groups version 2 are mounted, if they are (proc(5), cgroups(7)).
pub fn cgroup_mount() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").ok()?;
    let mount = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let at = fields.next()?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(at))
    })?;
    // `cgroup.kill` needs Linux 5.14; the root group has none, so a group must be made to find out.
    let probe = mount.join(format!("ninefold-probe-{}", std::process::id()));
    fs::create_dir(&probe).or_else(|e| if e.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(e) }).ok()?;
    let able = probe.join("cgroup.kill").exists() && probe.join("cgroup.freeze").exists();
    let _ = fs::remove_dir(&probe);
    able.then_some(mount)
}

/// The processes of one host.
#[derive(Debug, Clone)]
pub struct HostProcesses {
    host: String,
    netns: String,
    cgroup: Option<PathBuf>,
}

impl HostProcesses {
    /// `lab_cgroup` is the lab's own group, if there are groups.
    pub(crate) fn new(host: &str, netns: &str, lab_cgroup: Option<&Path>) -> Self {
        Self { host: host.into(), netns: netns.into(), cgroup: lab_cgroup.map(|c| c.join(host)) }
    }

    /// `cgroup.procs` for [`netns::confine`].
    pub(crate) fn join_by(&self) -> Result<Option<OwnedFd>, LabError> {
        let Some(dir) = &self.cgroup else { return Ok(None) };
        let path = dir.join("cgroup.procs");
        let file = fs::OpenOptions::new().write(true).open(&path);
        Ok(Some(file.map_err(io_at(format!("open {}", path.display())))?.into()))
    }

    /// Those that run now (or are frozen); the dead ones that nobody has waited for do not count.
    ///
    /// # Errors
    /// The host's control group, or without one its namespace or /proc, cannot be read.
    pub fn list(&self) -> Result<Vec<Process>, LabError> {
        let pids = match &self.cgroup {
            Some(dir) => pids_in_group(dir).map_err(io_at(format!("read {}/cgroup.procs", dir.display())))?,
            None => pids_in_netns(netns::inode(&self.netns)?).map_err(io_at("read /proc"))?,
        };
        Ok(pids.into_iter().map(|pid| Process { pid, program: program(pid) }).collect())
    }

    /// Stops every process where it is, and returns once all are still.
    ///
    /// # Errors
    /// They are not still within 20 s, or the control group cannot be used.
    pub fn freeze(&self) -> Result<(), LabError> {
        match &self.cgroup {
            Some(dir) => set_frozen(dir, true),
            None => self.signal_all(Signal::STOP, is_still),
        }
    }

    /// Lets every process go on.
    ///
    /// # Errors
    /// They do not go on within 20 s, or the control group cannot be used.
    pub fn thaw(&self) -> Result<(), LabError> {
        match &self.cgroup {
            Some(dir) => set_frozen(dir, false),
            None => self.signal_all(Signal::CONT, |pid| state(pid) != Some('T')),
        }
    }

    /// Whether they are frozen.
    ///
    /// # Errors
    /// It fails as [`HostProcesses::list`] does.
    pub fn frozen(&self) -> Result<bool, LabError> {
        match &self.cgroup {
            Some(dir) => {
                let path = dir.join("cgroup.events");
                let text = fs::read_to_string(&path).map_err(io_at(format!("read {}", path.display())))?;
                Ok(has(&text, "frozen", true))
            }
            None => {
                let all = self.list()?;
                Ok(!all.is_empty() && all.iter().all(|p| is_still(p.pid)))
            }
        }
    }

    /// Kills every process, frozen ones too, and returns once all are dead and their sockets and devices closed.
    ///
    /// # Errors
    /// They are not dead within 20 s, or the control group cannot be used.
    pub fn kill(&self) -> Result<(), LabError> {
        self.kill_then(|| {})
    }

    /// The same, and does something between the signal and the wait: what those need that cannot die yet.
    pub(crate) fn kill_then(&self, between: impl FnOnce()) -> Result<(), LabError> {
        match &self.cgroup {
            Some(dir) => {
                write(&dir.join("cgroup.kill"), "1")?;
                between();
                await_event(dir, "populated", false)?;
                // Who comes after is a new host: it is not born frozen.
                write(&dir.join("cgroup.freeze"), "0")
            }
            None => {
                between();
                self.signal_all(Signal::KILL, |pid| state(pid).is_none_or(|s| "ZX".contains(s)))
            }
        }
    }

    /// Kills the processes whose program's name begins with `program` and waits until they are dead. Returns how many
    /// there were.
    ///
    /// # Errors
    /// The processes cannot be listed or signalled, or one of them is not dead within 20 s.
    pub fn kill_program(&self, program: &str) -> Result<usize, LabError> {
        self.signal_program(program, Signal::KILL)
    }

    /// Asks the processes whose program's name begins with `program` to end (SIGTERM) and waits until they have.
    ///
    /// # Errors
    /// The processes cannot be listed or signalled, or one of them has not ended within 20 s.
    pub fn stop_program(&self, program: &str) -> Result<usize, LabError> {
        self.signal_program(program, Signal::TERM)
    }

    fn signal_program(&self, program: &str, signal: Signal) -> Result<usize, LabError> {
        let named = |what: String| io_at::<rustix::io::Errno>(format!("host {}: {what}", self.host));
        let mut handles = Vec::new();
        for process in self.list()?.into_iter().filter(|p| p.program.starts_with(program)) {
            let Some(pid) = i32::try_from(process.pid).ok().and_then(Pid::from_raw) else { continue };
            let handle = match pidfd_open(pid, PidfdFlags::empty()) {
                Err(rustix::io::Errno::SRCH) => continue,
                other => other.map_err(named(format!("pidfd_open of {pid:?}")))?,
            };
            // The number could have been reused between the listing and the handle; the handle holds it from now on.
            if self.list()?.contains(&process) {
                handles.push((process, handle));
            }
        }
        for (process, handle) in &handles {
            match pidfd_send_signal(handle, signal) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(e) => return Err(named(format!("signal to {}", process.program))(e)),
            }
        }
        for (process, handle) in &handles {
            let mut fds = [PollFd::new(handle, PollFlags::IN)];
            let ended = poll(&mut fds, Some(&timespec(PATIENCE))).map_err(named("poll of a pidfd".into()))?;
            if ended == 0 {
                return Err(LabError::Timeout {
                    what: format!("end of {} ({}) on host {}", process.program, process.pid, self.host),
                    after: PATIENCE,
                    detail: String::new(),
                });
            }
        }
        Ok(handles.len())
    }

    /// Without control groups: signals until a whole round finds every process signalled and done.
    fn signal_all(&self, signal: Signal, done: impl Fn(u32) -> bool) -> Result<(), LabError> {
        let deadline = Instant::now() + PATIENCE;
        let mut signalled = HashSet::new();
        loop {
            let mut open = self.list()?;
            open.retain(|p| !signalled.contains(&p.pid) || !done(p.pid));
            let Some(first) = open.first() else { return Ok(()) };
            for process in &open {
                if let Some(pid) = i32::try_from(process.pid).ok().and_then(Pid::from_raw) {
                    // It may have ended by itself.
                    let _ = rustix::process::kill_process(pid, signal);
                }
                signalled.insert(process.pid);
            }
            if Instant::now() > deadline {
                return Err(LabError::Timeout {
                    what: format!("effect of {signal:?} on {} of host {}", first.program, self.host),
                    after: PATIENCE,
                    detail: String::new(),
                });
            }
            std::thread::yield_now();
        }
    }
}

/// Whether a process that has been sent SIGSTOP is still. One in an uninterruptible sleep may be waiting for a stopped
/// child of vfork(2); it stops before its next instruction in user mode.
fn is_still(pid: u32) -> bool {
    state(pid).is_none_or(|s| "TtDZX".contains(s))
}

fn pids_in_group(dir: &Path) -> io::Result<Vec<u32>> {
    let text = fs::read_to_string(dir.join("cgroup.procs"))?;
    // 0 is shown for a process of another PID namespace: none of ours.
    Ok(text.lines().filter_map(|l| l.parse().ok()).filter(|pid| *pid != 0).collect())
}

fn pids_in_netns(inode: u64) -> io::Result<Vec<u32>> {
    let name = format!("net:[{inode}]");
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
        if fs::read_link(entry.path().join("ns/net")).is_ok_and(|l| l.as_os_str() == name.as_str()) {
            pids.push(pid);
        }
    }
    Ok(pids)
}

/// The program's file name; for a script or a program started by the dynamic linker what it calls itself.
fn program(pid: u32) -> String {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let exe = fs::read_link(proc.join("exe")).ok();
    let name = exe.as_deref().and_then(Path::file_name).and_then(|n| n.to_str()).unwrap_or("").to_owned();
    // A rebuilt program shows as "NAME (deleted)".
    let name = name.trim_end_matches(" (deleted)");
    if name.is_empty() || name.starts_with("ld-linux") || name.starts_with("ld-") {
        let comm = fs::read_to_string(proc.join("comm")).unwrap_or_default();
        return comm.trim_end().to_owned();
    }
    name.to_owned()
}

/// The state letter of proc_pid_stat(5); `None` when there is no such process.
fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

fn set_frozen(dir: &Path, frozen: bool) -> Result<(), LabError> {
    write(&dir.join("cgroup.freeze"), if frozen { "1" } else { "0" })?;
    await_event(dir, "frozen", frozen)
}

fn write(path: &Path, text: &str) -> Result<(), LabError> {
    fs::write(path, text).map_err(io_at(format!("write {text} to {}", path.display())))
}

fn has(events: &str, key: &str, value: bool) -> bool {
    events.lines().any(|l| l == format!("{key} {}", u8::from(value)))
}

/// Waits for a line of `cgroup.events`, whose changes poll(2) reports as `POLLPRI`.
fn await_event(dir: &Path, key: &str, value: bool) -> Result<(), LabError> {
    let path = dir.join("cgroup.events");
    let at = || format!("read {}", path.display());
    let mut file = File::open(&path).map_err(io_at(at()))?;
    let deadline = Instant::now() + PATIENCE;
    let mut text = String::new();
    loop {
        text.clear();
        file.rewind().and_then(|()| file.read_to_string(&mut text)).map_err(io_at(at()))?;
        if has(&text, key, value) {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(LabError::Timeout {
                what: format!("'{key} {}' in {}", u8::from(value), path.display()),
                after: PATIENCE,
                detail: String::new(),
            });
        }
        // Short enough that a notification lost between read and poll costs nothing that matters.
        let slice = timespec(left.min(Duration::from_millis(100)));
        poll(&mut [PollFd::from_borrowed_fd(file.as_fd(), PollFlags::PRI)], Some(&slice)).map_err(io_at(at()))?;
    }
}

pub(crate) fn timespec(d: Duration) -> Timespec {
    Timespec { tv_sec: d.as_secs() as i64, tv_nsec: i64::from(d.subsec_nanos()) }
}
