//! What a VM is, in three parts: its [hardware](Hardware), on which two QEMUs must agree; its [policy](Policy), which its owner may change while it
//! runs; and where its files, bridges and addresses are on one host, which is that host's affair and known to its keeper alone.

use serde::{Deserialize, Serialize};

mod address;
mod hardware;
mod mac;
mod policy;
mod timing;

pub use address::{Address, InvalidAddress, Peer, Place};
pub use hardware::{Accel, AccelChoice, Arch, Hardware, InvalidBootOrder, MAX_SERIAL, Nic, VolumeSpec, serial};
pub use mac::{InvalidMac, Mac};
pub use policy::{Acknowledge, ClockGap, EpochPolicy, InvalidPolicy, NonVolatile, Policy, Protection};
pub use timing::Timing;

pub use crate::boot::{Boot, BootKind};
use crate::health::Watchdog;
use crate::{Uuid, VmId, VmName, VolumeName};

/// A VM as its owner describes it, on whichever host it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// Who it is, for ever and on every host.
    pub id: VmId,
    pub name: VmName,
    pub hardware: Hardware,
    #[serde(default)]
    pub policy: Policy,
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
        self.hardware.uuid.unwrap_or_else(|| self.id.into())
    }

    /// The generation id of a VM that has never been restored, cloned or recovered: it follows from the VM's id.
    #[must_use]
    pub fn first_generation(&self) -> Uuid {
        Uuid::of_name("ninefold generation", &self.id.to_string())
    }

    /// The watchdog: the device that its hardware has, and what its policy says is done when that fires.
    #[must_use]
    pub fn watchdog(&self) -> Option<Watchdog> {
        let policy = self.policy.watchdog.clone();
        self.hardware.watchdog.zip(policy).map(|(device, policy)| Watchdog { device, policy })
    }

    /// When a backup may acknowledge writes to one of its volumes.
    #[must_use]
    pub fn acknowledge(&self, volume: &VolumeName) -> Acknowledge {
        self.policy.acknowledge.get(volume).copied().unwrap_or_default()
    }

    /// The VM as other hosts, logs and snapshots hear of it: whom this host speaks to, and where, is of no use to them.
    #[must_use]
    pub fn for_others(&self) -> VmSpec {
        let policy = Policy { peers: Vec::new(), witness: None, ..self.policy.clone() };
        VmSpec { policy, ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "3f0e1c4a-7d52-4b60-9c1f-5a2e8d90b7c4";

    fn vm() -> VmSpec {
        let json = serde_json::json!({ "id": ID, "name": "vm", "hardware": { "memory_mib": 1, "boot": "volume" } });
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_machine_has_its_own_identity_or_the_one_that_is_given() {
        let vm = vm();
        assert_eq!(vm.uuid().to_string(), ID);
        // What it is called says nothing of who it is.
        let renamed = VmSpec { name: "other".parse().unwrap(), ..vm.clone() };
        assert_eq!((renamed.uuid(), renamed.first_generation()), (vm.uuid(), vm.first_generation()));
        let other = VmSpec { id: VmId::random(7), ..vm.clone() };
        assert_ne!(vm.uuid(), other.uuid());
        assert_ne!(vm.first_generation(), vm.uuid());
        assert_ne!(vm.first_generation(), other.first_generation());
        let given: Uuid = "1b4e28ba-2fa1-41d2-883f-0016d3cca427".parse().unwrap();
        let mut with = vm.clone();
        with.hardware.uuid = Some(given);
        assert_eq!(with.uuid(), given);
        assert_eq!(with.first_generation(), vm.first_generation());
        let json = serde_json::to_value(&with).unwrap();
        assert_eq!(json["hardware"]["uuid"], given.to_string());
        assert_eq!(serde_json::from_value::<VmSpec>(json).unwrap(), with);
    }

    /// A field that stands in the wrong part is no field.
    #[test]
    fn each_field_has_its_part() {
        let with = |part: &str, field: &str, value: serde_json::Value| {
            let mut json = serde_json::to_value(vm()).unwrap();
            json[part][field] = value;
            serde_json::from_value::<VmSpec>(json).map_err(|e| e.to_string())
        };
        with("hardware", "vcpus", 2.into()).unwrap();
        with("policy", "backups", 2.into()).unwrap();
        assert!(with("policy", "vcpus", 2.into()).unwrap_err().contains("unknown field `vcpus`"));
        assert!(with("hardware", "backups", 2.into()).unwrap_err().contains("unknown field `backups`"));
    }

    #[test]
    fn others_do_not_hear_where_a_host_finds_whom() {
        let mut vm = vm();
        let peer = Peer { host: "b".parse().unwrap(), addr: "10.8.0.2:7701".parse().unwrap() };
        (vm.policy.peers, vm.policy.witness, vm.policy.backups) = (vec![peer.clone()], Some(peer), 2);
        let told = vm.for_others();
        assert_eq!((told.policy.peers.len(), told.policy.witness, told.policy.backups), (0, None, 2));
    }
}
