//! What a VM speaks through, for tests that run no whole keeper.

#![allow(dead_code, reason = "each test file uses what it needs")]

use std::path::Path;
use std::sync::Arc;

use ninefold_keeper::config::{KeeperConfig, Peer, SecurityConfig};
use ninefold_keeper::devices::guest_io::GuestIo;
use ninefold_model::spec::VmSpec;

/// Console and agent of a VM without NICs.
pub fn open(dir: &Path, spec: &VmSpec) -> GuestIo {
    with_nics(dir, &VmSpec { nics: Vec::new(), ..spec.clone() })
}

/// The same with the NICs, for which their bridges have to be there.
pub fn with_nics(dir: &Path, spec: &VmSpec) -> GuestIo {
    let nowhere = "127.0.0.1:0".parse().unwrap();
    let config = KeeperConfig {
        host: "a".parse().unwrap(),
        vm: spec.clone(),
        qemu: "qemu-system-x86_64".into(),
        run_dir: dir.to_owned(),
        pool: Default::default(),
        dumps: dir.to_owned(),
        image_record: None,
        cache_dir: dir.to_owned(),
        listen: nowhere,
        peers: Vec::new(),
        witness: Peer { host: "w".parse().unwrap(), addr: nowhere },
        security: SecurityConfig::PlainText,
        metrics: None,
        uplink: None,
        timing: Default::default(),
        epochs: Default::default(),
    };
    GuestIo::open(&config, &(Arc::new(|| ()) as _)).unwrap()
}
