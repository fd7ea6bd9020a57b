//! Which QEMUs are supported.

use std::fmt;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::error::{MachineError, Result};

/// The oldest QEMU that works.
pub const OLDEST: QemuVersion = QemuVersion { major: 7, minor: 2, micro: 0 };
/// The newest QEMU that was tried.
pub const NEWEST_TESTED: QemuVersion = QemuVersion { major: 10, minor: 0, micro: u32::MAX };

/// A version as in `query-version`'s `qemu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct QemuVersion {
    pub major: u32,
    pub minor: u32,
    pub micro: u32,
}

impl fmt::Display for QemuVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

impl QemuVersion {
    /// Refuses what is too old.
    ///
    /// # Errors
    /// `Version`.
    pub fn check(self) -> Result<Self> {
        if self < OLDEST {
            return Err(MachineError::Version { found: self.to_string(), need: "7.2" });
        }
        Ok(self)
    }

    /// Newer than any version that was tried: worth a warning.
    pub fn is_untested(self) -> bool {
        self > NEWEST_TESTED
    }

    /// Reads the first line of `qemu-system-x86_64 --version`.
    pub fn from_version_text(text: &str) -> Option<Self> {
        let numbers = text.lines().next()?.strip_prefix("QEMU emulator version ")?.split_whitespace().next()?;
        let mut parts = numbers.split('.').map(|p| p.parse().ok());
        Some(Self { major: parts.next()??, minor: parts.next()??, micro: parts.next().flatten().unwrap_or(0) })
    }

    /// Reads what `Display` writes.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.').map(|p| p.parse().ok());
        let version = Self { major: parts.next()??, minor: parts.next()??, micro: parts.next()?? };
        parts.next().is_none().then_some(version)
    }

    /// Asks a program for its version.
    ///
    /// # Errors
    /// `Spawn` when it does not run; `Version` when it does not say one.
    pub fn of_program(program: &Path) -> Result<Self> {
        let output = Command::new(program)
            .arg("--version")
            .output()
            .map_err(|source| MachineError::Spawn { program: program.into(), source })?;
        let text = String::from_utf8_lossy(&output.stdout);
        Self::from_version_text(&text).ok_or_else(|| MachineError::Version {
            found: format!("'{}'", text.lines().next().unwrap_or_default().chars().take(80).collect::<String>()),
            need: "7.2",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_texts() {
        let version = |text| QemuVersion::from_version_text(text).map(|v| v.to_string());
        assert_eq!(version("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright").unwrap(), "10.0.2");
        assert_eq!(version("QEMU emulator version 7.2.22 (x)").unwrap(), "7.2.22");
        assert!(version("bash: not found").is_none() && version("").is_none());
    }

    #[test]
    fn range() {
        let v = |major, minor| QemuVersion { major, minor, micro: 0 };
        assert!(v(7, 1).check().is_err() && v(7, 2).check().is_ok());
        assert!(!v(10, 0).is_untested() && v(10, 1).is_untested());
    }
}
