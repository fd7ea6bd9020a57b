//! Network interfaces of the current thread's namespace, by ioctl: no process is started, so that a fault is injected
//! at one instant.
//!
//! Source: netdevice(7); `SIOCBRADDIF` and `SIOCBRDELIF` in the kernel's `linux/sockios.h`.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// `SIOCBRADDIF`, absent from the libc crate.
const SIOCBRADDIF: libc::Ioctl = 0x89a2;
/// `SIOCBRDELIF`, absent from the libc crate.
const SIOCBRDELIF: libc::Ioctl = 0x89a3;

/// Sets an interface up or down.
///
/// # Errors
/// There is no such interface, or this process may not change it.
pub fn set_up(name: &str, up: bool) -> io::Result<()> {
    let mut request = Request::new(name)?;
    request.call(libc::SIOCGIFFLAGS)?;
    let flag = libc::IFF_UP as libc::c_short;
    let flags = request.flags();
    request.raw.ifr_ifru.ifru_flags = if up { flags | flag } else { flags & !flag };
    request.call(libc::SIOCSIFFLAGS)
}

/// Whether an interface is set up, and whether it has carrier.
///
/// # Errors
/// There is no such interface.
pub fn state(name: &str) -> io::Result<(bool, bool)> {
    let mut request = Request::new(name)?;
    request.call(libc::SIOCGIFFLAGS)?;
    let flags = i32::from(request.flags());
    Ok((flags & libc::IFF_UP != 0, flags & libc::IFF_RUNNING != 0))
}

/// The number of an interface.
///
/// # Errors
/// There is no such interface.
pub fn index(name: &str) -> io::Result<i32> {
    let mut request = Request::new(name)?;
    request.call(libc::SIOCGIFINDEX)?;
    Ok(request.number())
}

/// Plugs `port` into `bridge`, or takes it out. Neither end loses carrier. Asking for what is already so is no error.
///
/// # Errors
/// One of the two is not there, `bridge` is no bridge, or this process may not change it.
pub fn set_bridged(bridge: &str, port: &str, plugged: bool) -> io::Result<()> {
    let number = index(port)?;
    let mut request = Request::new(bridge)?;
    request.raw.ifr_ifru.ifru_ifindex = number;
    let (call, already) = if plugged { (SIOCBRADDIF, libc::EBUSY) } else { (SIOCBRDELIF, libc::EINVAL) };
    match request.call(call) {
        Err(e) if e.raw_os_error() == Some(already) => Ok(()),
        other => other,
    }
}

/// One `struct ifreq` and a socket to send it through.
struct Request {
    socket: OwnedFd,
    raw: libc::ifreq,
}

impl Request {
    fn new(name: &str) -> io::Result<Self> {
        let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        // SAFETY: `ifreq` is plain data (an array and a union of plain data), for which all zeroes is a valid value.
        let mut raw: libc::ifreq = unsafe { std::mem::zeroed() };
        // The last byte stays 0.
        if name.is_empty() || name.len() >= raw.ifr_name.len() {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        for (to, from) in raw.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        Ok(Self { socket, raw })
    }

    fn call(&mut self, request: libc::Ioctl) -> io::Result<()> {
        // SAFETY: every request used in this module takes a pointer to a `struct ifreq`, which `raw` is; the kernel
        // writes at most its size.
        let done = unsafe { libc::ioctl(self.socket.as_raw_fd(), request, &raw mut self.raw) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn flags(&self) -> libc::c_short {
        // SAFETY: all fields of the union are plain integers within initialised memory.
        unsafe { self.raw.ifr_ifru.ifru_flags }
    }

    fn number(&self) -> i32 {
        // SAFETY: as in `flags`.
        unsafe { self.raw.ifr_ifru.ifru_ifindex }
    }
}
