//! What a VM starts from.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// From what kind of thing a VM starts: a part of its hardware. Where on a host that is, each host knows.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum BootKind {
    /// A Linux kernel and an initramfs, loaded by QEMU's `-kernel` and `-initrd`.
    Linux {
        #[serde(default)]
        cmdline: String,
    },
    /// A raw disk image of one boot sector, for bare test guests. Read-only.
    BootSector,
    /// The boot loader on its volumes, called by the firmware (SeaBIOS): see [`Hardware::boot_order`](crate::spec::Hardware::boot_order).
    Volume,
}

/// What a VM starts from on one host.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Boot {
    /// As [`BootKind::Linux`].
    Linux {
        kernel: PathBuf,
        initrd: Option<PathBuf>,
        #[serde(default)]
        cmdline: String,
    },
    /// As [`BootKind::BootSector`].
    BootSector { image: PathBuf },
    /// As [`BootKind::Volume`].
    Volume,
}

impl Boot {
    /// Of which kind it is.
    #[must_use]
    pub fn kind(&self) -> BootKind {
        match self {
            Boot::Linux { cmdline, .. } => BootKind::Linux { cmdline: cmdline.clone() },
            Boot::BootSector { .. } => BootKind::BootSector,
            Boot::Volume => BootKind::Volume,
        }
    }
}
