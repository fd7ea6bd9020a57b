//! A lab: made, found again, used and removed.

use std::fs;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::config::LabConfig;
use crate::disks;
use crate::error::{LabError, io_at};
use crate::netns;
use crate::processes::{HostProcesses, cgroup_mount};
use crate::record::{LabRecord, Owner, lab_dir};
use crate::teardown::{self, Guardian};
use crate::topology::{CLIENT, Topology, WITNESS};

/// The environment variable in which the command `ninefold` finds its keepers' run directories, separated by colons.
pub const RUN_DIR: &str = "NINEFOLD_RUN_DIR";

/// Hosts in network namespaces, with a public and a replication network, a witness's host and a client's host.
///
/// A lab that is not persistent is taken down when this value is dropped or its process ends, however it ends.
#[derive(Debug)]
pub struct Lab {
    record: LabRecord,
    /// Only the maker of a lab that is not persistent has one.
    guardian: Option<Guardian>,
    /// Where logs go when the owner panics.
    debris: Option<PathBuf>,
    /// Processes that this value started, to be waited for.
    children: Mutex<Vec<Child>>,
}

impl Lab {
    /// Makes a lab. If it cannot, or is interrupted, nothing of it stays.
    ///
    /// # Errors
    /// This process is not root's, a name cannot be used, a lab of this name is up already, or the namespaces, control groups or
    /// disks cannot be made.
    pub fn up(config: &LabConfig) -> Result<Self, LabError> {
        if !rustix::process::geteuid().is_root() {
            return Err(LabError::NotRoot);
        }
        let topology = Topology::new(&config.name, &config.hosts)?;
        // What others left is no reason not to begin.
        if let Err(error) = Self::sweep() {
            tracing::warn!(%error, "a stale lab cannot be removed");
        }
        let owner = Owner::current();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let record = LabRecord {
            persistent: config.persistent,
            owner,
            token: format!("{}-{}-{}", owner.pid, owner.start, now.as_nanos()),
            cgroup: cgroup_mount()
                .filter(|_| config.control_groups)
                .map(|m| m.join(format!("ninefold-{}", topology.lab))),
            security: config.security,
            disks: config.disks,
            apart: config.apart,
            bin_dir: config.bin_dir.clone(),
            topology,
        };
        let dir = lab_dir(&record.topology.lab);
        let script = teardown::script(&record.topology, record.cgroup.as_deref(), &dir);
        let guardian = Guardian::watch(&script, &dir, &record.token)?;
        record.create(&script)?;
        let mut lab = Self {
            record,
            guardian: Some(guardian),
            debris: config.debris.clone().or_else(default_debris),
            children: Mutex::default(),
        };
        lab.build()?;
        if config.persistent
            && let Some(guardian) = lab.guardian.take()
        {
            guardian.dismiss()?;
        }
        Ok(lab)
    }

    /// Finds a lab that is up. Dropping what this returns does not take it down.
    ///
    /// # Errors
    /// There is no lab of this name, or its record cannot be read.
    pub fn attach(name: &str) -> Result<Self, LabError> {
        // The name becomes part of a path.
        let record = match name.parse::<ninefold_model::HostName>() {
            Ok(_) => LabRecord::load(name)?,
            Err(_) => return Err(LabError::NotFound(name.chars().take(40).collect())),
        };
        Ok(Self { record, guardian: None, debris: None, children: Mutex::default() })
    }

    /// The labs on this machine, by name.
    pub fn list() -> Vec<String> {
        LabRecord::names()
    }

