//! What a VM speaks through, for tests that run no whole keeper.

#![allow(dead_code, reason = "each test file uses what it needs")]

use std::path::Path;
use std::sync::Arc;

use ninefold_keeper::config::{Bindings, KeeperConfig, SecurityConfig};
use ninefold_keeper::devices::guest_io::GuestIo;
use ninefold_model::spec::VmSpec;

/// Console and agent of a VM without NICs.
pub fn open(dir: &Path, spec: &VmSpec) -> GuestIo {
    let mut vm = spec.clone();
    vm.hardware.nics.clear();
    with_nics(dir, &vm, &[])
}

/// The same with the NICs, for which their bridges have to be there.
pub fn with_nics(dir: &Path, spec: &VmSpec, bridges: &[&str]) -> GuestIo {
    let host = Bindings {
        name: "a".parse().unwrap(),
        kernel: None,
        initrd: None,
        image: None,
        bridges: bridges.iter().map(|&bridge| bridge.to_owned()).collect(),
        qemu: "qemu-system-x86_64".into(),
        run_dir: dir.to_owned(),
        pool: Default::default(),
        dumps: dir.to_owned(),
        image_record: None,
        cache_dir: dir.to_owned(),
        listen: "127.0.0.1:0".parse().unwrap(),
        security: SecurityConfig::PlainText,
        metrics: None,
        uplink: None,
    };
    let config = KeeperConfig { vm: spec.clone(), host };
    std::fs::create_dir_all(config.vm_dir()).unwrap();
    GuestIo::open(&config, &(Arc::new(|| ()) as _)).unwrap()
}
