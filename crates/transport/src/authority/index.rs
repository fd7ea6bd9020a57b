//! What an authority has issued, and what of it is revoked: a text file, a line for each certificate, replaced whole.
//!
//! ```text
//! ninefold-authority 1
//! list 1764480000000                                                   the number of the latest revocation list
//! certificate a 5b0e…c1 1764470000 1796006000 -                        host, serial number, issued, good until, revoked
//! certificate b 61f7…09 1764470000 1796006000 1764480000
//! end 9c2f11aa                                                         CRC-32 of all that comes before this line
//! ```
//!
//! Times are seconds since the Unix epoch. The last line tells a file that is whole from one that is cut off or changed.

use std::collections::HashSet;
use std::fmt::Write;

use ninefold_model::HostName;

use crate::dates::UtcTime;

const HEAD: &str = "ninefold-authority 1";
/// The longest file that is read: room for a million certificates.
pub(super) const MOST: u64 = 128 << 20;

/// A certificate that was issued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub host: HostName,
    /// Hexadecimal.
    pub serial: String,
    pub issued: UtcTime,
    pub not_after: UtcTime,
    /// When it was revoked, if it was.
    pub revoked: Option<UtcTime>,
}

impl Entry {
    /// Whether it is good: neither revoked nor expired.
    pub fn is_in_force(&self, now: UtcTime) -> bool {
        self.revoked.is_none() && self.not_after > now
    }
}

/// All of them, in the order in which they were issued.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Index {
    pub entries: Vec<Entry>,
    /// Of the latest revocation list; each has a higher one, and at least the milliseconds since the Unix epoch when it was made.
    pub list_number: u64,
}

impl Index {
    /// Reads the file's text.
    ///
    /// # Errors
    /// What is wrong with it: it is cut off, has been changed, or is no index.
    pub fn parse(text: &str) -> Result<Self, String> {
        let body = text.strip_suffix('\n').ok_or("it is cut off")?;
        let (before, last) = body.rsplit_once('\n').ok_or("it is cut off")?;
        let sum = last.strip_prefix("end ").ok_or("it is cut off")?;
        let before = &text[..before.len() + 1];
        if sum != checksum(before) {
            return Err("its checksum does not fit".into());
        }
        let mut lines = before.lines().zip(1..);
        if lines.next().map(|(line, _)| line) != Some(HEAD) {
            return Err(format!("it does not begin with '{HEAD}'"));
        }
        let list = lines.next().and_then(|(line, _)| number(line.strip_prefix("list ")?));
        let mut index = Self { list_number: list.ok_or("line 2 is not the number of a list")?, ..Self::default() };
        let mut serials = HashSet::new();
        for (line, at) in lines {
            let entry = entry(line).ok_or_else(|| format!("line {at} is not a certificate"))?;
            if !serials.insert(entry.serial.clone()) {
                return Err(format!("line {at} has the serial number of another"));
            }
            index.entries.push(entry);
        }
        Ok(index)
    }

    /// The file's text.
    pub fn to_text(&self) -> String {
        let mut text = format!("{HEAD}\nlist {}\n", self.list_number);
        for Entry { host, serial, issued, not_after, revoked } in &self.entries {
            let revoked = revoked.map_or_else(|| "-".to_owned(), |at| at.0.to_string());
            // Writing to a String cannot fail.
            let _ = writeln!(text, "certificate {host} {serial} {} {} {revoked}", issued.0, not_after.0);
        }
        let sum = checksum(&text);
        text + "end " + &sum + "\n"
    }

    /// The hosts that have been issued certificates, each once, by name.
    pub fn hosts(&self) -> Vec<HostName> {
        let mut hosts: Vec<_> = self.entries.iter().map(|e| e.host.clone()).collect();
        hosts.sort();
        hosts.dedup();
        hosts
    }

    /// The certificate of a host that is good for longest.
    pub fn in_force(&self, host: &HostName, now: UtcTime) -> Option<&Entry> {
        self.entries.iter().filter(|e| e.host == *host && e.is_in_force(now)).max_by_key(|e| e.not_after)
    }
}

fn checksum(text: &str) -> String {
    format!("{:08x}", crc32fast::hash(text.as_bytes()))
}

