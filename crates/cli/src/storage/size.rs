//! Sizes as people type them.

use std::str::FromStr;

/// Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

/// Why a word is no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a size: give bytes, or units of 1024 by K, M, G or T, such as 512M or 10G")]
pub struct InvalidSize(String);

impl FromStr for Size {
    type Err = InvalidSize;

    fn from_str(text: &str) -> Result<Self, InvalidSize> {
        let invalid = || InvalidSize(text.chars().take(32).collect());
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let number: u64 = text[..end].parse().map_err(|_| invalid())?;
        // GB is not taken: some mean 1000^3 bytes by it.
        let shift = match &text[end..] {
            "" => 0,
            "K" | "KiB" => 10,
            "M" | "MiB" => 20,
            "G" | "GiB" => 30,
            "T" | "TiB" => 40,
            _ => return Err(invalid()),
        };
        number.checked_mul(1 << shift).map(Size).ok_or_else(invalid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_or_refused() {
        for (text, bytes) in [("512", 512), ("1K", 1024), ("10G", 10 << 30), ("3TiB", 3 << 40)] {
            assert_eq!(text.parse(), Ok(Size(bytes)));
        }
        for bad in ["", "G", "1.5G", "10GB", "-1", "+1", "1 G", "16777216T", "99999999999999999999", "1é"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }
}
