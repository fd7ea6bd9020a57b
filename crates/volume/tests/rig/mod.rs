//! What the tests of this crate need around them.
#![allow(dead_code, reason = "each test file uses a part")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;

use ninefold_volume::nbd::Handler;
use ninefold_volume::{Tools, VolumeError};

/// An export in memory.
#[derive(Debug)]
pub struct Memory(pub Mutex<Vec<u8>>);

impl Memory {
    pub fn new(size: usize) -> Memory {
        Memory(Mutex::new(vec![0; size]))
    }
}

impl Handler for Memory {
    fn size(&self) -> u64 {
        self.0.lock().unwrap().len() as u64
    }
    fn read(&self, at: u64, into: &mut [u8]) -> Result<(), VolumeError> {
        into.copy_from_slice(&self.0.lock().unwrap()[at as usize..][..into.len()]);
        Ok(())
    }
    fn write(&self, at: u64, bytes: Vec<u8>, _fua: bool) -> Result<(), VolumeError> {
        self.0.lock().unwrap()[at as usize..][..bytes.len()].copy_from_slice(&bytes);
        Ok(())
    }
    fn zero(&self, at: u64, length: u64, _unmap: bool, _fua: bool) -> Result<(), VolumeError> {
        self.0.lock().unwrap()[at as usize..][..length as usize].fill(0);
        Ok(())
    }
    fn flush(&self) -> Result<(), VolumeError> {
        Ok(())
    }
}

pub fn cache() -> PathBuf {
    std::env::var_os("NINEFOLD_CACHE").map_or_else(|| "/var/cache/ninefold".into(), PathBuf::from)
}

/// The installed QEMU, and the old one if it is there.
pub fn qemus() -> Vec<PathBuf> {
    let old = cache().join("qemu-7.2/qemu-system-x86_64");
    if !old.exists() {
        eprintln!("left out: QEMU 7.2, which scripts/bootstrap unpacks");
    }
    [Some("qemu-system-x86_64".into()), old.exists().then_some(old)].into_iter().flatten().collect()
}

/// The installed tools, and the storage daemon of QEMU 7.2 if it is there, by way of a wrapper in `dir`.
pub fn tools(dir: &Path) -> Vec<Tools> {
    use std::os::unix::fs::PermissionsExt;
    let mut all = vec![Tools::default()];
    let root = cache().join("qemu-7.2");
    let old = root.join("usr/bin/qemu-storage-daemon");
    if old.exists() {
        let wrapper = dir.join("qemu-storage-daemon");
        let root = root.display();
        let libraries = format!("{root}/usr/lib/x86_64-linux-gnu:{root}/lib/x86_64-linux-gnu");
        let text = format!("#!/bin/sh\nLD_LIBRARY_PATH={libraries} exec {} \"$@\"\n", old.display());
        std::fs::write(&wrapper, text).unwrap();
        std::fs::set_permissions(&wrapper, PermissionsExt::from_mode(0o755)).unwrap();
        let said = Command::new(&wrapper).arg("--version").output().unwrap();
        assert!(String::from_utf8_lossy(&said.stdout).contains("version 7.2"), "{said:?}");
        all.push(Tools { storage_daemon: wrapper, ..Tools::default() });
    }
    all
}

/// Runs a program that must succeed.
pub fn run(program: &str, args: &[&str]) -> Output {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    output
}

/// A small generator of numbers (xorshift64*), for histories that can be repeated.
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}
