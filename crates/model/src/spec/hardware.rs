//! The part of a VM on which two QEMUs must agree.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::mac::Mac;
use crate::boot::BootKind;
use crate::health::WatchdogDevice;
use crate::{Uuid, VolumeName};

/// The machine that a guest sees. A guest keeps what it was booted with, wherever it goes: see [`Hardware::compatible`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hardware {
    #[serde(default)]
    pub arch: Arch,
    #[serde(default = "one")]
    pub vcpus: u16,
    /// Guest memory, MiB.
    pub memory_mib: u64,
    #[serde(default)]
    pub accel: AccelChoice,
    pub boot: BootKind,
    #[serde(default)]
    pub nics: Vec<Nic>,
    /// Its disks, in the order in which the guest finds them.
    #[serde(default)]
    pub volumes: Vec<VolumeSpec>,
    /// The device that watches the guest's health, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watchdog: Option<WatchdogDevice>,
    /// The machine's identity, as the guest reads it from its firmware; by default the VM's id: see [`VmSpec::uuid`](super::VmSpec::uuid).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
}

fn one() -> u16 {
    1
}

impl Hardware {
    /// Two volumes that the guest could not tell apart: their serial numbers are equal.
    #[must_use]
    pub fn same_serials(&self) -> Option<(&VolumeName, &VolumeName)> {
        let mut seen = std::collections::HashMap::new();
        self.volumes.iter().find_map(|v| seen.insert(serial(&v.name), &v.name).map(|earlier| (earlier, &v.name)))
    }

    /// The place of each volume in the firmware's order of boot devices where the VM boots from `boot`, the least first; `None` for one that is not
    /// booted from. Where no volume has a `bootindex`, the first volume is the boot device.
    ///
    /// # Errors
    /// See [`InvalidBootOrder`].
    pub fn boot_order(&self, boot: &BootKind) -> Result<Vec<Option<u16>>, InvalidBootOrder> {
        let given = self.volumes.iter().find(|v| v.bootindex.is_some());
        match (boot, given) {
            (BootKind::Volume, None) if self.volumes.is_empty() => return Err(InvalidBootOrder::NoVolume),
            (BootKind::Volume, None) => return Ok((0..self.volumes.len()).map(|n| (n == 0).then_some(0)).collect()),
            (BootKind::Volume, Some(_)) | (_, None) => {}
            (_, Some(volume)) => return Err(InvalidBootOrder::Unused(volume.name.clone())),
        }
        for (n, volume) in self.volumes.iter().enumerate() {
            let same = |v: &&VolumeSpec| v.bootindex.is_some() && v.bootindex == volume.bootindex;
            if let Some(earlier) = self.volumes[..n].iter().find(same) {
                return Err(InvalidBootOrder::Twice(earlier.name.clone(), volume.name.clone()));
            }
        }
        Ok(self.volumes.iter().map(|v| v.bootindex).collect())
    }
}

/// The guest's architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Arch {
    #[default]
    #[serde(rename = "x86-64")]
    X86_64,
}

/// Which accelerator the owner wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccelChoice {
    /// KVM where it runs an ordinary kernel, else TCG.
    #[default]
    Auto,
    Kvm,
    Tcg,
}

/// The accelerator in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Accel {
    Kvm,
    Tcg,
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Accel::Kvm => "kvm",
            Accel::Tcg => "tcg",
        })
    }
}

/// Why a VM's volumes cannot be booted from as its spec says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidBootOrder {
    #[error("a VM that boots from a volume has to have one")]
    NoVolume,
    #[error("volume {0} has a bootindex, and the VM does not boot from a volume")]
    Unused(VolumeName),
    #[error("volumes {0} and {1} have the same bootindex")]
    Twice(VolumeName, VolumeName),
}

/// A network interface of the guest (virtio-net). Which bridge it is joined to is each host's own affair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nic {
    pub mac: Mac,
}

