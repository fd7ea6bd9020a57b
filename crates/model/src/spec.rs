//! What a VM is made of.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use crate::boot::Boot;
use crate::health::Watchdog;
use crate::{Uuid, VmId, VmName, VolumeName};

/// A VM as its owner describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// Who it is, for ever and on every host.
    pub id: VmId,
    pub name: VmName,
    #[serde(default)]
    pub arch: Arch,
    #[serde(default = "one")]
    pub vcpus: u16,
    /// Guest memory, MiB.
    pub memory_mib: u64,
    #[serde(default)]
    pub accel: AccelChoice,
    pub boot: Boot,
    #[serde(default)]
    pub nics: Vec<Nic>,
    /// Its disks, in the order in which the guest finds them.
    #[serde(default)]
    pub volumes: Vec<VolumeSpec>,
    #[serde(default)]
    pub protection: Protection,
    /// Its checkpoints are committed to disk, so that it goes on after a loss of power. Decided when it is created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub non_volatile: Option<NonVolatile>,
    /// How many backups it has when it is fault-tolerant, 1 to [`MAX_BACKUPS`](crate::record::MAX_BACKUPS).
    #[serde(default = "one_backup")]
    pub backups: u8,
    /// What becomes of the time in which it ran nowhere, when a backup takes over.
    #[serde(default, skip_serializing_if = "ClockGap::is_default")]
    pub clock_gap: ClockGap,
    /// Watches the guest's health, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watchdog: Option<Watchdog>,
    /// The machine's identity, as the guest reads it from its firmware; by default its id: [`VmSpec::uuid`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
}

fn one_backup() -> u8 {
    1
}

impl VmSpec {
    /// What it is called and who it is, for people.
    #[must_use]
    pub fn label(&self) -> String {
        format!("{} ({})", self.name, self.id)
    }

    /// The machine's identity: the one given, or the VM's id.
    #[must_use]
    pub fn uuid(&self) -> Uuid {
        self.uuid.unwrap_or_else(|| self.id.into())
    }

    /// The generation id of a VM that has never been restored, cloned or recovered: it follows from the VM's id.
    #[must_use]
    pub fn first_generation(&self) -> Uuid {
        Uuid::of_name("ninefold generation", &self.id.to_string())
    }

    /// Two volumes that the guest could not tell apart: their serial numbers are equal.
    #[must_use]
    pub fn same_serials(&self) -> Option<(&VolumeName, &VolumeName)> {
        let mut seen = std::collections::HashMap::new();
        self.volumes.iter().find_map(|v| seen.insert(serial(&v.name), &v.name).map(|earlier| (earlier, &v.name)))
    }

