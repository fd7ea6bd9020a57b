//! What a VM starts from.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What the VM starts from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Boot {
    /// A Linux kernel and an initramfs, loaded by QEMU's `-kernel` and `-initrd`.
    Linux {
        kernel: PathBuf,
        initrd: Option<PathBuf>,
        #[serde(default)]
        cmdline: String,
    },
    /// A raw disk image of one boot sector, for bare test guests. Read-only.
    BootSector { image: PathBuf },
    /// The boot loader on its volumes, called by the firmware (SeaBIOS): see [`boot_order`](crate::spec::VmSpec::boot_order).
    Volume,
}