/// Longest serial number of a virtio disk, bytes (`VIRTIO_BLK_ID_BYTES`, virtio 1.2, section 5.2.6).
pub const MAX_SERIAL: usize = 20;

/// The serial number by which the guest knows a volume: its name, if that fits. Else the first 11 characters of it, a dot, which no
/// name has, and 8 hexadecimal digits of a hash of all of it.
#[must_use]
pub fn serial(name: &VolumeName) -> String {
    let name = name.as_str();
    if name.len() <= MAX_SERIAL {
        return name.to_owned();
    }
    // 32-bit FNV-1a.
    let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    format!("{name:.11}.{hash:08x}")
}

/// A disk of the guest (virtio-blk). Each host keeps its own image of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeSpec {
    /// The volume in each host's storage pool; the guest sees [`serial`] of it as the disk's serial number.
    pub name: VolumeName,
    /// Bytes; a multiple of 512.
    pub size: u64,
    /// Its place in the order of boot devices, for a VM that boots from its volumes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bootindex: Option<u16>,
}

impl VolumeSpec {
    /// A volume of `size` bytes.
    pub fn new(name: VolumeName, size: u64) -> Self {
        Self { name, size, bootindex: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volumes(boot: BootKind, volumes: &[(&str, Option<u16>)]) -> Hardware {
        let volume = |(name, bootindex): &(&str, _)| VolumeSpec {
            bootindex: *bootindex,
            ..VolumeSpec::new(name.parse().unwrap(), 512)
        };
        let json = serde_json::json!({ "memory_mib": 1, "boot": boot });
        Hardware { volumes: volumes.iter().map(volume).collect(), ..serde_json::from_value(json).unwrap() }
    }

    #[test]
    fn the_firmware_tries_what_the_owner_wants() {
        let order = |boot: BootKind, given: &[(&str, Option<u16>)]| volumes(boot.clone(), given).boot_order(&boot);
        let sector = BootKind::BootSector;
        assert_eq!(order(BootKind::Volume, &[("a", None), ("b", None)]), Ok(vec![Some(0), None]));
        assert_eq!(order(BootKind::Volume, &[("a", None), ("b", Some(7))]), Ok(vec![None, Some(7)]));
        assert_eq!(order(sector.clone(), &[("a", None)]), Ok(vec![None]));
        assert_eq!(order(BootKind::Volume, &[]), Err(InvalidBootOrder::NoVolume));
        let [a, b] = ["a", "b"].map(|name| name.parse::<VolumeName>().unwrap());
        assert_eq!(order(sector, &[("a", Some(0))]), Err(InvalidBootOrder::Unused(a.clone())));
        assert_eq!(order(BootKind::Volume, &[("a", Some(1)), ("b", Some(1))]), Err(InvalidBootOrder::Twice(a, b)));
    }

    #[test]
    fn long_names_of_volumes_have_serial_numbers_of_their_own() {
        let serials = |names: &[&str]| names.iter().map(|n| serial(&n.parse().unwrap())).collect::<Vec<_>>();
        let names = ["data", "exactly-20-character", "a-database-of-customers-1", "a-database-of-customers-2"];
        let found = serials(&names);
        assert_eq!(found[..2], names[..2]);
        assert_eq!(found[2][..12], found[3][..12]);
        assert_ne!(found[2], found[3]);
        assert!(found.iter().all(|s| s.len() <= MAX_SERIAL), "{found:?}");
        // Published: a guest finds its disks by it.
        assert_eq!(found[2], "a-database-.40542dce");
        let named = |names: &[&'static str]| {
            volumes(BootKind::Volume, &names.iter().map(|name| (*name, None)).collect::<Vec<_>>())
        };
        assert_eq!(named(&names).same_serials(), None);
        let twice = named(&["a", "b", "a"]);
        assert_eq!(twice.same_serials().map(|(a, b)| (a.as_str(), b.as_str())), Some(("a", "a")));
    }
}
