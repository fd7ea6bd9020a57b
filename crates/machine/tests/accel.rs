//! The KVM probe with a real kernel, where the test guest has been built.

use std::path::Path;

use ninefold_machine::{MachineError, probe};
use ninefold_testkit::guest;

#[test]
fn the_probe_decides_and_remembers() {
    let kernel = guest::cache().join("guest/current/vmlinuz");
    if !kernel.exists() {
        eprintln!("skipped: {} has not been built", kernel.display());
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let qemu = Path::new("qemu-system-x86_64");
    let first = probe(&kernel, qemu, dir.path()).unwrap();
    eprintln!("{first:?}");
    assert!(!first.remembered && !first.reason.is_empty());
    let second = probe(&kernel, qemu, dir.path()).unwrap();
    assert_eq!((second.accel, &second.reason), (first.accel, &first.reason));
    if std::fs::File::options().read(true).write(true).open("/dev/kvm").is_ok() {
        assert!(second.remembered);
        // A cache that is damaged is only a cache.
        std::fs::write(dir.path().join("accel-probe.json"), b"{").unwrap();
        assert!(!probe(&kernel, qemu, dir.path()).unwrap().remembered);
    }
}

#[test]
fn a_missing_kernel_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let error = probe(Path::new("/nowhere/vmlinuz"), Path::new("qemu-system-x86_64"), dir.path()).unwrap_err();
    assert!(matches!(error, MachineError::File { .. }));
    assert_eq!(error.to_string().split(':').next(), Some("cannot read the kernel to probe with, /nowhere/vmlinuz"));
}