    /// Takes down every lab whose owner is gone although it should have gone with it (the guardian was killed too).
    /// Returns their names.
    ///
    /// # Errors
    /// A stale lab cannot be taken down. What is left of one that another process takes down at the same time is no error.
    pub fn sweep() -> Result<Vec<String>, LabError> {
        disks::sweep();
        let mut swept = Vec::new();
        for name in LabRecord::names() {
            // One without a readable record is being removed at this moment or is none of ours.
            let Ok(lab) = Self::attach(&name) else { continue };
            if !lab.record.persistent && !lab.record.owner.alive() {
                match lab.down() {
                    Ok(()) => swept.push(name),
                    // Its guardian or another sweep is at it too, and will finish.
                    Err(LabError::Left { .. }) => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(swept)
    }

    /// Takes the lab down: processes, namespaces, control groups, files.
    ///
    /// # Errors
    /// The commands that take it down cannot be run, or something of it is left ([`LabError::Left`]).
    pub fn down(mut self) -> Result<(), LabError> {
        match self.guardian.take() {
            Some(mut guardian) => guardian.finish()?,
            None => {
                let path = self.dir().join("teardown.sh");
                match fs::read_to_string(&path) {
                    Ok(script) => teardown::run(&script)?,
                    // Somebody else has been quicker.
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                    Err(e) => return Err(io_at(format!("read {}", path.display()))(e)),
                }
            }
        }
        self.reap();
        let mut left: Vec<PathBuf> = self.topology().namespaces().iter().map(|n| netns::path(n)).collect();
        left.extend(self.record.cgroup.clone());
        left.push(disks::images(self.name()));
        left.push(self.dir());
        left.retain(|path| path.exists());
        match left.first() {
            None => Ok(()),
            Some(path) => Err(LabError::Left { lab: self.name().to_owned(), what: path.display().to_string() }),
        }
    }

    /// The lab's name.
    pub fn name(&self) -> &str {
        &self.record.topology.lab
    }

    /// Names and addresses.
    pub fn topology(&self) -> &Topology {
        &self.record.topology
    }

    /// What the lab has written down about itself.
    pub fn record(&self) -> &LabRecord {
        &self.record
    }

    /// `/run/ninefold-lab/LAB`.
    pub fn dir(&self) -> PathBuf {
        lab_dir(self.name())
    }

    /// A host's run directory: the keeper's configuration, sockets, certificates, logs.
    pub fn run_dir(&self, host: &str) -> PathBuf {
        self.dir().join(host)
    }

    /// The network namespace of a host.
    ///
    /// # Errors
    /// The lab has no such host.
    pub fn netns(&self, host: &str) -> Result<String, LabError> {
        self.check(host)?;
        Ok(self.topology().netns(host))
    }

    /// The processes of a host.
    ///
    /// # Errors
    /// The lab has no such host.
    pub fn processes(&self, host: &str) -> Result<HostProcesses, LabError> {
        Ok(HostProcesses::new(host, &self.netns(host)?, self.record.cgroup.as_deref()))
    }

    /// A command that will run as a process of this host: in its namespace, and frozen and killed with it. The command `ninefold` asks
    /// this host's own keeper there, if it has one.
    ///
    /// # Errors
    /// The lab has no such host, its namespace or control group cannot be opened, or it cannot be found out what the host may
    /// see.
    pub fn command(&self, host: &str, program: impl AsRef<std::ffi::OsStr>) -> Result<Command, LabError> {
        let mut command = Command::new(program);
        if self.has_keeper(host) {
            command.env(RUN_DIR, self.run_dir(host));
        }
        netns::confine(&mut command, Some(&self.netns(host)?), self.processes(host)?.join_by()?)?;
        self.restrict(&mut command, host)?;
        Ok(command)
    }

    /// Starts a process of this host that goes on in the background; its output goes to `LOG` in the host's run
    /// directory. Returns its process number.
    ///
    /// # Errors
    /// The log cannot be opened, or the program cannot be started.
    pub fn spawn(&self, host: &str, mut command: Command, log: &str) -> Result<u32, LabError> {
        let path = self.run_dir(host).join(log);
        let file = fs::OpenOptions::new().append(true).create(true).open(&path);
        let file = file.map_err(io_at(format!("open {}", path.display())))?;
        let clone = file.try_clone().map_err(io_at("duplicate a descriptor"))?;
        command.stdin(Stdio::null()).stdout(clone).stderr(file);
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command.spawn().map_err(io_at(format!("start {name} on host {host}")))?;
        let pid = child.id();
        self.children().push(child);
        Ok(pid)
    }

    /// Copies every log of the lab to a directory.
    ///
    /// # Errors
    /// A host's directory cannot be read, or a file cannot be copied.
    pub fn save_logs(&self, to: &Path) -> Result<(), LabError> {
        for node in self.topology().nodes() {
            let from = self.run_dir(node);
            for entry in fs::read_dir(&from).map_err(io_at(format!("read {}", from.display())))?.flatten() {
                let name = entry.file_name();
                if Path::new(&name).extension().is_some_and(|e| e == "log" || e == "json") {
                    let into = to.join(node);
                    fs::create_dir_all(&into).map_err(io_at(format!("make {}", into.display())))?;
                    fs::copy(entry.path(), into.join(&name))
                        .map_err(io_at(format!("copy {}", entry.path().display())))?;
                }
            }
        }
        Ok(())
    }

    /// The last lines of a host's log, for error messages. Empty if there is none.
    pub fn log_tail(&self, host: &str, log: &str, lines: usize) -> String {
        let text = fs::read(self.run_dir(host).join(log)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text[text.len().saturating_sub(64 << 10)..]).into_owned();
        let all: Vec<_> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Waits for those of our children that have ended, so that none stays as a zombie.
    pub(crate) fn reap(&self) {
        self.children().retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    }

    /// Whether a child that this value started has ended; `false` for any other process.
    pub(crate) fn has_ended(&self, pid: u32) -> bool {
        self.children().iter_mut().find(|c| c.id() == pid).is_some_and(|c| matches!(c.try_wait(), Ok(Some(_))))
    }

    fn children(&self) -> std::sync::MutexGuard<'_, Vec<Child>> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn check(&self, host: &str) -> Result<(), LabError> {
        match self.topology().nodes().any(|n| n == host) {
            true => Ok(()),
            false => Err(LabError::NoHost { lab: self.name().to_owned(), host: host.chars().take(40).collect() }),
        }
    }

    fn build(&self) -> Result<(), LabError> {
        let topology = self.topology();
        if let Some(lab) = &self.record.cgroup {
            // The set-up's own commands are in a group too: an interrupted set-up is killed with the lab.
            for group in topology.nodes().chain(["setup"]) {
                let dir = lab.join(group);
                fs::create_dir_all(&dir).map_err(io_at(format!("make the control group {}", dir.display())))?;
            }
        }
        self.ip(&[], &topology.cables())?;
        for (netns, batch) in topology.interiors() {
            netns::io_in_netns(&netns, "set the kernel's network parameters", || sysctls(&netns))?;
            self.ip(&["-n", &netns], &batch)?;
        }
        if self.record.disks {
            self.make_disks()?;
        }
        Ok(())
    }

    /// Runs a batch of ip(8).
    fn ip(&self, arguments: &[&str], batch: &str) -> Result<(), LabError> {
        let group = match &self.record.cgroup {
            Some(dir) => {
                let procs = dir.join("setup/cgroup.procs");
                let file = fs::OpenOptions::new().write(true).open(&procs);
                Some(OwnedFd::from(file.map_err(io_at(format!("open {}", procs.display())))?))
            }
            None => None,
        };
        let mut command = Command::new("ip");
        command.args(arguments).args(["-batch", "-"]);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        netns::confine(&mut command, None, group)?;
        let what = format!("ip {} -batch", arguments.join(" "));
        let mut child = command.spawn().map_err(io_at(format!("start {what}")))?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(batch.as_bytes()).map_err(io_at(format!("write to {what}")))?;
        }
        let output = child.wait_with_output().map_err(io_at(format!("wait for {what}")))?;
        match output.status.success() {
            true => Ok(()),
            false => {
                let detail = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                Err(LabError::Command { what, detail })
            }
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let Some(mut guardian) = self.guardian.take() else { return };
        if std::thread::panicking()
            && let Some(debris) = &self.debris
        {
            let to = debris.join(self.name());
            if self.save_logs(&to).is_ok() {
                tracing::warn!(logs = %to.display(), "the lab's logs are kept");
            }
        }
        if let Err(error) = guardian.finish() {
            tracing::warn!(lab = self.name(), %error, "the lab is not taken down");
        }
        self.reap();
    }
}

/// Sets kernel parameters of the namespace in which the calling thread is.
fn sysctls(netns: &str) -> std::io::Result<()> {
    let set = |name: &str, value: &str| fs::write(Path::new("/proc/sys/net").join(name), value);
    // The same everywhere, whatever this machine's own setting: Linux's default, or else what every namespace may have.
    set("ipv4/tcp_congestion_control", "cubic").or_else(|_| set("ipv4/tcp_congestion_control", "reno"))?;
    if netns.ends_with(&format!("-{CLIENT}")) {
        // Addresses are usable at once.
        for which in ["all", "default"] {
            set(&format!("ipv6/conf/{which}/accept_dad"), "0")?;
            set(&format!("ipv6/conf/{which}/router_solicitations"), "0")?;
        }
        return Ok(());
    }
    // Hosts and switches themselves say nothing on the public network; their bridges pass the guest's IPv6.
    for which in ["all", "default"] {
        set(&format!("ipv6/conf/{which}/disable_ipv6"), "1")?;
    }
    // The connections of killed processes belong to nobody. On a host without power they would be gone; here they must
    // not last until the host is back.
    set("ipv4/tcp_orphan_retries", "1")
}

/// Where Cargo builds: CARGO_TARGET_DIR, or what is above the running program.
fn default_debris() -> Option<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from).or_else(|| {
        let exe = std::env::current_exe().ok()?;
        exe.ancestors().find(|a| a.file_name().is_some_and(|n| n == "target")).map(Path::to_owned)
    })?;
    Some(target.join("lab-debris"))
}

impl Lab {
    /// Refuses a host that is not there for VMs.
    pub(crate) fn vm_host(&self, host: &str) -> Result<(), LabError> {
        self.check(host)?;
        match [WITNESS, CLIENT].contains(&host) {
            false => Ok(()),
            true => Err(LabError::Host { host: host.to_owned(), what: "runs no VMs".to_owned() }),
        }
    }
}
