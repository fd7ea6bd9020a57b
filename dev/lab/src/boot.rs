//! The witness, the keepers and the VM of a lab.

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::net::{SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use ninefold_control::Client;
use ninefold_control::Request;
use ninefold_fault::{IN_VERSION, VARIABLE as FAULTS};
use ninefold_keeper::config::{Bindings, KeeperConfig, SecurityConfig, cache_dir};
use ninefold_model::event::{Event, EventKind};
use ninefold_model::health::Watchdog;
use ninefold_model::spec::{
    AccelChoice, Acknowledge, Boot, ClockGap, EpochPolicy, Hardware, Mac, Nic, NonVolatile, Peer, Policy, Protection,
    Timing, VmSpec, VolumeSpec,
};
use ninefold_model::{HostName, InvalidName, VmId, VmName, VolumeName};
use ninefold_transport::{Authority, Validity};

use crate::config::LabSecurity;
use crate::error::{LabError, io_at};
use crate::guest::Guest;
use crate::lab::Lab;
use crate::programs::{self, KEEPER, WITNESS_PROGRAM};
use crate::topology::{BRIDGE, CLIENT, GUEST_IP, GUEST_IP6, Network, WITNESS};
use crate::vm_dir::vm_dir_in;
use crate::watch::EventWatch;

/// Where the witness listens on its host.
pub const WITNESS_PORT: u16 = 7700;
/// Where each keeper accepts replication on its host.
pub const KEEPER_PORT: u16 = 7701;
/// Where each keeper serves its metrics on its host (replication network).
pub const METRICS_PORT: u16 = 7702;

/// The volume on which PostgreSQL has its data, bytes.
pub const DATA_VOLUME: u64 = 512 << 20;

/// A lab's VM.
#[derive(Debug, Clone)]
pub struct VmOptions {
    /// Made anew for each VM; whoever changes the name for another VM changes it, too ([`VmOptions::new_id`]).
    pub id: VmId,
    pub name: VmName,
    pub guest: Guest,
    pub mac: Mac,
    pub vcpus: u16,
    pub memory_mib: u64,
    pub accel: AccelChoice,
    /// Its disks. On the one called `data` the guest keeps what it acknowledges.
    pub volumes: Vec<VolumeSpec>,
    /// When a backup may acknowledge writes to them, where it is not in memory.
    pub acknowledge: BTreeMap<VolumeName, Acknowledge>,
    pub protection: Protection,
    /// Backups at once. The lab needs as many hosts more.
    pub backups: u8,
    pub watchdog: Option<Watchdog>,
    /// What becomes of the time in which it ran nowhere.
    pub clock_gap: ClockGap,
    /// What it starts from, if not the test guest.
    pub boot: Option<Boot>,
    /// It survives a loss of power.
    pub non_volatile: Option<NonVolatile>,
    pub epochs: EpochPolicy,
    pub timing: Timing,
    /// Another QEMU than the first on the PATH.
    pub qemu: Option<PathBuf>,
    /// How long booting and the first sync may take together.
    pub patience: Duration,
}

impl VmOptions {
    /// Debian with redis: one vCPU, 256 MiB, protected.
    pub fn new(name: VmName) -> Self {
        Self {
            id: Self::new_id(),
            name,
            guest: Guest::Basic,
            mac: Mac([0x52, 0x54, 0, 0x0f, 0x09, 0x10]),
            vcpus: 1,
            memory_mib: 256,
            accel: AccelChoice::Auto,
            volumes: Vec::new(),
            acknowledge: BTreeMap::new(),
            protection: Protection::FaultTolerant,
            backups: 1,
            watchdog: None,
            boot: None,
            clock_gap: ClockGap::default(),
            non_volatile: None,
            epochs: EpochPolicy::default(),
            timing: Timing::default(),
            qemu: None,
            patience: Duration::from_secs(120),
        }
    }

    /// An id that no other VM has. (Two hashes, each under keys of the kernel's random numbers.)
    #[must_use]
    pub fn new_id() -> VmId {
        let half = || u128::from(RandomState::new().build_hasher().finish());
        VmId::random(half() << 64 | half())
    }

    /// Debian with PostgreSQL: one vCPU, 512 MiB, a volume, protected.
    ///
    /// # Errors
    /// It does not fail: `data` can name a volume.
    pub fn postgres(name: VmName, acknowledge: Acknowledge) -> Result<Self, LabError> {
        let data: VolumeName =
            "data".parse().map_err(|e: InvalidName| LabError::Name { name: "data".into(), reason: e.to_string() })?;
        Ok(Self {
            guest: Guest::Postgres,
            memory_mib: 512,
            acknowledge: [(data.clone(), acknowledge)].into(),
            volumes: vec![VolumeSpec::new(data, DATA_VOLUME)],
            ..Self::new(name)
        })
    }

    /// What it boots from, the same on every host.
    fn image(&self) -> Result<Boot, LabError> {
        if let Some(boot) = &self.boot {
            return Ok(boot.clone());
        }
        let guest = self.guest.dir()?;
        // What the guest's recipe wants its kernel to be told; a guest that says nothing still has a console.
        let wanted = fs::read_to_string(guest.join("cmdline")).unwrap_or_else(|_| "console=ttyS0".into());
        Ok(Boot::Linux {
            kernel: guest.join("vmlinuz"),
            initrd: Some(guest.join("initrd.img")),
            cmdline: format!("{} nf.name={} nf.ip={GUEST_IP}/24 nf.ip6={GUEST_IP6}/64", wanted.trim(), self.name),
        })
    }

    fn hardware(&self, boot: &Boot) -> Hardware {
        Hardware {
            arch: Default::default(),
            vcpus: self.vcpus,
            memory_mib: self.memory_mib,
            accel: self.accel,
            boot: boot.kind(),
            nics: vec![Nic { mac: self.mac }],
            volumes: self.volumes.clone(),
            watchdog: self.watchdog.as_ref().map(|w| w.device),
            uuid: None,
        }
    }

    fn policy(&self, peers: Vec<Peer>, witness: Peer) -> Policy {
        Policy {
            protection: self.protection,
            backups: self.backups,
            epochs: self.epochs,
            timing: self.timing,
            clock_gap: self.clock_gap,
            watchdog: self.watchdog.as_ref().map(|w| w.policy.clone()),
            non_volatile: self.non_volatile,
            acknowledge: self.acknowledge.clone(),
            peers,
            witness: Some(witness),
        }
    }
}

/// A VM that runs.
#[derive(Debug)]
pub struct BootedVm {
    /// What all keepers say, from now on.
    pub events: EventWatch,
    /// From asking for the start to the first answer of the guest's service.
    pub boot: Duration,
    /// From the first answer to `Protected`; `None` if protection was not asked for.
    pub sync: Option<Duration>,
}

/// The guest's redis, as the client sees it.
pub fn redis() -> SocketAddr {
    Guest::Basic.service()
}

impl Lab {
    /// Boots the VM on `host`: starts the witness and all keepers, waits until its service answers the client and, if
    /// protection is asked for, until the VM is protected.
    ///
    /// # Errors
    /// The host is not one of the lab's for VMs; a configuration cannot be written; the witness, a keeper or the VM does not
    /// start; or, within [`VmOptions::patience`], the guest's service does not answer or the VM is not protected.
    pub fn boot_vm(&self, host: &str, options: &VmOptions) -> Result<BootedVm, LabError> {
        self.vm_host(host)?;
        let deadline = Instant::now() + options.patience;
        self.configure_vm(options)?;
        self.start_witness()?;
        for host in &self.topology().hosts {
            self.start_keeper(host.as_str())?;
        }
        let events = EventWatch::start(self);
        let begin = Instant::now();
        self.ask(host, &Request::Start { force: false })?;
        let netns = self.netns(CLIENT)?;
        if !options.guest.await_answer(&netns, deadline)? {
            return Err(self.no("answer of the guest's service", options.patience, &events));
        }
        let boot = begin.elapsed();
        let mut sync = None;
        if options.protection == Protection::FaultTolerant {
            let is_protected = |e: &Event| matches!(e.kind, EventKind::Protected { .. });
            if events.wait_for(0, deadline, is_protected).is_none() {
                return Err(self.no("'protected' event", options.patience, &events));
            }
            sync = Some(begin.elapsed().saturating_sub(boot));
        }
        Ok(BootedVm { events, boot, sync })
    }

    /// A time-out's error with all that may tell why: the events, and the ends of the logs.
    fn no(&self, what: &str, after: Duration, events: &EventWatch) -> LabError {
        let mut detail = String::new();
        for event in events.all() {
            detail += &format!("\n  {}: {:?}", event.host, event.kind);
        }
        detail += &self.logs_for_error();
        LabError::Timeout { what: what.to_owned(), after, detail }
    }

    /// The ends of the keepers' and the witness's logs.
    pub fn logs_for_error(&self) -> String {
        let mut all = String::new();
        for node in self.topology().nodes() {
            for log in ["keeper.log", "witness.log"] {
                let tail = self.log_tail(node, log, 15);
                if !tail.is_empty() {
                    all += &format!("\n--- {node}/{log}\n{tail}");
                }
            }
        }
        all
    }

    /// Writes each host's keeper configuration and, if hosts prove who they are, their certificates.
    ///
    /// # Errors
    /// The guest has not been built, or a certificate or configuration cannot be written.
    pub fn configure_vm(&self, options: &VmOptions) -> Result<(), LabError> {
        self.certify()?;
        for host in &self.topology().hosts {
            let run_dir = self.run_dir(host.as_str());
            let peers = self.topology().hosts.iter().filter(|h| *h != host);
            let peers = peers.map(|h| self.peer(h, KEEPER_PORT)).collect::<Result<_, _>>()?;
            let witness = self.peer(&name(WITNESS)?, WITNESS_PORT)?;
            let (kernel, initrd, image) = match options.image()? {
                Boot::Linux { kernel, initrd, .. } => (Some(kernel), initrd, None),
                Boot::BootSector { image } => (None, None, Some(image)),
                Boot::Volume => (None, None, None),
            };
            let config = KeeperConfig {
                vm: VmSpec {
                    id: options.id,
                    name: options.name.clone(),
                    hardware: options.hardware(&options.image()?),
                    policy: options.policy(peers, witness),
                },
                host: Bindings {
                    name: host.clone(),
                    kernel,
                    initrd,
                    image,
                    bridges: vec![BRIDGE.to_owned()],
                    qemu: options.qemu.clone().unwrap_or_else(|| "qemu-system-x86_64".into()),
                    cache_dir: cache_dir(),
                    pool: self.pool_dir(host.as_str()),
                    dumps: self.dumps_dir(host.as_str()),
                    image_record: None,
                    listen: self.endpoint(host.as_str(), KEEPER_PORT)?,
                    security: match self.record().security {
                        LabSecurity::MutualTls => SecurityConfig::MutualTls { identity: run_dir.join("identity") },
                        LabSecurity::PlainText => SecurityConfig::PlainText,
                    },
                    metrics: Some(self.endpoint(host.as_str(), METRICS_PORT)?),
                    uplink: Some(Network::Public.interface().to_owned()),
                    run_dir: run_dir.clone(),
                },
            };
            let path = run_dir.join("keeper.json");
            let json = serde_json::to_vec_pretty(&config).map_err(|e| io_at("write keeper.json")(e))?;
            fs::write(&path, json).map_err(io_at(format!("write {}", path.display())))?;
        }
        Ok(())
    }

    /// The storage pool of a host.
    pub fn pool_dir(&self, host: &str) -> PathBuf {
        self.disk_dir(host).join("pool")
    }

    /// Where memory dumps of a host's VM are.
    pub fn dumps_dir(&self, host: &str) -> PathBuf {
        self.run_dir(host).join("dumps")
    }

    fn certify(&self) -> Result<(), LabError> {
        if self.record().security == LabSecurity::PlainText || self.run_dir(WITNESS).join("identity").exists() {
            return Ok(());
        }
        let failed = |e: &dyn std::fmt::Display| LabError::Command {
            what: "making the hosts' certificates".into(),
            detail: e.to_string(),
        };
        let validity = Validity::days(365);
        let authority = Authority::create(self.dir().join("authority"), validity).map_err(|e| failed(&e))?;
        let hosts = self.topology().hosts.iter().cloned().chain([name(WITNESS)?]);
        for host in hosts {
            let dir = self.run_dir(host.as_str()).join("identity");
            authority.issue(&host, dir, validity).map_err(|e| failed(&e))?;
        }
        Ok(())
    }

    fn endpoint(&self, host: &str, port: u16) -> Result<SocketAddr, LabError> {
        let address = self.topology().address(host);
        address.map(|ip| SocketAddrV4::new(ip, port).into()).ok_or_else(|| LabError::Host {
            host: host.to_owned(),
            what: "is not on the replication network".to_owned(),
        })
    }

    fn peer(&self, host: &HostName, port: u16) -> Result<Peer, LabError> {
        Ok(Peer { host: host.clone(), addr: self.endpoint(host.as_str(), port)?.into() })
    }

    /// Whether a host has been given a keeper.
    pub fn has_keeper(&self, host: &str) -> bool {
        self.run_dir(host).join("keeper.json").exists()
    }

    /// The hosts that have been given a keeper.
    pub fn hosts_with_keepers(&self) -> impl Iterator<Item = &str> {
        self.topology().hosts.iter().map(HostName::as_str).filter(|host| self.has_keeper(host))
    }

    /// The run directories of all of them, as [`crate::lab::RUN_DIR`] tells the command `ninefold`; `None` when the lab has no VM.
    pub fn run_dirs(&self) -> Option<String> {
        let dirs: Vec<_> = self.hosts_with_keepers().map(|host| self.run_dir(host).display().to_string()).collect();
        (!dirs.is_empty()).then(|| dirs.join(":"))
    }

    /// A client of a host's keeper.
    ///
    /// # Errors
    /// The lab has no such host, or the host is not one for VMs.
    pub fn keeper(&self, host: &str) -> Result<Client, LabError> {
        self.vm_host(host)?;
        Ok(Client::new(&self.vm_dir(host)?))
    }

    /// Where a host's VM has its sockets. The VM is the one that the host was configured for last.
    ///
    /// # Errors
    /// The host was given none.
    pub fn vm_dir(&self, host: &str) -> Result<PathBuf, LabError> {
        vm_dir_in(&self.run_dir(host))
    }

    /// Has a host's keeper carry out a request. Waits for the end of a start; what else is an operation is begun.
    ///
    /// # Errors
    /// It refuses, or the start fails.
    pub fn ask(&self, host: &str, request: &Request) -> Result<(), LabError> {
        let keeper = self.keeper(host)?;
        let done = match request {
            Request::Start { .. } => keeper.carry_out(request).map(drop),
            request => keeper.command(request),
        };
        done.map_err(|error| LabError::Host {
            host: host.to_owned(),
            what: format!("{error}{}", self.logs_for_error()),
        })
    }

    /// Starts a host's keeper and waits until it answers.
    ///
    /// # Errors
    /// The host is not one of the lab's for VMs, the keeper's program is not found, or the keeper ends or does not answer within
    /// 20 s.
    pub fn start_keeper(&self, host: &str) -> Result<(), LabError> {
        self.start_keeper_with_faults(host, "")
    }

    /// The same with fault points set: see `ninefold_fault`. A keeper that dies before it answers has not come up.
    ///
    /// # Errors
    /// Also when fault points are wanted and the keeper's program has none.
    pub fn start_keeper_with_faults(&self, host: &str, faults: &str) -> Result<(), LabError> {
        let client = self.keeper(host)?;
        let run_dir = self.run_dir(host);
        let mut command = self.program(host, KEEPER)?;
        // Only what is asked for here, and not what the lab's own environment says.
        command.arg("--config").arg(run_dir.join("keeper.json")).env_remove(FAULTS);
        if !faults.is_empty() {
            self.with_fault_points(host, KEEPER)?;
            command.env(FAULTS, faults);
        }
        let pid = self.spawn(host, command, "keeper.log")?;
        let deadline = Instant::now() + Duration::from_secs(20);
        while client.status().is_err() {
            if self.has_ended(pid) || Instant::now() > deadline {
                return Err(self.not_started(host, KEEPER, "keeper.log"));
            }
            // A keeper does not tell when it listens; it takes a few of these.
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Ends a host's keeper in an orderly way (SIGTERM) and waits until it has ended.
    ///
    /// # Errors
    /// The lab has no such host, or the keeper has not ended within 20 s.
    pub fn stop_keeper(&self, host: &str) -> Result<(), LabError> {
        self.processes(host)?.stop_program(KEEPER)?;
        self.reap();
        Ok(())
    }

    /// Starts the witness, on the register that it left if it ran before, and waits until it listens.
    ///
    /// # Errors
    /// A certificate cannot be made, the witness's program is not found, or the witness ends or does not listen within 20 s.
    pub fn start_witness(&self) -> Result<(), LabError> {
        self.certify()?;
        let run_dir = self.run_dir(WITNESS);
        let mut command = self.program(WITNESS, WITNESS_PROGRAM)?;
        command.args(["--listen", &self.endpoint(WITNESS, WITNESS_PORT)?.to_string()]);
        command.arg("--data").arg(self.disk_dir(WITNESS).join("register"));
        match self.record().security {
            LabSecurity::MutualTls => command.arg("--identity").arg(run_dir.join("identity")),
            LabSecurity::PlainText => command.args(["--plain-text", WITNESS]),
        };
        let pid = self.spawn(WITNESS, command, "witness.log")?;
        match self.await_listener(WITNESS, WITNESS_PORT, || self.has_ended(pid))? {
            true => Ok(()),
            false => Err(self.not_started(WITNESS, WITNESS_PROGRAM, "witness.log")),
        }
    }

    /// Ends the witness in an orderly way and waits until it has ended.
    ///
    /// # Errors
    /// The witness has not ended within 20 s.
    pub fn stop_witness(&self) -> Result<(), LabError> {
        self.processes(WITNESS)?.stop_program(WITNESS_PROGRAM)?;
        self.reap();
        Ok(())
    }

    /// Kills the witness; its register stays on the disk.
    ///
    /// # Errors
    /// The witness is not dead within 20 s.
    pub fn kill_witness(&self) -> Result<(), LabError> {
        self.processes(WITNESS)?.kill_program(WITNESS_PROGRAM)?;
        self.reap();
        Ok(())
    }

    fn program(&self, host: &str, program: &str) -> Result<Command, LabError> {
        self.command(host, programs::find(program, self.record().bin_dir.as_deref())?)
    }

    /// Refuses a program that would not even look at what it is told to suffer.
    fn with_fault_points(&self, host: &str, program: &str) -> Result<(), LabError> {
        let path = programs::find(program, self.record().bin_dir.as_deref())?;
        let said = Command::new(&path).arg("--version").output();
        let said = said.map_err(io_at(format!("start {}", path.display())))?;
        if String::from_utf8_lossy(&said.stdout).contains(IN_VERSION) {
            return Ok(());
        }
        let what = format!(
            "{} has no fault points: build it with `cargo build -p {program} --features fault-points`, with --release if this one is from there",
            path.display()
        );
        Err(LabError::Host { host: host.to_owned(), what })
    }

    fn not_started(&self, host: &str, program: &str, log: &str) -> LabError {
        let tail = self.log_tail(host, log, 15);
        LabError::Host { host: host.to_owned(), what: format!("{program} does not come up; its log ends with\n{tail}") }
    }
}

fn name(host: &str) -> Result<HostName, LabError> {
    host.parse().map_err(|_| LabError::Name { name: host.to_owned(), reason: "not a host name".into() })
}
