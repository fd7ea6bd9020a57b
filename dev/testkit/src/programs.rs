//! The project's programs, built from the sources as they are: a test must never run those of yesterday.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

/// The packages of the programs that a lab starts.
pub const OF_A_LAB: &[&str] = &["ninefold-keeper", "ninefold-witness"];
/// The package of the command that an operator installs.
pub const OF_AN_OPERATOR: &str = "ninefold-cli";

/// Builds the programs of these packages, the keeper with its fault points, beside those of the running test, once in a process. Where NINEFOLD_BIN_DIR says that they have been
/// built already (scripts/test), nothing is built: a build of few packages has other features than that of all of them together, and
/// would compile most of them once more.
///
/// # Panics
/// They do not build.
pub fn build(packages: &[&str]) {
    static BUILT: Mutex<Vec<String>> = Mutex::new(Vec::new());
    if std::env::var_os("NINEFOLD_BIN_DIR").is_some() {
        return;
    }
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    let missing: Vec<_> = packages.iter().filter(|p| !built.iter().any(|b| b == *p)).collect();
    if missing.is_empty() {
        return;
    }
    let profile = profile();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(Path::new(env!("CARGO_MANIFEST_DIR"))).args(["build", "--quiet", "--locked", "--bins"]);
    for package in &missing {
        cargo.args(["-p", package]);
    }
    if missing.iter().any(|package| **package == "ninefold-keeper") {
        cargo.args(["--features", "ninefold-keeper/fault-points"]);
    }
    cargo.args(profile.ends_with("release").then_some("--release"));
    cargo.env("CARGO_TARGET_DIR", profile.parent().expect("Cargo's target directory"));
    assert!(cargo.status().unwrap().success(), "{missing:?} cannot be built");
    built.extend(missing.iter().map(|p| (**p).to_owned()));
}

/// One of the project's programs.
pub fn path(name: &str) -> PathBuf {
    std::env::var_os("NINEFOLD_BIN_DIR").map_or_else(profile, PathBuf::from).join(name)
}

/// Cargo's directory for the profile of the running test, which is TARGET/PROFILE/deps/NAME-….
fn profile() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    program.ancestors().nth(2).expect("Cargo's directory of this test").to_owned()
}
