//! What is done to a lab.

use std::fmt;

use ninefold_model::HostName;
use serde::{Deserialize, Serialize};

use crate::faults::Cut;
use crate::topology::{Network, WITNESS};

/// A fault. Each has a beginning and an end; what has died is started again at its end.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "fault", rename_all = "snake_case")]
pub enum Fault {
    /// The QEMU of a host is killed. Its keeper lives on.
    KillQemu {
        host: HostName,
    },
    KillKeeper {
        host: HostName,
    },
    /// A host loses its power, and with it what its disk had not synced.
    KillHost {
        host: HostName,
    },
    /// All hosts lose their power, in this order and so long one after the other, milliseconds; none comes back before the last has lost
    /// it. The backup first: that is the backup lost, and then the primary's power.
    PowerLoss {
        hosts: Vec<HostName>,
        apart_ms: u64,
    },
    /// The process is killed that holds the memory of a host's standby, so that it outlives its keeper.
    KillMemory {
        host: HostName,
    },
    /// All processes of a host stand still.
    Freeze {
        host: HostName,
    },
    /// A host is cut off from a network.
    Cut {
        host: HostName,
        network: Network,
        how: Cut,
    },
    /// The witness is away.
    Witness {
        how: Away,
    },
    /// A host's disk writes so much a second, KiB.
    SlowDisk {
        host: HostName,
        kib_per_s: u64,
    },
    /// A host's disk has no room left.
    FullDisk {
        host: HostName,
    },
    /// A host's disk gives I/O errors, whatever it is asked. At the end the host loses its power, and gets it back with a disk that works.
    BrokenDisk {
        host: HostName,
    },
    /// A host's disk does not answer. The host may be the witness's.
    HungDisk {
        host: HostName,
    },
    /// So many threads of the machine do nothing but calculate.
    Processor {
        threads: u64,
    },
    /// So much memory is written again and again, MiB.
    Memory {
        mib: u64,
    },
    /// Not a fault: the guest overwrites so much of its second volume, past its page cache, and flushes it, MiB.
    Writes {
        mib: u64,
    },
    /// Not a fault: the primary is asked to hand the VM over.
    Switchover,
}

/// How the witness goes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Away {
    Killed,
    Frozen,
    CutOff,
    /// Its host loses its power.
    Unpowered,
}

/// What a fault takes for itself: no two faults have the same at a time.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Resource {
    Processes(HostName),
    /// The process that holds a standby's memory.
    Custodian(HostName),
    Cable(HostName, bool),
    Disk(String),
    Witness,
    Processor,
    Memory,
    Guest,
    Role,
}

/// The kinds of fault, for counting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    KillQemu,
    KillKeeper,
    KillHost,
    PowerLoss,
    KillMemory,
    Freeze,
    Cut,
    Blackhole,
    Witness,
    SlowDisk,
    FullDisk,
    BrokenDisk,
    HungDisk,
    Processor,
    Memory,
    Writes,
    Switchover,
}

impl Kind {
    pub const ALL: [Kind; 17] = [
        Kind::KillQemu,
        Kind::KillKeeper,
        Kind::KillHost,
        Kind::PowerLoss,
        Kind::KillMemory,
        Kind::Freeze,
        Kind::Cut,
        Kind::Blackhole,
        Kind::Witness,
        Kind::SlowDisk,
        Kind::FullDisk,
        Kind::BrokenDisk,
        Kind::HungDisk,
        Kind::Processor,
        Kind::Memory,
        Kind::Writes,
        Kind::Switchover,
    ];

    /// Needs hosts with disks of their own.
    pub fn needs_disk(self) -> bool {
        matches!(self, Kind::PowerLoss | Kind::SlowDisk | Kind::FullDisk | Kind::BrokenDisk | Kind::HungDisk)
    }

    /// Takes the VM's state from a host's memory.
    pub fn kills(self) -> bool {
        matches!(self, Kind::KillQemu | Kind::KillKeeper | Kind::KillHost | Kind::PowerLoss | Kind::BrokenDisk)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::KillQemu => "QEMU killed",
            Kind::KillKeeper => "keeper killed",
            Kind::KillHost => "host without power",
            Kind::PowerLoss => "all hosts without power",
            Kind::KillMemory => "holder of standby's memory killed",
            Kind::Freeze => "host frozen",
            Kind::Cut => "cable without carrier",
            Kind::Blackhole => "cable that drops everything",
            Kind::Witness => "witness away",
            Kind::SlowDisk => "slow disk",
            Kind::FullDisk => "full disk",
            Kind::BrokenDisk => "disk with I/O errors",
            Kind::HungDisk => "hung disk",
            Kind::Processor => "processors busy",
            Kind::Memory => "memory busy",
            Kind::Writes => "guest writes much",
            Kind::Switchover => "switchover",
        })
    }
}

