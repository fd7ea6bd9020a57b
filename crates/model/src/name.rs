//! Names of hosts and VMs.
//!
//! Both are DNS labels (RFC 1123, section 2.1), so that they can stand in certificates, file names and host names
//! without quoting.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest name accepted, in bytes. A DNS label may have 63; 32 leaves room for suffixes in interface and file names.
pub const MAX_NAME: usize = 32;

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a name: use 1 to {MAX_NAME} lower-case letters, digits and inner hyphens")]
pub struct InvalidName(String);

fn check(name: &str) -> Result<(), InvalidName> {
    let good = (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-');
    // A hostile name can be long; the error quotes its beginning only.
    good.then_some(()).ok_or_else(|| InvalidName(name.chars().take(MAX_NAME + 8).collect()))
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        #[cfg_attr(feature = "schema", schemars(with = "String"))]
        pub struct $name(String);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(s: &str) -> Result<Self, InvalidName> {
                check(s).map(|()| Self(s.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(s: String) -> Result<Self, InvalidName> {
                check(&s).map(|()| Self(s))
            }
        }

        impl From<$name> for String {
            fn from(n: $name) -> String {
                n.0
            }
        }
    };
}

name_type! {
    /// A host (node).
    HostName
}
name_type! {
    /// What people call a virtual machine. It may be changed, and another VM may have had it: what is the VM's own is found by its
    /// [`VmId`](crate::VmId).
    VmName
}
/// What a VM is called now, as all of its hosts are to call it. It decides nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Label {
    pub name: VmName,
    /// How often the VM has been renamed: of two labels the one with the greater number counts. 0: it has the name of its hosts' files.
    pub number: u64,
}

name_type! {
    /// A volume, unique in a host's storage pool.
    VolumeName
}
name_type! {
    /// A snapshot, unique in a host's storage pool.
    SnapshotName
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels() {
        for good in ["a", "host-1", "0", &"x".repeat(MAX_NAME)] {
            assert!(good.parse::<HostName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a/b", "..", "a b", &"x".repeat(MAX_NAME + 1), "ä"] {
            assert!(bad.parse::<HostName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bad_name_in_json_is_refused() {
        assert!(serde_json::from_str::<VmName>("\"../x\"").is_err());
        assert_eq!(serde_json::from_str::<VmName>("\"db\"").unwrap().as_str(), "db");
    }
}
