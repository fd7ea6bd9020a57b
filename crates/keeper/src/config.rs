//! The keeper's configuration: one JSON file. Who the VM is, what machine it is, what this host has for it, and how it is kept:
//!
//! ```text
//! { "id": …, "name": …, "hardware": {…}, "host": {…}, "policy": {…} }
//! ```

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use ninefold_model::spec::{Boot, Hardware, Policy, VmSpec};
use ninefold_model::{HostName, VmId, VmName};
use ninefold_replica::stream::record::MAX_VOLUMES;
use serde::{Deserialize, Serialize};

pub use crate::bindings::{Bindings, DEFAULT_POOL, DEFAULT_RUN_DIR, SecurityConfig, cache_dir};
use crate::durable::small_file;
use crate::zones;

/// Longest configuration, bytes.
const MAX_CONFIG: u64 = 1 << 20;

/// What a keeper is told at its start: who the VM is, and its three parts.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(from = "File", into = "File")]
pub struct KeeperConfig {
    /// The VM: who it is, its hardware and its policy.
    pub vm: VmSpec,
    /// What this host has for it.
    pub host: Bindings,
}

/// The file's form.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    id: VmId,
    name: VmName,
    hardware: Hardware,
    host: Bindings,
    policy: Policy,
}

impl From<File> for KeeperConfig {
    fn from(File { id, name, mut hardware, host, policy }: File) -> Self {
        // One who gives the id as the machine's identity says what holds anyway.
        hardware.uuid = hardware.uuid.filter(|uuid| *uuid != id.into());
        Self { vm: VmSpec { id, name, hardware, policy }, host }
    }
}

impl From<KeeperConfig> for File {
    fn from(KeeperConfig { vm: VmSpec { id, name, hardware, policy }, host }: KeeperConfig) -> Self {
        Self { id, name, hardware, host, policy }
    }
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is not a keeper configuration: {}{source}", at(.field))]
    Parse {
        path: PathBuf,
        /// Where in it, such as `policy.peers[0].addr`; empty for all of it.
        field: String,
        source: serde_json::Error,
    },
    #[error("{path}: {reason}")]
    Invalid { path: PathBuf, reason: String },
}

fn at(field: &str) -> String {
    if field.is_empty() { String::new() } else { format!("{field}: ") }
}

