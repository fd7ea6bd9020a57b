//! What the preloaded library is told about kvmclock and the kernel's PIT (`preload/kvm_clock.rs`).

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::error::{MachineError, Result};

/// The library's two words in one QEMU.
#[derive(Debug)]
pub(super) struct KvmClock {
    address: u64,
    /// What the library has been told.
    told: [u64; 2],
}

impl KvmClock {
    /// Its words are at `address` and zero.
    pub(super) fn new(address: u64) -> KvmClock {
        KvmClock { address, told: [0, 0] }
    }

    /// Whether kvmclock is to stay as it is when the guest goes on, or to be set to what it was when the guest was stopped. Does
    /// not allocate unless it fails.
    pub(super) fn keep(&mut self, process: &File, keep: bool) -> Result<()> {
        self.tell(process, [u64::from(keep), 0])
    }

    /// kvmclock is to go on from the loaded state, `gap` nanoseconds ahead.
    pub(super) fn begin(&mut self, process: &File, gap: u64) -> Result<()> {
        self.tell(process, [0, gap])
    }

    fn tell(&mut self, process: &File, words: [u64; 2]) -> Result<()> {
        if self.told != words {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&words[0].to_ne_bytes());
            bytes[8..].copy_from_slice(&words[1].to_ne_bytes());
            process.write_all_at(&bytes, self.address).map_err(MachineError::io("writing QEMU's kvmclock"))?;
            self.told = words;
        }
        Ok(())
    }
}