fn entry(line: &str) -> Option<Entry> {
    let fields: Vec<&str> = line.strip_prefix("certificate ")?.split(' ').collect();
    let [host, serial, issued, not_after, revoked] = fields[..] else { return None };
    let revoked = if revoked == "-" { None } else { Some(UtcTime(number(revoked)?)) };
    let (issued, not_after) = (UtcTime(number(issued)?), UtcTime(number(not_after)?));
    Some(Entry { host: host.parse().ok()?, serial: self::serial(serial)?, issued, not_after, revoked })
}

/// A number as it is written: no sign, no leading zeros.
fn number(text: &str) -> Option<u64> {
    text.parse().ok().filter(|n: &u64| n.to_string() == text)
}

/// A serial number as it is written: 1 to 20 bytes in lower-case hexadecimal.
fn serial(text: &str) -> Option<String> {
    let digits = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    (digits && (2..=40).contains(&text.len()) && text.len().is_multiple_of(2)).then(|| text.to_owned())
}

/// A serial number as people write it, with capitals, colons, `0x` or a first byte that is zero.
pub(super) fn serial_of_people(text: &str) -> Option<String> {
    let text = text.trim().to_ascii_lowercase().replace(':', "");
    let text = text.strip_prefix("0x").unwrap_or(&text);
    let text = if text.len().is_multiple_of(2) { text.to_owned() } else { format!("0{text}") };
    let shorter = text.strip_prefix("00").filter(|rest| !rest.is_empty()).unwrap_or(&text);
    serial(shorter)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_entry() -> impl Strategy<Value = Entry> {
        let serial = prop::collection::vec(any::<u8>(), 1..=20);
        let times = (any::<u64>(), any::<u64>(), any::<Option<u64>>());
        ("[a-z][a-z0-9]{0,12}", serial, times).prop_map(|(host, serial, (issued, not_after, revoked))| Entry {
            host: host.parse().unwrap(),
            serial: crate::crypto::hex(&serial),
            issued: UtcTime(issued),
            not_after: UtcTime(not_after),
            revoked: revoked.map(UtcTime),
        })
    }

    fn any_index() -> impl Strategy<Value = Index> {
        (prop::collection::vec(any_entry(), 0..20), any::<u64>()).prop_map(|(mut entries, list_number)| {
            let mut seen = HashSet::new();
            entries.retain(|e| seen.insert(e.serial.clone()));
            Index { entries, list_number }
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(index in any_index()) {
            prop_assert_eq!(Index::parse(&index.to_text()), Ok(index));
        }

        /// Cut off anywhere, or with any byte changed, it is refused: no certificate is forgotten, none is another's.
        #[test]
        fn what_is_not_whole_is_refused(index in any_index(), at in any::<prop::sample::Index>(), flip in 1..=255_u8) {
            let text = index.to_text();
            let at = at.index(text.len());
            prop_assert!(Index::parse(&text[..at]).is_err());
            let mut bytes = text.into_bytes();
            bytes[at] ^= flip;
            if let Ok(text) = String::from_utf8(bytes) {
                prop_assert!(Index::parse(&text).is_err(), "{text}");
            }
        }

        /// Whatever it is given, it answers; and what it takes it writes as it was.
        #[test]
        fn anything_at_all_is_no_reason_to_panic(lines in prop::collection::vec("(certificate |list |end |)[ a-z0-9-]{0,60}", 0..8)) {
            let mut text: String = lines.iter().map(|line| format!("{line}\n")).collect();
            let _ = Index::parse(&text);
            // With a head and a checksum that fit, too.
            text = format!("{HEAD}\nlist 1\n{text}");
            text = format!("{text}end {}\n", checksum(&text));
            if let Ok(index) = Index::parse(&text) {
                prop_assert_eq!(index.to_text(), text);
            }
        }
    }

    #[test]
    fn serial_numbers_of_people() {
        assert_eq!(serial_of_people("0A:B1").as_deref(), Some("0ab1"));
        assert_eq!(serial_of_people("0x00fe").as_deref(), Some("fe"));
        assert_eq!(serial_of_people("abc").as_deref(), Some("0abc"));
        assert_eq!(serial_of_people("00").as_deref(), Some("00"));
        for wrong in ["", "xyz", "ä", &"f".repeat(42)] {
            assert_eq!(serial_of_people(wrong), None);
        }
    }
}
