//! Compiles `preload/userfaultfd.rs` and its module to a shared library of its own with the compiler that builds this crate, so that
//! it can be embedded. No C compiler is involved beyond the linker that rustc uses anyway.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    let source = "preload/userfaultfd.rs";
    println!("cargo::rerun-if-changed=preload");
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("userfaultfd.so");
    let status = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .args(["--crate-name", "ninefold_preload", "--crate-type", "cdylib", "--edition", "2024"])
        .args(["-C", "opt-level=2", "-C", "panic=abort", "-C", "strip=symbols"])
        .args(["-C", "link-arg=-nostartfiles", "-C", "link-arg=-nostdlib"])
        .arg("--target")
        .arg(env::var_os("TARGET").expect("cargo sets TARGET"))
        .arg("-o")
        .arg(&out)
        .arg(source)
        .status()
        .expect("rustc cannot be started");
    assert!(status.success(), "{source} does not compile");
}
