//! What one host has for a VM: files, bridges, directories, addresses. No other host is told of it.

use std::net::SocketAddr;
use std::path::PathBuf;

use ninefold_model::HostName;
use ninefold_model::spec::{Boot, BootKind, Hardware};
use serde::{Deserialize, Serialize};

use crate::zones;

/// Where the VMs of a host have their run directories: the command line looks for them there when it is not told
/// where. A configuration may name any other directory.
pub const DEFAULT_RUN_DIR: &str = "/run/ninefold";
/// A host's storage pool, where nothing else is said.
pub const DEFAULT_POOL: &str = "/var/lib/ninefold/pool";

/// See the [module](self).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bindings {
    /// This host.
    pub name: HostName,
    /// The Linux kernel, for a VM that boots one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// Its initramfs, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// The boot sector, for a VM that boots one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<PathBuf>,
    /// The bridges that the TAP devices of the VM's NICs join, in the order of the NICs.
    #[serde(default)]
    pub bridges: Vec<String>,
    #[serde(default = "default_qemu")]
    pub qemu: PathBuf,
    /// Directory in which each VM of this host has one of its own, named by its id, for its sockets: see [`run_dir`](crate::run_dir).
    #[serde(default = "default_run_dir")]
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
    /// Where this host remembers which image was committed by a trial. By default beside the configuration: `NAME.image.json`.
    #[serde(default)]
    pub image_record: Option<PathBuf>,
    /// Where this keeper accepts replication.
    #[serde(deserialize_with = "zones::address")]
    pub listen: SocketAddr,
    pub security: SecurityConfig,
    /// Where Prometheus metrics are served (`GET /metrics`).
    #[serde(default, deserialize_with = "zones::address_if_any")]
    pub metrics: Option<SocketAddr>,
    /// The interface that connects the VM's bridge to the world. While it has no carrier here and has one at the
    /// backup, the VM is handed over.
    #[serde(default)]
    pub uplink: Option<String>,
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

fn default_run_dir() -> PathBuf {
    DEFAULT_RUN_DIR.into()
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

impl Bindings {
    /// What a VM of this kind boots from on this host.
    ///
    /// # Errors
    /// The field that is missing.
    pub fn boot(&self, kind: &BootKind) -> Result<Boot, String> {
        let missing = |field: &str, what: &str| format!("host.{field}: it is missing, and the VM boots {what}");
        Ok(match kind {
            BootKind::Linux { cmdline } => Boot::Linux {
                kernel: self.kernel.clone().ok_or_else(|| missing("kernel", "a Linux kernel"))?,
                initrd: self.initrd.clone(),
                cmdline: cmdline.clone(),
            },
            BootKind::BootSector => {
                Boot::BootSector { image: self.image.clone().ok_or_else(|| missing("image", "a boot sector"))? }
            }
            BootKind::Volume => Boot::Volume,
        })
    }

    /// Whether this host has what a VM of this hardware needs, and nothing that it would not look at.
    ///
    /// # Errors
    /// The field that is wrong.
    pub fn check(&self, hardware: &Hardware) -> Result<(), String> {
        self.boot(&hardware.boot)?;
        let (linux, sector) = match hardware.boot {
            BootKind::Linux { .. } => (true, false),
            BootKind::BootSector => (false, true),
            BootKind::Volume => (false, false),
        };
        let given = [
            ("kernel", linux, self.kernel.is_some()),
            ("initrd", linux, self.initrd.is_some()),
            ("image", sector, self.image.is_some()),
        ];
        if let Some((field, ..)) = given.iter().find(|(_, used, given)| *given && !used) {
            return Err(format!("host.{field}: it is of no use, hardware.boot is of another kind"));
        }
        let (nics, bridges) = (hardware.nics.len(), self.bridges.len());
        if nics != bridges {
            return Err(format!("host.bridges: there are {bridges}, and the VM has {nics} NICs"));
        }
        Ok(())
    }
}
