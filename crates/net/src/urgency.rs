//! Which frames somebody waits for, and whether somebody has more to send.
//!
//! A guest that is being sent data acknowledges it, piece by piece. Nobody's work depends on such an acknowledgement
//! coming at once (RFC 9293, 3.8.6.3 lets a receiver delay it on purpose), while a checkpoint for each of them would
//! stop the guest in the middle of taking the data in. All else that a guest sends may be an answer.

/// How much a held item is missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Urgency {
    /// It only acknowledges: it can wait a little.
    Patient,
    /// Somebody may wait for it.
    Urgent,
}

const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const VLAN: [u8; 2] = [0x81, 0x00];
const TCP: u8 = 6;
const PUSH: u8 = 0b1000;
/// FIN, SYN, RST, PSH, URG: any of them says more than "received".
const MORE_THAN_ACK: u8 = 0b10_1111;

impl Urgency {
    /// That of an Ethernet frame. What cannot be read is urgent.
    #[must_use]
    pub fn of_frame(frame: &[u8]) -> Self {
        if is_bare_ack(frame).unwrap_or(false) { Self::Patient } else { Self::Urgent }
    }
}

/// Whether the sender of this Ethernet frame has more to send, if it carries data over TCP: it pushes with the last
/// segment of what it was given (RFC 9293, 3.9.1.2).
#[must_use]
pub fn more_to_come(frame: &[u8]) -> Option<bool> {
    let Tcp { flags, has_data } = tcp(frame)?;
    has_data.then_some(flags & PUSH == 0)
}

/// Whether the frame is a TCP segment without data that does nothing but acknowledge.
fn is_bare_ack(frame: &[u8]) -> Option<bool> {
    let Tcp { flags, has_data } = tcp(frame)?;
    Some(!has_data && flags & MORE_THAN_ACK == 0)
}

/// What is of interest of a TCP segment.
struct Tcp {
    flags: u8,
    has_data: bool,
}

/// The TCP segment of an Ethernet frame, if it has a whole one.
fn tcp(frame: &[u8]) -> Option<Tcp> {
    let (mut kind, mut packet) = (frame.get(12..14)?, frame.get(14..)?);
    if kind == VLAN {
        (kind, packet) = (packet.get(2..4)?, packet.get(4..)?);
    }
    // RFC 791: header length, total length, fragment, protocol. RFC 8200: payload length, next header.
    let segment = if kind == IPV4 {
        let header = usize::from(packet.first()? & 0xf) * 4;
        let total = usize::from(u16::from_be_bytes(packet.get(2..4)?.try_into().ok()?));
        // A fragment may carry anything.
        if *packet.get(9)? != TCP || packet[6] & 0x3f != 0 || packet[7] != 0 {
            return None;
        }
        packet.get(header..total)?
    } else if kind == IPV6 {
        let length = usize::from(u16::from_be_bytes(packet.get(4..6)?.try_into().ok()?));
        if *packet.get(6)? != TCP {
            return None;
        }
        packet.get(40..40 + length)?
    } else {
        return None;
    };
    let (header, flags) = (usize::from(segment.get(12)? >> 4) * 4, *segment.get(13)?);
    Some(Tcp { flags, has_data: segment.len() != header })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A TCP segment in IPv4 in Ethernet, padded as a NIC does.
    fn segment(flags: u8, options: usize, data: usize, vlan: bool) -> Vec<u8> {
        let mut frame = vec![0; 12];
        if vlan {
            frame.extend([0x81, 0, 0, 5]);
        }
        frame.extend(IPV4);
        let mut packet = vec![0; 20];
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&((40 + options + data) as u16).to_be_bytes());
        packet[6] = 0x40;
        packet[9] = TCP;
        let mut tcp = vec![0; 20 + options + data];
        tcp[12] = (((20 + options) / 4) << 4) as u8;
        tcp[13] = flags;
        frame.extend(packet);
        frame.extend(tcp);
        frame.resize(frame.len().max(60), 0);
        frame
    }

    #[test]
    fn only_a_segment_that_acknowledges_and_nothing_else_is_patient() {
        for vlan in [false, true] {
            assert_eq!(Urgency::of_frame(&segment(0x10, 12, 0, vlan)), Urgency::Patient);
            assert_eq!(Urgency::of_frame(&segment(0x50, 0, 0, vlan)), Urgency::Patient, "ECN-Echo changes nothing");
            assert_eq!(Urgency::of_frame(&segment(0x10, 12, 1, vlan)), Urgency::Urgent, "data");
            for flag in [0x01, 0x02, 0x04, 0x08, 0x20] {
                assert_eq!(Urgency::of_frame(&segment(0x10 | flag, 0, 0, vlan)), Urgency::Urgent, "{flag:#x}");
            }
        }
        let mut fragment = segment(0x10, 0, 0, false);
        fragment[14 + 7] = 1;
        assert_eq!(Urgency::of_frame(&fragment), Urgency::Urgent);
        let mut udp = segment(0x10, 0, 0, false);
        udp[14 + 9] = 17;
        assert_eq!(Urgency::of_frame(&udp), Urgency::Urgent);
    }

    #[test]
    fn who_pushes_has_sent_all() {
        for vlan in [false, true] {
            assert_eq!(more_to_come(&segment(0x10, 12, 1000, vlan)), Some(true));
            assert_eq!(more_to_come(&segment(0x18, 12, 1000, vlan)), Some(false));
            assert_eq!(more_to_come(&segment(0x10, 12, 0, vlan)), None, "an acknowledgement says nothing of it");
        }
        assert_eq!(more_to_come(&[0; 60]), None);
    }

    #[test]
    fn ipv6_too() {
        let mut frame = vec![0; 12];
        frame.extend(IPV6);
        let mut packet = vec![0; 60];
        packet[5] = 20;
        packet[6] = TCP;
        packet[40 + 12] = 5 << 4;
        packet[40 + 13] = 0x10;
        frame.extend(&packet);
        assert_eq!(Urgency::of_frame(&frame), Urgency::Patient);
        frame[14 + 5] = 21;
        frame.push(0);
        assert_eq!(Urgency::of_frame(&frame), Urgency::Urgent);
    }

    proptest! {
        #[test]
        fn any_bytes_have_an_urgency(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
            let _ = (Urgency::of_frame(&bytes), more_to_come(&bytes));
            let mut frame = segment(0x10, 0, 0, false);
            frame.iter_mut().skip(14).zip(&bytes).for_each(|(f, b)| *f ^= b);
            let _ = (Urgency::of_frame(&frame), more_to_come(&frame));
        }
    }
}