    /// The place of each volume in the firmware's order of boot devices, the least first; `None` for one that is not
    /// booted from. Where no volume has a `bootindex`, the first volume is the boot device.
    ///
    /// # Errors
    /// See [`InvalidBootOrder`].
    pub fn boot_order(&self) -> Result<Vec<Option<u16>>, InvalidBootOrder> {
        let given = self.volumes.iter().find(|v| v.bootindex.is_some());
        match (&self.boot, given) {
            (Boot::Volume, None) if self.volumes.is_empty() => return Err(InvalidBootOrder::NoVolume),
            (Boot::Volume, None) => return Ok((0..self.volumes.len()).map(|n| (n == 0).then_some(0)).collect()),
            (Boot::Volume, Some(_)) | (_, None) => {}
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

fn one() -> u16 {
    1
}

/// How a non-volatile VM is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NonVolatile {
    /// Milliseconds between two checkpoints on disk, at most.
    pub interval_ms: u32,
    /// Output waits until its epoch is on disk, so that nothing that anybody was told is lost. Otherwise it leaves at once, and
    /// up to an interval of what the VM said and did is taken back by a loss of power.
    pub hold_output: bool,
}

impl Default for NonVolatile {
    fn default() -> Self {
        Self { interval_ms: 200, hold_output: true }
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

/// A network interface of the guest (virtio-net).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nic {
    pub mac: Mac,
    /// The host's bridge that its TAP device joins.
    pub bridge: String,
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
    #[serde(default)]
    pub acknowledge: Acknowledge,
    /// Its place in the order of boot devices, for a VM that boots from its volumes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bootindex: Option<u16>,
}

impl VolumeSpec {
    /// A volume of `size` bytes that acknowledges in memory.
    pub fn new(name: VolumeName, size: u64) -> Self {
        Self { name, size, acknowledge: Acknowledge::default(), bootindex: None }
    }
}

/// When a backup may acknowledge a checkpoint with writes to a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Acknowledge {
    /// When it has them in its memory: the loss of one host loses nothing.
    #[default]
    Memory,
    /// When they are on its disk: the loss of power of both hosts loses nothing that was acknowledged.
    Disk,
}

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

/// Why an Ethernet address was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a unicast Ethernet address such as 52:54:00:12:34:56")]
pub struct InvalidMac(String);

impl FromStr for Mac {
    type Err = InvalidMac;

    fn from_str(s: &str) -> Result<Self, InvalidMac> {
        let bad = || InvalidMac(s.chars().take(24).collect());
        let mut mac = [0; 6];
        let mut parts = s.split(':');
        for byte in &mut mac {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        (parts.next().is_none() && mac[0] & 1 == 0).then_some(Mac(mac)).ok_or_else(bad)
    }
}

impl TryFrom<String> for Mac {
    type Error = InvalidMac;

    fn try_from(s: String) -> Result<Self, InvalidMac> {
        s.parse()
    }
}

impl From<Mac> for String {
    fn from(m: Mac) -> String {
        m.to_string()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How far a VM is protected. Can be changed while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protection {
    /// It runs on one host and is lost with it.
    None,
    /// A backup holds a checkpoint of it at all times and takes over.
    #[default]
    FaultTolerant,
}

/// What a guest's clocks do about the time between the checkpoint that a take-over or switchover goes on from and its going
/// on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClockGap {
    /// They show it at once.
    #[default]
    AtOnce,
    /// They run faster by a twentieth until they have caught up. Under KVM as `AtOnce`.
    Slewed,
    /// They do not show it, and are behind from then on.
    Lost,
}

impl ClockGap {
    /// A keeper of before knows of nothing else.
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// When checkpoints are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum EpochPolicy {
    /// A checkpoint every `ms` milliseconds, whatever the guest does.
    Fixed { ms: u32 },
    /// Soon after output waits, at most `max_ms` milliseconds apart.
    Adaptive { max_ms: u32 },
}

impl Default for EpochPolicy {
    fn default() -> Self {
        EpochPolicy::Adaptive { max_ms: 100 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "3f0e1c4a-7d52-4b60-9c1f-5a2e8d90b7c4";

    #[test]
    fn the_firmware_tries_what_the_owner_wants() {
        let volume = |name: &str, bootindex| VolumeSpec { bootindex, ..VolumeSpec::new(name.parse().unwrap(), 512) };
        let order = |boot: &Boot, volumes: &[(&str, Option<u16>)]| {
            let volumes = volumes.iter().map(|(name, index)| volume(name, *index)).collect();
            let json = serde_json::json!({ "id": ID, "name": "vm", "memory_mib": 1, "boot": boot });
            VmSpec { volumes, ..serde_json::from_value(json).unwrap() }.boot_order()
        };
        let sector = Boot::BootSector { image: "/x".into() };
        assert_eq!(order(&Boot::Volume, &[("a", None), ("b", None)]), Ok(vec![Some(0), None]));
        assert_eq!(order(&Boot::Volume, &[("a", None), ("b", Some(7))]), Ok(vec![None, Some(7)]));
        assert_eq!(order(&sector, &[("a", None)]), Ok(vec![None]));
        assert_eq!(order(&Boot::Volume, &[]), Err(InvalidBootOrder::NoVolume));
        let [a, b] = ["a", "b"].map(|name| name.parse::<VolumeName>().unwrap());
        assert_eq!(order(&sector, &[("a", Some(0))]), Err(InvalidBootOrder::Unused(a.clone())));
        assert_eq!(order(&Boot::Volume, &[("a", Some(1)), ("b", Some(1))]), Err(InvalidBootOrder::Twice(a, b)));
        assert_eq!(serde_json::to_value(Boot::Volume).unwrap(), "volume");
    }

    fn volumes(names: &[&str]) -> VmSpec {
        let volumes = names.iter().map(|name| VolumeSpec::new(name.parse().unwrap(), 512)).collect();
        let json = serde_json::json!({ "id": ID, "name": "vm", "memory_mib": 1, "boot": "volume" });
        VmSpec { volumes, ..serde_json::from_value(json).unwrap() }
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
        assert_eq!(volumes(&names).same_serials(), None);
        let twice = volumes(&["a", "b", "a"]);
        assert_eq!(twice.same_serials().map(|(a, b)| (a.as_str(), b.as_str())), Some(("a", "a")));
    }

    #[test]
    fn a_machine_has_its_own_identity_or_the_one_that_is_given() {
        let vm = volumes(&[]);
        assert_eq!(vm.uuid().to_string(), ID);
        // What it is called says nothing of who it is.
        let renamed = VmSpec { name: "other".parse().unwrap(), ..vm.clone() };
        assert_eq!((renamed.uuid(), renamed.first_generation()), (vm.uuid(), vm.first_generation()));
        let other = VmSpec { id: VmId::random(7), ..vm.clone() };
        assert_ne!(vm.uuid(), other.uuid());
        assert_ne!(vm.first_generation(), vm.uuid());
        assert_ne!(vm.first_generation(), other.first_generation());
        let given: Uuid = "1b4e28ba-2fa1-41d2-883f-0016d3cca427".parse().unwrap();
        let with = VmSpec { uuid: Some(given), ..vm.clone() };
        assert_eq!(with.uuid(), given);
        assert_eq!(with.first_generation(), vm.first_generation());
        let json = serde_json::to_value(&with).unwrap();
        assert_eq!(json["uuid"], given.to_string());
        assert_eq!(serde_json::from_value::<VmSpec>(json).unwrap(), with);
    }

    #[test]
    fn mac_addresses() {
        let mac: Mac = "52:54:00:12:34:56".parse().unwrap();
        assert_eq!(mac.to_string(), "52:54:00:12:34:56");
        for bad in
            ["", "52:54:00:12:34", "52:54:00:12:34:56:78", "53:54:00:12:34:56", "5:54:00:12:34:56", "+2:54:00:12:34:5g"]
        {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_clock_gap_is_named_and_may_be_left_out() {
        let of = |field: &str| {
            let text = format!(r#"{{"id":"{ID}","name":"db","memory_mib":256,"boot":"volume"{field}}}"#);
            serde_json::from_str::<VmSpec>(&text)
        };
        assert_eq!(of("").unwrap().clock_gap, ClockGap::AtOnce);
        // A keeper of before does not know the field.
        assert!(!serde_json::to_string(&of("").unwrap()).unwrap().contains("clock_gap"));
        for (name, gap) in [("at-once", ClockGap::AtOnce), ("slewed", ClockGap::Slewed), ("lost", ClockGap::Lost)] {
            let spec = of(&format!(r#","clock_gap":"{name}""#)).unwrap();
            assert_eq!(spec.clock_gap, gap);
            let again: VmSpec = serde_json::from_str(&serde_json::to_string(&spec).unwrap()).unwrap();
            assert_eq!(again, spec);
        }
        assert!(of(r#","clock_gap":"never""#).unwrap_err().to_string().contains("never"));
    }
}
