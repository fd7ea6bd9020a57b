//! The volumes of a scenario's VM: what is in the hosts' pools, and whether it is equal.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use ninefold_lab::Lab;
use ninefold_model::VolumeName;
use ninefold_model::event::{Event, EventKind};
use ninefold_volume::pool::Kind;
use ninefold_volume::{Format, Pool, Tools};

use super::{Scenario, deadline};

const BLOCK: usize = 4096;

/// A host's pool.
pub fn pool(lab: &Lab, host: &str) -> Pool {
    Pool::open(&lab.pool_dir(host), Tools::default()).unwrap()
}

/// A volume's or image's name.
pub fn name(text: &str) -> VolumeName {
    text.parse().unwrap()
}

/// A file as a block device, as a LUN would be. Drop it after the scenario.
pub struct Lun {
    pub device: PathBuf,
    pub file: PathBuf,
}

impl Lun {
    /// Of `size` bytes, in `directory`.
    pub fn new(directory: &Path, name: &str, size: u64) -> Self {
        let file = directory.join(name);
        fs::File::create(&file).unwrap().set_len(size).unwrap();
        let made = Command::new("losetup").args(["-f", "--show"]).arg(&file).output().unwrap();
        assert!(made.status.success(), "no loop device to be had: {made:?}");
        Self { device: String::from_utf8(made.stdout).unwrap().trim().into(), file }
    }
}

impl Drop for Lun {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.device).status();
    }
}

impl Scenario {
    /// The bytes of a volume in a host's image as they are now, whatever the image's format and whoever has it open.
    pub fn image(&self, host: &str, volume: &str) -> Vec<u8> {
        let info = pool(&self.lab, host).info(Kind::Volume, &name(volume)).unwrap();
        match info.record.format {
            Format::Raw => fs::read(&info.path).unwrap(),
            Format::Qcow2 => {
                let copy = self.lab.run_dir(host).join("copy.raw");
                let out = Command::new("qemu-img")
                    .args(["convert", "-U", "-f", "qcow2", "-O", "raw"])
                    .args([&info.path, &copy])
                    .output()
                    .unwrap();
                // One that is being written may look odd for a moment; whoever compares asks again.
                if !out.status.success() {
                    return Vec::new();
                }
                fs::read(&copy).unwrap()
            }
        }
    }

    /// Waits until a volume is the same on both hosts, byte for byte; gives its bytes. Nobody may be writing.
    pub fn images_become_equal(&self, volume: &str) -> Vec<u8> {
        self.images_become_equal_with(volume, "any content", |_| true)
    }

    /// The same, with a content that `holds`. Both may be equal before they have the last epochs: these are gathered for a
    /// while.
    pub fn images_become_equal_with(&self, volume: &str, what: &str, holds: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let deadline = deadline();
        loop {
            let (image, other) = (self.image("a", volume), self.image("b", volume));
            let equal = !image.is_empty() && image == other;
            if equal && holds(&image) {
                return image;
            }
            if Instant::now() > deadline {
                let differs =
                    |n: &usize| image.get(n * BLOCK..(n + 1) * BLOCK) != other.get(n * BLOCK..(n + 1) * BLOCK);
                let differ: Vec<usize> = (0..image.len().div_ceil(BLOCK)).filter(differs).collect();
                panic!("{}: no images with {what}; equal: {equal}; blocks of 4 KiB that differ: {differ:?}", self.name);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// [`Self::images_become_equal_with`] while the VM runs: the ledger's writing ends for it, with all that it checks, and begins
    /// anew.
    pub fn images_become_equal_under_load(&mut self, volume: &str, what: &str, holds: impl Fn(&[u8]) -> bool) {
        let report = self.ledger.take().expect("the scenario has a ledger").finish().unwrap();
        assert_eq!((report.lost, report.repeated, report.resets), (0, 0, 0), "{report:?}");
        self.images_become_equal_with(volume, what, holds);
        self.open_ledger();
    }

    /// What each resync of the volumes sent, in order.
    pub fn resyncs(&self) -> Vec<u64> {
        let sent =
            |e: &Event| if let EventKind::Protected { volume_bytes, .. } = e.kind { Some(volume_bytes) } else { None };
        self.events.all().iter().filter_map(sent).collect()
    }
}
