//! Names of volumes and golden images.

use std::fmt;
use std::str::FromStr;

use ninefold_model::{InvalidName, VmName};
use serde::{Deserialize, Serialize};

/// A volume or golden image, unique in its pool. The rules are those of a VM's name: a DNS label of at most 32 bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VolumeName(VmName);

impl VolumeName {
    /// As text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for VolumeName {
    type Err = InvalidName;

    fn from_str(s: &str) -> Result<Self, InvalidName> {
        s.parse().map(Self)
    }
}
