//! The keeper's configuration: one JSON file.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use ninefold_model::HostName;
use ninefold_model::record::MAX_BACKUPS;
use ninefold_model::spec::{EpochPolicy, VmSpec};
use ninefold_replica::stream::record::MAX_VOLUMES;
use serde::{Deserialize, Serialize};

use crate::small_file;

/// A host's storage pool, where nothing else is said.
pub const DEFAULT_POOL: &str = "/var/lib/ninefold/pool";

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
    #[serde(default = "default_cache")]
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
    pub listen: SocketAddr,
    /// The other hosts on which the VM may live.
    pub peers: Vec<Peer>,
    pub witness: Peer,
    pub security: SecurityConfig,
    /// Where Prometheus metrics are served (`GET /metrics`).
    #[serde(default)]
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

/// Detection of a silent peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timing {
    /// Milliseconds between two signs of life.
    pub heartbeat_ms: u32,
    /// Milliseconds of silence after which the peer counts as lost and the witness is asked.
    pub failure_timeout_ms: u32,
    /// Milliseconds without carrier on the uplink before the VM is handed over.
    pub uplink_hold_ms: u32,
}

impl Default for Timing {
    fn default() -> Self {
        Self { heartbeat_ms: 40, failure_timeout_ms: 250, uplink_hold_ms: 200 }
    }
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

fn default_cache() -> PathBuf {
    std::env::var_os("NINEFOLD_CACHE").map_or_else(|| "/var/cache/ninefold".into(), PathBuf::from)
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is not a keeper configuration")]
    Parse { path: PathBuf, source: serde_json::Error },
    #[error("{path}: {reason}")]
    Invalid { path: PathBuf, reason: String },
}

impl KeeperConfig {
    /// Reads and checks a configuration file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let at = || path.to_owned();
        let text = small_file::read(path, MAX_CONFIG).map_err(|source| ConfigError::Read { path: at(), source })?;
        let mut config: Self =
            serde_json::from_slice(&text).map_err(|source| ConfigError::Parse { path: at(), source })?;
        config.image_record.get_or_insert_with(|| path.with_extension("image.json"));
        config.check().map_err(|reason| ConfigError::Invalid { path: at(), reason })?;
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
        let mut names: Vec<_> = self.vm.volumes.iter().map(|v| &v.name).collect();
        names.sort();
        if let Some(twice) = names.windows(2).find(|w| w[0] == w[1]) {
            return Err(format!("volume {} is given twice", twice[0]));
        }
        Ok(())
    }

    /// The control socket in a VM's run directory.
    pub fn control_socket(run_dir: &Path) -> PathBuf {
        run_dir.join("keeper.sock")
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
