//! Round trips of ICMP echoes (RFC 792, RFC 1071) from inside a namespace.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::error::LabError;
use crate::netns::io_in_netns;
use ninefold_model::series::Series;

const ECHO: u8 = 8;
const ECHO_REPLY: u8 = 0;

/// A series of echoes.
#[derive(Debug, Clone)]
pub struct Pinger {
    /// How many are sent, one after the other.
    pub count: u16,
    /// From one to the next.
    pub interval: Duration,
    /// After how long one counts as lost.
    pub patience: Duration,
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct Pings {
    /// Round trips, microseconds.
    pub rtt_us: Series,
    pub lost: u64,
}

impl Default for Pinger {
    fn default() -> Self {
        Self { count: 100, interval: Duration::from_millis(10), patience: Duration::from_secs(1) }
    }
}

impl Pinger {
    /// Sends the echoes and waits for them.
    ///
    /// # Errors
    /// The namespace is not there, or a raw socket cannot be opened or used. Echoes that do not come back are counted.
    pub fn run(&self, netns: &str, to: Ipv4Addr) -> Result<Pings, LabError> {
        io_in_netns(netns, &format!("ping {to}"), || self.run_here(to))
    }

    fn run_here(&self, to: Ipv4Addr) -> io::Result<Pings> {
        let mut socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
        // A connected raw socket hears only its peer.
        socket.connect(&SocketAddrV4::new(to, 0).into())?;
        // Two pingers at once hear each other's replies.
        let id = (std::process::id() as u16) ^ rustix::thread::gettid().as_raw_nonzero().get() as u16;
        let mut pings = Pings::default();
        for seq in 0..self.count {
            let begin = Instant::now();
            socket.write_all(&echo(id, seq))?;
            match await_reply(&mut socket, id, seq, begin + self.patience)? {
                true => pings.rtt_us.push(begin.elapsed().as_micros() as u64),
                false => pings.lost += 1,
            }
            std::thread::sleep(self.interval.saturating_sub(begin.elapsed()));
        }
        Ok(pings)
    }
}

fn await_reply(socket: &mut Socket, id: u16, seq: u16, deadline: Instant) -> io::Result<bool> {
    let mut packet = [0; 1500];
    while let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|d| !d.is_zero()) {
        socket.set_read_timeout(Some(left))?;
        match socket.read(&mut packet) {
            Ok(length) if is_reply(&packet[..length], id, seq) => return Ok(true),
            Ok(_) => {}
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            // No route or no such neighbour at the moment.
            Err(e) if e.kind() == io::ErrorKind::HostUnreachable => return Ok(false),
            Err(e) => return Err(e),
        }
    }
    Ok(false)
}

fn echo(id: u16, seq: u16) -> [u8; 64] {
    let mut packet = [0; 64];
    packet[0] = ECHO;
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    packet[6..8].copy_from_slice(&seq.to_be_bytes());
    let sum = checksum(&packet);
    packet[2..4].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// The Internet checksum of an even number of bytes (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks_exact(2).map(|b| u32::from(u16::from_be_bytes([b[0], b[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) as u16).wrapping_add((folded >> 16) as u16)
}

/// Raw sockets give the IP header too (raw(7)).
fn is_reply(packet: &[u8], id: u16, seq: u16) -> bool {
    let header = usize::from(packet.first().map_or(0, |b| b & 15)) * 4;
    let Some(icmp) = packet.get(header..).filter(|i| i.len() >= 8) else { return false };
    icmp[0] == ECHO_REPLY && icmp[4..6] == id.to_be_bytes() && icmp[6..8] == seq.to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_is_well_formed() {
        let packet = echo(0x1234, 7);
        assert_eq!(checksum(&packet), 0, "the sum over a packet with its checksum is 0");
        assert!(!is_reply(&[], 0, 0) && !is_reply(&[0x4f; 12], 0, 0));
    }
}
