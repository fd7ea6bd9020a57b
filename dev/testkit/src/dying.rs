//! The test `child` of this very program, in a process of its own that fault points make die.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// How a fault point ends a process.
pub const SIGABRT: i32 = 6;

/// Runs it with these variables in its environment; the signal that ended it.
pub fn run(environment: &[(&str, &Path)], faults: &str) -> Option<i32> {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored", "--nocapture"])
        .envs(environment.iter().copied())
        .env(ninefold_fault::VARIABLE, faults)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success() || child.status.signal().is_some(), "{faults}: {said}");
    child.status.signal()
}
