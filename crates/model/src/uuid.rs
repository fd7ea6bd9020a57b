//! Universally unique identifiers (RFC 9562).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A UUID: never the one of zeros alone or of ones alone, which firmware takes for none at all (SMBIOS, 7.2.1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(with = "String"))]
pub struct Uuid(u128);

/// Why a UUID was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a UUID such as 1b4e28ba-2fa1-41d2-883f-0016d3cca427")]
pub struct InvalidUuid(String);

impl Uuid {
    /// Of 128 random bits (version 4).
    #[must_use]
    pub fn random(bits: u128) -> Self {
        Self::versioned(bits, 4)
    }

    /// Its 128 bits, the first hexadecimal digit being the most significant.
    #[must_use]
    pub fn as_u128(self) -> u128 {
        self.0
    }

    /// The one that belongs to `name` among names of this `kind`, the same everywhere: version 8, of the 128-bit FNV-1a hash of both.
    #[must_use]
    pub fn of_name(kind: &str, name: &str) -> Self {
        // Offset basis and prime: the FNV hash's specification (draft-eastlake-fnv).
        let mut hash: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
        for byte in kind.bytes().chain([0]).chain(name.bytes()) {
            hash = (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
        }
        Self::versioned(hash, 8)
    }

    /// With the bits of version and variant as they have to be (RFC 9562, section 4).
    fn versioned(bits: u128, version: u128) -> Self {
        let cleared = bits & !(0xf << 76) & !(0b11 << 62);
        Self(cleared | version << 76 | 0b10 << 62)
    }
}

impl FromStr for Uuid {
    type Err = InvalidUuid;

    fn from_str(s: &str) -> Result<Self, InvalidUuid> {
        let bad = || InvalidUuid(s.chars().take(48).collect());
        let bytes = s.as_bytes();
        let hyphens = [8, 13, 18, 23];
        if bytes.len() != 36 || hyphens.iter().any(|&at| bytes[at] != b'-') {
            return Err(bad());
        }
        let mut value = 0;
        for (_, byte) in bytes.iter().enumerate().filter(|(at, _)| !hyphens.contains(at)) {
            value = value << 4 | u128::from(char::from(*byte).to_digit(16).ok_or_else(bad)?);
        }
        if value == 0 || value == u128::MAX { Err(bad()) } else { Ok(Self(value)) }
    }
}

impl TryFrom<String> for Uuid {
    type Error = InvalidUuid;

    fn try_from(s: String) -> Result<Self, InvalidUuid> {
        s.parse()
    }
}

impl From<Uuid> for String {
    fn from(uuid: Uuid) -> String {
        uuid.to_string()
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |from: u32, digits: u32| self.0 >> (128 - 4 * (from + digits)) & ((1 << (4 * digits)) - 1);
        let [a, b, c, d, e] = [part(0, 8), part(8, 4), part(12, 4), part(16, 4), part(20, 12)];
        write!(f, "{a:08x}-{b:04x}-{c:04x}-{d:04x}-{e:012x}")
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_written_as_everybody_writes_them() {
        let text = "1b4e28ba-2fa1-41d2-883f-0016d3cca427";
        assert_eq!(text.parse::<Uuid>().unwrap().to_string(), text);
        assert_eq!(text.to_uppercase().parse::<Uuid>().unwrap().to_string(), text);
        let nil = "00000000-0000-0000-0000-000000000000";
        let bad = ["", nil, &nil.replace('0', "f"), &text[..35], &text.replace('-', "0"), &text.replace('b', "g"), "ä"];
        for bad in bad {
            assert!(bad.parse::<Uuid>().is_err(), "{bad}");
        }
        assert!(text.replace("1b", "ä").parse::<Uuid>().is_err());
    }

    #[test]
    fn versions_are_marked() {
        assert_eq!(Uuid::random(0).to_string(), "00000000-0000-4000-8000-000000000000");
        assert_eq!(Uuid::random(u128::MAX).to_string(), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    }

    #[test]
    fn a_name_has_the_same_one_everywhere_and_for_ever() {
        // As computed apart from this code: whatever changes it gives every VM another machine.
        assert_eq!(Uuid::of_name("vm", "db").to_string(), EXPECTED);
        let others = ["db2", "d", "bd", ""].map(|name| Uuid::of_name("vm", name));
        assert!(others.iter().all(|other| *other != Uuid::of_name("vm", "db")));
        assert_ne!(Uuid::of_name("vm", "db"), Uuid::of_name("vmd", "b"));
    }

    const EXPECTED: &str = "e00b3a10-3383-894f-b081-6f59983a5486";
}
