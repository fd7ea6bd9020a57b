//! What this host can do.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckState {
    Ok,
    /// Works, with less speed or comfort.
    Warning,
    /// A VM cannot run, or cannot be protected, here.
    Failed,
}

/// One line of the doctor's report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was looked at, such as `userfaultfd`.
    pub name: String,
    pub state: CheckState,
    /// What was found.
    pub detail: String,
    /// What to do, unless all is well.
    pub advice: Option<String>,
}

/// What to examine.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// QEMU's program.
    pub qemu: &'a Path,
    /// A kernel to boot for the KVM check; without it only the device is opened.
    pub kernel: Option<&'a Path>,
    /// Where the KVM check's answer is remembered.
    pub cache_dir: &'a Path,
}

/// All checks, in the order in which a person would fix them.
pub fn examine(subject: Subject<'_>) -> Vec<Check> {
    let _ = subject;
    Vec::new()
}