impl KeeperConfig {
    /// Reads and checks a configuration file.
    ///
    /// # Errors
    /// The file cannot be read or is too long, it is not a configuration, or what it says makes no sense.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let at = || path.to_owned();
        let text = small_file::read(path, MAX_CONFIG).map_err(|source| ConfigError::Read { path: at(), source })?;
        let mut config =
            Self::parse(&text).map_err(|(field, source)| ConfigError::Parse { path: at(), field, source })?;
        config.host.image_record.get_or_insert_with(|| path.with_extension("image.json"));
        config.check().map_err(|reason| ConfigError::Invalid { path: at(), reason })?;
        Ok(config)
    }

    /// The field that is wrong, and what is wrong with it.
    fn parse(text: &[u8]) -> Result<Self, (String, serde_json::Error)> {
        let mut json = serde_json::Deserializer::from_slice(text);
        let config = serde_path_to_error::deserialize(&mut json).map_err(|error| {
            let field = error.path().to_string();
            (if field == "." { String::new() } else { field }, error.into_inner())
        })?;
        json.end().map_err(|error| (String::new(), error))?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        let (host, hardware) = (&self.host, &self.vm.hardware);
        if hardware.memory_mib == 0 || hardware.vcpus == 0 {
            return Err("hardware: a VM needs memory and a vCPU".into());
        }
        hardware.boot_order(&hardware.boot).map_err(|e| format!("hardware.volumes: {e}"))?;
        if hardware.volumes.len() > usize::from(MAX_VOLUMES) {
            return Err(format!("hardware.volumes: a VM has at most {MAX_VOLUMES} volumes"));
        }
        ninefold_machine::command_line::check_slots(hardware)?;
        let mut names: Vec<_> = hardware.volumes.iter().map(|v| &v.name).collect();
        names.sort();
        if let Some(twice) = names.windows(2).find(|w| w[0] == w[1]) {
            return Err(format!("hardware.volumes: volume {} is given twice", twice[0]));
        }
        if let Some((one, other)) = hardware.same_serials() {
            return Err(format!(
                "hardware.volumes: the volumes {one} and {other} have the same serial number: rename one of them"
            ));
        }
        host.check(hardware)?;
        self.vm.policy.check(&host.name, hardware).map_err(|e| e.to_string())?;
        for (n, peer) in self.vm.policy.peers.iter().enumerate() {
            zones::resolve(&peer.addr).map_err(|e| format!("policy.peers[{n}].addr: {e}"))?;
        }
        self.witness().map(drop)
    }

    /// The witness, and where it is.
    ///
    /// # Errors
    /// There is none, or this host has not the interface that its address names.
    pub fn witness(&self) -> Result<(&HostName, SocketAddr), String> {
        let witness = self.vm.policy.witness.as_ref().ok_or("policy.witness: it is missing")?;
        let addr = zones::resolve(&witness.addr).map_err(|e| format!("policy.witness.addr: {e}"))?;
        Ok((&witness.host, addr))
    }

    /// What the VM boots from here.
    ///
    /// # Errors
    /// See [`Bindings::boot`].
    pub fn boot(&self) -> Result<Boot, String> {
        self.host.boot(&self.vm.hardware.boot)
    }

    /// The VM's run directory on this host.
    pub fn vm_dir(&self) -> PathBuf {
        self.host.run_dir.join(self.vm.id.to_string())
    }

    /// The control socket in a VM's run directory.
    pub fn control_socket(run_dir: &Path) -> PathBuf {
        run_dir.join(ninefold_control::client::SOCKET)
    }

    /// The console's socket in a VM's run directory.
    pub fn console_socket(run_dir: &Path) -> PathBuf {
        run_dir.join("console.sock")
    }

    /// The guest agent's socket in a VM's run directory.
    pub fn agent_socket(run_dir: &Path) -> PathBuf {
        run_dir.join("agent.sock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(change: impl FnOnce(&mut serde_json::Value)) -> serde_json::Value {
        let mut config = serde_json::json!({
            "id": "3f0e1c4a-7d52-4b60-9c1f-5a2e8d90b7c4", "name": "db",
            "hardware": { "memory_mib": 64, "boot": "boot_sector", "nics": [{ "mac": "52:54:00:12:34:56" }] },
            "host": {
                "name": "a", "image": "/x", "bridges": ["br0"], "run_dir": "/run/db", "listen": "10.8.0.1:7701",
                "security": "plain_text"
            },
            "policy": {
                "peers": [{ "host": "b", "addr": "10.8.0.2:7701" }], "witness": { "host": "w", "addr": "10.8.0.3:7700" }
            }
        });
        change(&mut config);
        config
    }

    fn load(config: &serde_json::Value) -> Result<KeeperConfig, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db.json");
        std::fs::write(&path, config.to_string()).unwrap();
        KeeperConfig::load(&path).map_err(|e| e.to_string())
    }

    #[test]
    fn an_error_names_the_field() {
        load(&config(|_| {})).unwrap();
        type Change = fn(&mut serde_json::Value);
        let cases: [(Change, &str); 9] = [
            (
                |c| c["policy"]["peers"][0]["addr"] = "10.8.0.2".into(),
                "policy.peers[0].addr: '10.8.0.2' is not an address with a port",
            ),
            (
                |c| c["host"]["listen"] = "[fe80::1%nowhere]:1".into(),
                "host.listen: '[fe80::1%nowhere]:1': this host has no interface",
            ),
            (|c| c["host"]["metrics"] = 7.into(), "host.metrics: invalid type: integer `7`"),
            (
                |c| c["hardware"]["nics"][0]["mac"] = "x".into(),
                "hardware.nics[0].mac: 'x' is not a unicast Ethernet address",
            ),
            (
                |c| c["hardware"]["boot"] = serde_json::json!({ "linux": { "kernel": "/k" } }),
                "hardware.boot.linux.kernel: unknown field `kernel`",
            ),
            (|c| c["policy"]["witness"]["host"] = "W".into(), "policy.witness.host: "),
            (
                |c| c["policy"]["timing"] = serde_json::json!({ "heartbeat_ms": -1 }),
                "policy.timing.heartbeat_ms: invalid value: integer `-1`",
            ),
            (|c| drop(c.as_object_mut().unwrap().remove("hardware")), "missing field `hardware`"),
            (|c| c["run_dir"] = "/run/db".into(), "run_dir: unknown field `run_dir`"),
        ];
        for (change, expected) in cases {
            let said = load(&config(change)).unwrap_err();
            assert!(said.contains("db.json is not a keeper configuration: ") && said.contains(expected), "{said}");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db.json");
        std::fs::write(&path, config(|_| {}).to_string() + "x").unwrap();
        assert!(KeeperConfig::load(&path).unwrap_err().to_string().contains("trailing characters"));
    }

    /// What is well-formed and makes no sense is named, too.
    #[test]
    fn what_does_not_go_together_is_named() {
        type Change = fn(&mut serde_json::Value);
        let cases: [(Change, &str); 12] = [
            (|c| c["hardware"]["vcpus"] = 0.into(), "hardware: a VM needs memory and a vCPU"),
            (|c| c["hardware"]["boot"] = "volume".into(), "hardware.volumes: a VM that boots from a volume"),
            (
                |c| c["hardware"]["boot"] = serde_json::json!({ "linux": {} }),
                "host.kernel: it is missing, and the VM boots a Linux kernel",
            ),
            (|c| drop(c["host"].as_object_mut().unwrap().remove("image")), "host.image: it is missing"),
            (|c| c["host"]["kernel"] = "/k".into(), "host.kernel: it is of no use"),
            (|c| c["host"]["bridges"] = serde_json::json!([]), "host.bridges: there are 0, and the VM has 1 NICs"),
            (|c| c["hardware"]["watchdog"] = "ib700".into(), "policy.watchdog: "),
            (|c| c["policy"]["acknowledge"] = serde_json::json!({ "data": "disk" }), "policy.acknowledge.data: "),
            (|c| c["policy"]["peers"][0]["host"] = "a".into(), "policy.peers[0].host: host a is its own peer"),
            (|c| drop(c["policy"].as_object_mut().unwrap().remove("witness")), "policy.witness: it is missing"),
            (
                |c| c["policy"]["peers"][0]["addr"] = "[fe80::1%nowhere]:1".into(),
                "policy.peers[0].addr: '[fe80::1%nowhere]:1': this host has no interface",
            ),
            (
                |c| c["policy"]["witness"]["addr"] = "[fe80::1%nowhere]:1".into(),
                "policy.witness.addr: '[fe80::1%nowhere]:1': this host has no interface",
            ),
        ];
        for (change, expected) in cases {
            let said = load(&config(change)).unwrap_err();
            assert!(said.contains(expected), "{expected}: {said}");
        }
    }

    /// What is written is what is read; and an identity that holds anyway is none of its own.
    #[test]
    fn a_configuration_is_written_as_it_is_read() {
        let mut first =
            load(&config(|c| c["hardware"]["uuid"] = "3f0e1c4a-7d52-4b60-9c1f-5a2e8d90b7c4".into())).unwrap();
        assert_eq!(first.vm.hardware.uuid, None);
        first.host.image_record = None;
        let written = serde_json::to_value(&first).unwrap();
        let again: KeeperConfig = serde_json::from_value(written.clone()).unwrap();
        assert_eq!(again.vm, first.vm);
        assert_eq!(serde_json::to_value(&again).unwrap(), written);
    }

    #[test]
    fn a_vm_has_as_many_devices_as_its_bus_has_slots() {
        let with = |volumes: usize, watchdog: &str| {
            load(&config(|c| {
                let volume = |n| serde_json::json!({ "name": format!("v{n}"), "size": 512 });
                c["hardware"]["volumes"] = (0..volumes).map(volume).collect();
                c["hardware"]["watchdog"] = watchdog.into();
                c["policy"]["watchdog"] = serde_json::json!({ "action": "reset" });
            }))
        };
        // One NIC.
        with(26, "i6300esb").unwrap();
        with(27, "ib700").unwrap();
        for said in [with(27, "i6300esb").unwrap_err(), with(28, "ib700").unwrap_err()] {
            assert!(said.contains("NICs and") && said.contains("volumes") && said.contains("28"), "{said}");
        }
    }
}
