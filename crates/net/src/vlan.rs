//! VLAN tags of a frame (IEEE 802.1Q and 802.1ad), at most two.

use std::fmt;
use std::str::FromStr;

/// Tags that are looked at: a customer's within a provider's.
const MAX_TAGS: usize = 2;

/// The protocol identifiers of tags: 802.1Q and 802.1ad.
const TAGS: [[u8; 2]; 2] = [[0x81, 0x00], [0x88, 0xa8]];

/// Where a frame was heard: its tags, the outermost first, without their priorities. The default is an untagged frame's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Vlan {
    /// Protocol identifier and VLAN number; all zero where there is none.
    tags: [([u8; 2], u16); MAX_TAGS],
}

impl Vlan {
    /// The VLAN of a frame, the type of what is in it, and that. `None`: it ends before that, or has more tags.
    #[must_use]
    pub fn of(frame: &[u8]) -> Option<(Self, [u8; 2], &[u8])> {
        let (mut vlan, mut at, mut tags) = (Self::default(), 12, 0);
        loop {
            let kind: [u8; 2] = frame.get(at..at + 2)?.try_into().ok()?;
            if !TAGS.contains(&kind) {
                return Some((vlan, kind, frame.get(at + 2..)?));
            }
            let tag: [u8; 2] = frame.get(at + 2..at + 4)?.try_into().ok()?;
            let number = u16::from_be_bytes(tag) & 0xfff;
            // Number 0 is no VLAN, only a priority.
            if number != 0 {
                *vlan.tags.get_mut(tags)? = (kind, number);
                tags += 1;
            }
            at += 4;
        }
    }

    fn tags(&self) -> impl Iterator<Item = ([u8; 2], u16)> {
        self.tags.into_iter().filter(|(_, number)| *number != 0)
    }

    /// Hands `frame`, which has no tags, to `sink` with these.
    pub fn tag(&self, frame: &[u8], sink: impl FnOnce(&[u8])) {
        let mut tagged = [0; 128];
        let (Some((addresses, rest)), true) = (frame.split_at_checked(12), frame.len() + 4 * MAX_TAGS <= 128) else {
            return;
        };
        tagged[..12].copy_from_slice(addresses);
        let mut at = 12;
        for (kind, number) in self.tags() {
            tagged[at..at + 2].copy_from_slice(&kind);
            tagged[at + 2..at + 4].copy_from_slice(&number.to_be_bytes());
            at += 4;
        }
        tagged[at..at + rest.len()].copy_from_slice(rest);
        sink(&tagged[..at + rest.len()]);
    }
}

/// `-` for an untagged frame's, else such as `88a8:100/8100:5`.
impl fmt::Display for Vlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.tags().next().is_none() {
            return f.write_str("-");
        }
        for (n, (kind, number)) in self.tags().enumerate() {
            write!(f, "{}{:04x}:{number}", if n > 0 { "/" } else { "" }, u16::from_be_bytes(kind))?;
        }
        Ok(())
    }
}

/// It is not what [`Vlan`]'s `Display` writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a VLAN such as 8100:5, or - for none")]
pub struct InvalidVlan;

impl FromStr for Vlan {
    type Err = InvalidVlan;

    fn from_str(s: &str) -> Result<Self, InvalidVlan> {
        let mut vlan = Self::default();
        if s == "-" {
            return Ok(vlan);
        }
        let mut places = vlan.tags.iter_mut();
        for part in s.split('/') {
            let place = places.next().ok_or(InvalidVlan)?;
            let (kind, number) = part.split_once(':').ok_or(InvalidVlan)?;
            let kind = u16::from_str_radix(kind, 16).map_err(|_| InvalidVlan)?.to_be_bytes();
            let number = number.parse().map_err(|_| InvalidVlan)?;
            if !TAGS.contains(&kind) || !(1..=0xfff).contains(&number) {
                return Err(InvalidVlan);
            }
            *place = (kind, number);
        }
        Ok(vlan)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_gets_the_tags_that_it_was_heard_with() {
        let plain = [&[1; 12][..], &[8, 6], &[7; 46]].concat();
        for (tags, text) in [
            (&[][..], "-"),
            (&[0x81, 0, 0x20, 5], "8100:5"),
            (&[0x88, 0xa8, 0, 100, 0x81, 0, 0, 5], "88a8:100/8100:5"),
            (&[0x81, 0, 0xe0, 0], "-"),
        ] {
            let tagged = [&plain[..12], tags, &plain[12..]].concat();
            let (vlan, kind, packet) = Vlan::of(&tagged).unwrap();
            assert_eq!((vlan.to_string().as_str(), kind, packet), (text, [8, 6], &[7; 46][..]));
            assert_eq!(text.parse(), Ok(vlan));
            let mut again = Vec::new();
            vlan.tag(&plain, |frame| again = frame.to_vec());
            assert_eq!(Vlan::of(&again), Some((vlan, [8, 6], &[7; 46][..])));
            assert_eq!(again.len(), plain.len() + if text == "-" { 0 } else { tags.len() });
        }
    }

    #[test]
    fn what_is_no_vlan_is_refused() {
        let three = [&[1; 12][..], &[0x81, 0, 0, 1].repeat(3), &[8, 6]].concat();
        assert_eq!(Vlan::of(&three), None);
        for bad in ["", "5", "8100:0", "8100:4096", "0800:5", "8100:5/", "8100:1/8100:2/8100:3"] {
            assert_eq!(bad.parse::<Vlan>(), Err(InvalidVlan), "{bad}");
        }
        Vlan::default().tag(&[0; 5], |_| panic!("no frame"));
        Vlan::default().tag(&[0; 125], |_| panic!("no room"));
    }
}