impl Fault {
    pub fn kind(&self) -> Kind {
        match self {
            Fault::KillQemu { .. } => Kind::KillQemu,
            Fault::KillKeeper { .. } => Kind::KillKeeper,
            Fault::KillHost { .. } => Kind::KillHost,
            Fault::PowerLoss { .. } => Kind::PowerLoss,
            Fault::KillMemory { .. } => Kind::KillMemory,
            Fault::Freeze { .. } => Kind::Freeze,
            Fault::Cut { how: Cut::Carrier, .. } => Kind::Cut,
            Fault::Cut { how: Cut::Blackhole, .. } => Kind::Blackhole,
            Fault::Witness { .. } => Kind::Witness,
            Fault::SlowDisk { .. } => Kind::SlowDisk,
            Fault::FullDisk { .. } => Kind::FullDisk,
            Fault::BrokenDisk { .. } => Kind::BrokenDisk,
            Fault::HungDisk { .. } => Kind::HungDisk,
            Fault::Processor { .. } => Kind::Processor,
            Fault::Memory { .. } => Kind::Memory,
            Fault::Writes { .. } => Kind::Writes,
            Fault::Switchover => Kind::Switchover,
        }
    }

    /// What both take for themselves.
    pub fn shares(&self, other: &Self) -> Option<Resource> {
        let theirs = other.resources();
        self.resources().into_iter().find(|ours| theirs.contains(ours))
    }

    /// What it takes for itself.
    fn resources(&self) -> Vec<Resource> {
        let disk = |host: &HostName| Resource::Disk(host.to_string());
        match self {
            Fault::KillQemu { host }
            | Fault::KillKeeper { host }
            | Fault::KillHost { host }
            | Fault::Freeze { host } => vec![Resource::Processes(host.clone())],
            Fault::PowerLoss { hosts, .. } => hosts.iter().cloned().map(Resource::Processes).collect(),
            Fault::BrokenDisk { host } => vec![Resource::Processes(host.clone()), disk(host)],
            Fault::KillMemory { host } => vec![Resource::Custodian(host.clone())],
            Fault::Cut { host, network, .. } => vec![Resource::Cable(host.clone(), *network == Network::Public)],
            // A witness whose disk hangs cannot be killed or frozen.
            Fault::HungDisk { host } if host.as_str() == WITNESS => vec![Resource::Witness],
            Fault::Witness { .. } => vec![Resource::Witness],
            Fault::SlowDisk { host, .. } | Fault::FullDisk { host } | Fault::HungDisk { host } => vec![disk(host)],
            Fault::Processor { .. } => vec![Resource::Processor],
            Fault::Memory { .. } => vec![Resource::Memory],
            Fault::Writes { .. } => vec![Resource::Guest],
            Fault::Switchover => vec![Resource::Role],
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::KillQemu { host } => write!(f, "QEMU of {host} is killed"),
            Fault::KillKeeper { host } => write!(f, "keeper of {host} is killed"),
            Fault::KillHost { host } => write!(f, "host {host} loses its power"),
            Fault::PowerLoss { hosts, apart_ms } => {
                let hosts: Vec<_> = hosts.iter().map(HostName::as_str).collect();
                write!(f, "hosts {} lose their power, {apart_ms} ms apart", hosts.join(", "))
            }
            Fault::KillMemory { host } => write!(f, "holder of the memory of {host}'s standby is killed"),
            Fault::Freeze { host } => write!(f, "host {host} freezes"),
            Fault::Cut { host, network, how } => {
                let network = if *network == Network::Public { "public" } else { "replication" };
                let how = if *how == Cut::Carrier { "loses its carrier" } else { "drops everything" };
                write!(f, "{network} cable of {host} {how}")
            }
            Fault::Witness { how: Away::Killed } => write!(f, "witness is killed"),
            Fault::Witness { how: Away::Frozen } => write!(f, "witness freezes"),
            Fault::Witness { how: Away::CutOff } => write!(f, "witness is cut off"),
            Fault::Witness { how: Away::Unpowered } => write!(f, "witness loses its power"),
            Fault::SlowDisk { host, kib_per_s } => write!(f, "disk of {host} writes {kib_per_s} KiB/s"),
            Fault::FullDisk { host } => write!(f, "disk of {host} is full"),
            Fault::BrokenDisk { host } => write!(f, "disk of {host} gives I/O errors"),
            Fault::HungDisk { host } => write!(f, "disk of {host} hangs"),
            Fault::Processor { threads } => write!(f, "{threads} threads calculate"),
            Fault::Memory { mib } => write!(f, "{mib} MiB of memory are written"),
            Fault::Writes { mib } => write!(f, "guest writes {mib} MiB"),
            Fault::Switchover => write!(f, "a switchover is asked for"),
        }
    }
}
