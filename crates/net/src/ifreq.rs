//! Requests to network interfaces by ioctl, see netdevice(7). With `unread` the crate's only unsafe code.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// `SIOCBRADDIF`, linux/sockios.h.
const SIOCBRADDIF: libc::c_ulong = 0x89a2;
/// `TUNSETIFF`, linux/if_tun.h.
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;

/// A request that names an interface.
pub(crate) struct Request(libc::ifreq);

impl Request {
    /// For the interface `name`: 1 to 15 bytes (`IFNAMSIZ` less the final zero).
    pub(crate) fn new(name: &str) -> io::Result<Self> {
        let bytes = name.as_bytes();
        if bytes.is_empty() || bytes.len() >= libc::IFNAMSIZ || bytes.contains(&0) || bytes.contains(&b'/') {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not an interface name (1 to 15 bytes)"));
        }
        // SAFETY: `ifreq` is a C struct of integers, arrays and pointers; all zero is a valid value of it.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(bytes) {
            *to = *from as libc::c_char;
        }
        Ok(Self(request))
    }

    fn name(&self) -> String {
        self.0.ifr_name.iter().take_while(|&&c| c != 0).map(|&c| char::from(c as u8)).collect()
    }

    fn issue(&mut self, fd: impl AsFd, request: libc::c_ulong) -> io::Result<()> {
        // SAFETY: the descriptor is open for the call, and every request issued in this module takes a pointer to an
        // `ifreq`, which the kernel reads and writes within its size; `has_link` alone puts a pointer into it, to what outlives
        // the call.
        let rc = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request as _, &raw mut self.0) };
        if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn int(&self) -> libc::c_int {
        // SAFETY: every member of the union is plain data, and all of it was initialised.
        unsafe { self.0.ifr_ifru.ifru_ifindex }
    }

    fn flags(&self) -> libc::c_short {
        // SAFETY: as in `int`.
        unsafe { self.0.ifr_ifru.ifru_flags }
    }
}

/// A socket to issue requests on, in the calling thread's network namespace.
pub(crate) fn control() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?)
}

/// `TUNSETIFF`: makes `tun` (an open `/dev/net/tun`) a TAP device without packet information. Returns its name, which
/// differs from `name` if that holds `%d`.
pub(crate) fn make_tap(tun: &OwnedFd, name: &str) -> io::Result<String> {
    let mut request = Request::new(name)?;
    request.0.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    request.issue(tun, TUNSETIFF)?;
    Ok(request.name())
}

/// `SIOCGIFINDEX`
pub(crate) fn index(control: &OwnedFd, name: &str) -> io::Result<libc::c_int> {
    let mut request = Request::new(name)?;
    request.issue(control, libc::SIOCGIFINDEX as _)?;
    Ok(request.int())
}

/// `SIOCGIFFLAGS`
pub(crate) fn flags(control: &OwnedFd, name: &str) -> io::Result<libc::c_int> {
    let mut request = Request::new(name)?;
    request.issue(control, libc::SIOCGIFFLAGS as _)?;
    Ok(libc::c_int::from(request.flags()))
}

/// `SIOCETHTOOL` with `ETHTOOL_GLINK` (linux/ethtool.h): whether the interface is up and has a carrier, as of now. (Its flags say
/// so up to a second later.)
pub(crate) fn has_link(control: &OwnedFd, name: &str) -> io::Result<bool> {
    const ETHTOOL_GLINK: u32 = 0xa;
    // `struct ethtool_value`: command, answer.
    let mut value = [ETHTOOL_GLINK, 0];
    let mut request = Request::new(name)?;
    request.0.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
    // The kernel reads and writes the two words behind this pointer, which outlive the call.
    request.issue(control, libc::SIOCETHTOOL as _)?;
    Ok(value[1] != 0)
}

/// `SIOCSIFFLAGS`: sets `IFF_UP`.
pub(crate) fn set_up(control: &OwnedFd, name: &str) -> io::Result<()> {
    let mut request = Request::new(name)?;
    request.issue(control, libc::SIOCGIFFLAGS as _)?;
    request.0.ifr_ifru.ifru_flags = request.flags() | libc::IFF_UP as libc::c_short;
    request.issue(control, libc::SIOCSIFFLAGS as _)
}

/// `SIOCGIFMTU`: bytes.
pub(crate) fn mtu(control: &OwnedFd, name: &str) -> io::Result<libc::c_int> {
    let mut request = Request::new(name)?;
    request.issue(control, libc::SIOCGIFMTU as _)?;
    Ok(request.int())
}

/// `SIOCSIFMTU`: bytes.
pub(crate) fn set_mtu(control: &OwnedFd, name: &str, mtu: libc::c_int) -> io::Result<()> {
    let mut request = Request::new(name)?;
    request.0.ifr_ifru.ifru_mtu = mtu;
    request.issue(control, libc::SIOCSIFMTU as _)
}

/// `SIOCGIFHWADDR`, `SIOCSIFHWADDR`: gives the interface's Ethernet address another first byte.
pub(crate) fn set_first_address_byte(control: &OwnedFd, name: &str, byte: u8) -> io::Result<()> {
    let mut request = Request::new(name)?;
    request.issue(control, libc::SIOCGIFHWADDR as _)?;
    // SAFETY: as in `int`; the kernel filled this member.
    let mut address = unsafe { request.0.ifr_ifru.ifru_hwaddr };
    address.sa_data[0] = byte as libc::c_char;
    request.0.ifr_ifru.ifru_hwaddr = address;
    request.issue(control, libc::SIOCSIFHWADDR as _)
}

/// `SIOCBRADDIF`: makes the interface with index `port` a port of `bridge`.
pub(crate) fn add_to_bridge(control: &OwnedFd, bridge: &str, port: libc::c_int) -> io::Result<()> {
    let mut request = Request::new(bridge)?;
    request.0.ifr_ifru.ifru_ifindex = port;
    request.issue(control, SIOCBRADDIF)
}
