//! What a snapshot says of itself before its content.

use ninefold_model::SnapshotName;
use ninefold_model::spec::{Accel, Arch};
use ninefold_replica::stream::record::MAX_VOLUMES;
use ninefold_volume::pool::{MAX_SIZE, SECTOR};
use serde::{Deserialize, Serialize};

use super::Root;
use super::error::FileError;

/// The version of snapshot files.
pub(super) const FORMAT: u32 = 3;
/// A longer head is not ours, bytes.
pub(super) const MAX: usize = 1 << 20;

/// The head of a snapshot. What VM it is stands in the stream's `Hello`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// The version of the file.
    pub format: u32,
    pub name: SnapshotName,
    /// Seconds since 1970. For people.
    pub created_at: u64,
    pub platform: Platform,
    /// Sizes of the VM's volumes, bytes, in the order of its spec.
    pub volumes: Vec<u64>,
    /// What it was made from, if only the differences are in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
}

impl Head {
    /// A head of this release's version, made now.
    pub fn new(name: SnapshotName, platform: Platform, volumes: Vec<u64>, parent: Option<Parent>) -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self { format: FORMAT, name, created_at: now.as_secs(), platform, volumes, parent }
    }

    /// Whether a VM can have such volumes.
    ///
    /// # Errors
    /// `Beyond`, `Damaged`.
    pub(super) fn check(&self) -> Result<(), FileError> {
        FileError::within("volumes", self.volumes.len() as u64, MAX_VOLUMES.into())?;
        for &size in &self.volumes {
            FileError::within("bytes in a volume", size, MAX_SIZE)?;
            if size == 0 || !size.is_multiple_of(SECTOR) {
                return Err(FileError::damaged(format!("{size} bytes is not a volume's size")));
            }
        }
        Ok(())
    }
}

/// A parent: its name, and what it held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parent {
    pub name: SnapshotName,
    pub root: Root,
}

/// What device state depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Platform {
    pub arch: Arch,
    pub accel: Accel,
    /// The versioned machine type.
    pub machine: String,
    /// The CPU model with its flags.
    pub cpu: String,
    /// QEMU's version: major, minor, micro.
    pub qemu: [u32; 3],
}

impl Platform {
    /// Whether a state that was saved on this platform can be loaded on `here`. QEMUs from `oldest` to `newest` (major, minor)
    /// are known to load each other's.
    ///
    /// # Errors
    /// `Platform`: the first difference.
    pub fn check(&self, here: &Platform, oldest: [u32; 2], newest: [u32; 2]) -> Result<(), FileError> {
        let differ = |what, theirs: String, ours: String| {
            if theirs == ours { Ok(()) } else { Err(FileError::Platform { what, theirs, ours }) }
        };
        let arch = |arch| match arch {
            Arch::X86_64 => "x86-64".to_owned(),
        };
        differ("architecture", arch(self.arch), arch(here.arch))?;
        differ("machine type", self.machine.clone(), here.machine.clone())?;
        differ("CPU", self.cpu.clone(), here.cpu.clone())?;
        differ("accelerator", self.accel.to_string(), here.accel.to_string())?;
        let tried = |[major, minor, _]: [u32; 3]| (oldest..=newest).contains(&[major, minor]);
        if self.qemu[..2] != here.qemu[..2] && !(tried(self.qemu) && tried(here.qemu)) {
            let show = |[major, minor, micro]: [u32; 3]| format!("{major}.{minor}.{micro}");
            return Err(FileError::Platform { what: "QEMU", theirs: show(self.qemu), ours: show(here.qemu) });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_loaded_is_let_in() {
        let here = Platform {
            arch: Arch::X86_64,
            accel: Accel::Tcg,
            machine: "pc-i440fx-7.2".into(),
            cpu: "Nehalem".into(),
            qemu: [10, 0, 2],
        };
        let check = |with: &dyn Fn(&mut Platform)| {
            let mut theirs = here.clone();
            with(&mut theirs);
            theirs.check(&here, [7, 2], [10, 0])
        };
        assert!(check(&|_| ()).is_ok());
        assert!(check(&|p| p.qemu = [7, 2, 19]).is_ok());
        for (with, what) in [
            (&(|p: &mut Platform| p.qemu = [10, 1, 0]) as &dyn Fn(&mut Platform), "QEMU is 10.1.0, here it is 10.0.2"),
            (&|p| p.qemu = [7, 1, 0], "QEMU"),
            (&|p| p.accel = Accel::Kvm, "accelerator is kvm, here it is tcg"),
            (&|p| p.cpu = "max".into(), "CPU"),
            (&|p| p.machine = "q35".into(), "machine type"),
        ] {
            let error = check(with).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }
}
