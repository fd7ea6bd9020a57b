//! What a core is told once, at its start.

use ninefold_model::spec::{Boot, VmSpec};
use ninefold_model::{HostName, Incarnation, Label};

/// See the [module](self).
#[derive(Debug, Clone)]
pub struct Settings {
    /// This host.
    pub host: HostName,
    /// The VM as this host's configuration has it.
    pub vm: VmSpec,
    /// What it is called, which may be another name than its configuration's.
    pub label: Label,
    /// What it boots from on this host.
    pub boot: Boot,
    /// This host's bridges, one for each of the VM's NICs.
    pub bridges: Vec<String>,
    /// The interface that connects the VM's bridge to the world, if it is watched.
    pub uplink: Option<String>,
    /// Of the keeper, for `status`.
    pub pid: u32,
    /// Which life of the keeper this is: operations are named by it.
    pub incarnation: Incarnation,
    /// The machine type and processor that QEMU is launched with: both sides of a session must have the same.
    pub machine: String,
    pub cpu: String,
    /// For each volume the number of blocks of which checksums are made.
    pub volume_blocks: Vec<u64>,
    pub budget: Budget,
}

/// How many bytes of a guest's writes are held in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// From here on the guest is slowed down.
    pub soft: usize,
    /// Here it stands still.
    pub hard: usize,
}

impl Budget {
    /// So many bytes held: the guest is slowed down to 50 MB/s or less.
    pub const fn crowded(self) -> usize {
        self.soft + (self.hard - self.soft) / 2
    }
}
