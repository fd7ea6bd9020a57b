//! The keeper's configuration: one JSON file.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

pub use ninefold_core::settings::Timing;
use ninefold_model::HostName;
use ninefold_model::record::MAX_BACKUPS;
use ninefold_model::spec::{EpochPolicy, VmSpec};
use ninefold_replica::stream::record::MAX_VOLUMES;
use serde::{Deserialize, Serialize};

use crate::durable::small_file;
use crate::zones;

/// A host's storage pool, where nothing else is said.
pub const DEFAULT_POOL: &str = "/var/lib/ninefold/pool";
/// Where a host's keepers have their run directories, one for each VM: the command line looks for them there when it is not told
/// where. A configuration may name any other directory.
pub const DEFAULT_RUN_DIRS: &str = "/run/ninefold";

/// Longest configuration, bytes.
const MAX_CONFIG: u64 = 1 << 20;

/// What a keeper is told at its start.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeeperConfig {
    /// This host.
    pub host: HostName,
    pub vm: VmSpec,
    #[serde(default = "default_qemu")]
    pub qemu: PathBuf,
    /// Directory for this VM's sockets on this host: `keeper.sock`, `console.sock`, `agent.sock`, and the lock.
    pub run_dir: PathBuf,
    /// Where answers that are slow to find are remembered (which accelerator works).
    #[serde(default = "cache_dir")]
    pub cache_dir: PathBuf,
    /// This host's storage pool, where the VM's volumes are.
    #[serde(default = "default_pool")]
    pub pool: PathBuf,
    /// Where memory dumps of the VM are written.
    #[serde(default = "default_dumps")]
    pub dumps: PathBuf,
    /// Where this host remembers which image was committed by a trial. By default beside this file: `NAME.image.json`.
    #[serde(default)]
    pub image_record: Option<PathBuf>,
    /// Where this keeper accepts replication.
    #[serde(deserialize_with = "zones::address")]
    pub listen: SocketAddr,
    /// The other hosts on which the VM may live.
    pub peers: Vec<Peer>,
    pub witness: Peer,
    pub security: SecurityConfig,
    /// Where Prometheus metrics are served (`GET /metrics`).
    #[serde(default, deserialize_with = "zones::address_if_any")]
    pub metrics: Option<SocketAddr>,
    /// The interface that connects the VM's bridge to the world. While it has no carrier here and has one at the
    /// backup, the VM is handed over.
    #[serde(default)]
    pub uplink: Option<String>,
    #[serde(default)]
    pub timing: Timing,
    #[serde(default)]
    pub epochs: EpochPolicy,
}

/// Another process on another host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    pub host: HostName,
    #[serde(deserialize_with = "zones::address")]
    pub addr: SocketAddr,
}

/// How hosts know each other.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SecurityConfig {
    /// The directory with `ca.pem`, `cert.pem` and `key.pem`.
    MutualTls { identity: PathBuf },
    /// No authentication and no encryption: only for a link that nobody else can reach.
    PlainText,
}

fn default_qemu() -> PathBuf {
    "qemu-system-x86_64".into()
}

fn default_pool() -> PathBuf {
    DEFAULT_POOL.into()
}

fn default_dumps() -> PathBuf {
    "/var/lib/ninefold/dumps".into()
}

/// Where a host keeps what can be found out or built anew: NINEFOLD_CACHE, or `/var/cache/ninefold`.
pub fn cache_dir() -> PathBuf {
    std::env::var_os("NINEFOLD_CACHE").map_or_else(|| "/var/cache/ninefold".into(), PathBuf::from)
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is not a keeper configuration: {}{source}", at(.field))]
    Parse {
        path: PathBuf,
        /// Where in it, such as `peers[0].addr`; empty for all of it.
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
        config.image_record.get_or_insert_with(|| path.with_extension("image.json"));
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
        let t = self.timing;
        if t.heartbeat_ms == 0 || t.failure_timeout_ms < 2 * t.heartbeat_ms {
            return Err(format!(
                "failure_timeout_ms ({}) must be at least twice heartbeat_ms ({}), which must not be 0",
                t.failure_timeout_ms, t.heartbeat_ms
            ));
        }
        if let Some(p) = self.peers.iter().find(|p| p.host == self.host) {
            return Err(format!("host {} is its own peer", p.host));
        }
        if self.vm.memory_mib == 0 || self.vm.vcpus == 0 {
            return Err("a VM needs memory and a vCPU".into());
        }
        if !(1..=MAX_BACKUPS).contains(&usize::from(self.vm.backups)) {
            return Err(format!("a VM has 1 to {MAX_BACKUPS} backups, not {}", self.vm.backups));
        }
        self.vm.boot_order().map_err(|e| e.to_string())?;
        if self.vm.volumes.len() > usize::from(MAX_VOLUMES) {
            return Err(format!("a VM has at most {MAX_VOLUMES} volumes"));
        }
        if let Some(watchdog) = &self.vm.watchdog {
            watchdog.check()?;
        }
        ninefold_machine::command_line::check_slots(&self.vm)?;
        let mut names: Vec<_> = self.vm.volumes.iter().map(|v| &v.name).collect();
        names.sort();
        if let Some(twice) = names.windows(2).find(|w| w[0] == w[1]) {
            return Err(format!("volume {} is given twice", twice[0]));
        }
        if let Some((one, other)) = self.vm.same_serials() {
            return Err(format!("the volumes {one} and {other} have the same serial number: rename one of them"));
        }
        Ok(())
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
            "host": "a",
            "vm": {
                "id": "3f0e1c4a-7d52-4b60-9c1f-5a2e8d90b7c4", "name": "db", "memory_mib": 64, "boot": { "boot_sector": { "image": "/x" } },
                "nics": [{ "mac": "52:54:00:12:34:56", "bridge": "br0" }]
            },
            "run_dir": "/run/db", "listen": "10.8.0.1:7701", "peers": [{ "host": "b", "addr": "10.8.0.2:7701" }],
            "witness": { "host": "w", "addr": "10.8.0.3:7700" }, "security": "plain_text"
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
        let cases: [(Change, &str); 7] = [
            (|c| c["peers"][0]["addr"] = "10.8.0.2".into(), "peers[0].addr: '10.8.0.2' is not an address with a port"),
            (
                |c| c["listen"] = "[fe80::1%nowhere]:1".into(),
                "listen: '[fe80::1%nowhere]:1': this host has no interface",
            ),
            (|c| c["metrics"] = 7.into(), "metrics: invalid type: integer `7`"),
            (|c| c["vm"]["nics"][0]["mac"] = "x".into(), "vm.nics[0].mac: 'x' is not a unicast Ethernet address"),
            (|c| c["vm"]["boot"]["boot_sector"]["imag"] = 1.into(), "vm.boot.boot_sector.imag: unknown field `imag`"),
            (|c| c["witness"]["host"] = "W".into(), "witness.host: "),
            (|c| c["timing"]["heartbeat_ms"] = (-1).into(), "timing.heartbeat_ms: invalid value: integer `-1`"),
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

    #[test]
    fn a_vm_has_as_many_devices_as_its_bus_has_slots() {
        let with = |volumes: usize, watchdog: &str| {
            load(&config(|c| {
                let volume = |n| serde_json::json!({ "name": format!("v{n}"), "size": 512 });
                c["vm"]["volumes"] = (0..volumes).map(volume).collect();
                c["vm"]["watchdog"] = serde_json::json!({ "action": "reset", "device": watchdog });
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
