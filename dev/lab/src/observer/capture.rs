//! One packet socket on one switch port (packet(7)).

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use ninefold_model::spec::Mac;

use super::speakers::{Frame, FrameKind};
use crate::link;

/// `PACKET_IGNORE_OUTGOING` (Linux 4.20), absent from the libc crate.
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
/// Room in the kernel for frames that are not yet read, bytes.
const BUFFER: libc::c_int = 32 << 20;
/// How much of each frame is looked at: Ethernet, IPv6 and ICMPv6 type.
const HEAD: usize = 64;
/// Frames read in one go from one port, so that no port is starved.
const BATCH: usize = 4096;

/// The frames that enter a switch by one port.
#[derive(Debug)]
pub struct Capture {
    socket: OwnedFd,
    mac: Mac,
}

impl Capture {
    /// Must be called inside the switch's namespace.
    ///
    /// # Errors
    /// This process may not open packet sockets, the kernel is too old for one of the options, or there is no such port.
    pub fn open(port: &str, mac: Mac) -> io::Result<Self> {
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        // Protocol 0 at first: nothing is heard before the socket is bound to its port.
        // SAFETY: plain system call; the result is checked.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just made and belongs to nobody else.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        set(&socket, libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)?;
        set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER)?;
        set(&socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1)?;
        // SAFETY: plain data, for which all zeroes is a valid value.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = link::index(port)?;
        // SAFETY: the pointer and the length are those of a live `sockaddr_ll`.
        let done =
            unsafe { libc::bind(fd, (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as libc::socklen_t) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(Self { socket, mac }) }
    }

    /// Reads what has come, as frames of host number `host`.
    pub fn read(&self, host: usize, into: &mut Vec<Frame>) {
        let offset = realtime_minus_monotonic();
        for _ in 0..BATCH {
            let Some((head, length, realtime_ns)) = self.next() else { return };
            if head.get(6..12) == Some(&self.mac.0) {
                let at_ns = u64::try_from(realtime_ns - offset).unwrap_or(0);
                into.push(Frame { at_ns, host, kind: FrameKind::of(&head), length: length as u32 });
            }
        }
    }

    /// One frame: its head, its whole length, its time (CLOCK_REALTIME, nanoseconds). `None` when there is none, and
    /// when the port is down (`ENETDOWN` is reported once and cleared by reading it).
    fn next(&self) -> Option<([u8; HEAD], usize, i128)> {
        let mut head = [0u8; HEAD];
        // Room for one control message with a timespec, aligned as `cmsghdr` wants it.
        let mut control = [0u64; 8];
        let mut part = libc::iovec { iov_base: head.as_mut_ptr().cast(), iov_len: HEAD };
        // SAFETY: plain data, for which all zeroes is a valid value.
        let mut message: libc::msghdr = unsafe { zeroed() };
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        // SAFETY: the message's pointers and lengths describe `head` and `control`, which outlive the call.
        let length = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut message, libc::MSG_TRUNC) };
        let length = usize::try_from(length).ok()?;
        let mut time = None;
        // SAFETY: `message` was filled by the kernel; its control buffer is alive. The CMSG macros stay inside it.
        unsafe {
            let mut header = libc::CMSG_FIRSTHDR(&raw const message);
            while !header.is_null() {
                if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_TIMESTAMPNS {
                    let stamp: libc::timespec = libc::CMSG_DATA(header).cast::<libc::timespec>().read_unaligned();
                    time = Some(nanoseconds(&stamp));
                }
                header = libc::CMSG_NXTHDR(&raw const message, header);
            }
        }
        Some((head, length, time.unwrap_or_else(|| clock(libc::CLOCK_REALTIME))))
    }

    /// Frames that the kernel had no room for since the last call.
    pub fn lost(&self) -> u64 {
        // SAFETY: plain data, for which all zeroes is a valid value.
        let mut stats: libc::tpacket_stats = unsafe { zeroed() };
        let mut length = size_of::<libc::tpacket_stats>() as libc::socklen_t;
        // SAFETY: pointer and length are those of a live `tpacket_stats`.
        let done = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut stats).cast(),
                &raw mut length,
            )
        };
        if done < 0 { 0 } else { u64::from(stats.tp_drops) }
    }
}

impl AsFd for Capture {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn set(socket: &OwnedFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: pointer and length are those of a live integer.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn nanoseconds(t: &libc::timespec) -> i128 {
    i128::from(t.tv_sec) * 1_000_000_000 + i128::from(t.tv_nsec)
}

fn clock(id: libc::clockid_t) -> i128 {
    // SAFETY: plain data, for which all zeroes is a valid value.
    let mut time: libc::timespec = unsafe { zeroed() };
    // SAFETY: the pointer is that of a live `timespec`. It cannot fail for these two clocks.
    unsafe { libc::clock_gettime(id, &raw mut time) };
    nanoseconds(&time)
}

/// CLOCK_MONOTONIC now, nanoseconds: the time of a [`Frame`].
pub fn monotonic_ns() -> u64 {
    u64::try_from(clock(libc::CLOCK_MONOTONIC)).unwrap_or(Duration::ZERO.as_nanos() as u64)
}

/// The kernel stamps frames by CLOCK_REALTIME, events carry CLOCK_MONOTONIC.
fn realtime_minus_monotonic() -> i128 {
    // The tightest of a few readings: this thread can be interrupted between the two clocks.
    let readings = (0..3).map(|_| {
        let before = clock(libc::CLOCK_MONOTONIC);
        let real = clock(libc::CLOCK_REALTIME);
        let after = clock(libc::CLOCK_MONOTONIC);
        (after - before, real - (before + after) / 2)
    });
    readings.min().map_or(0, |(_, offset)| offset)
}
