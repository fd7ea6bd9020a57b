//! TAP devices (Linux, Documentation/networking/tuntap.rst) and the state of uplinks.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use crate::ifreq;

/// Why a TAP could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// `/dev/net/tun` does not open: usually not root, or no tun module.
    #[error("cannot open /dev/net/tun (root and the tun module are needed)")]
    Device(#[source] io::Error),
    /// Usually: not root, the name is taken, or it is not a name.
    #[error("cannot make TAP device '{name}'{}", taken(.source))]
    Create {
        /// The TAP's name as asked for.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// There is no such bridge in this network namespace.
    #[error("no network bridge '{bridge}' on this host")]
    NoBridge {
        /// The bridge's name.
        bridge: String,
    },
    /// The bridge did not take the TAP; what bears its name may be no bridge.
    #[error("cannot make TAP device '{name}' a port of '{bridge}'")]
    Join {
        /// The TAP's name.
        name: String,
        /// The bridge's name.
        bridge: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The device could not be set up.
    #[error("cannot set up TAP device '{name}'")]
    SetUp {
        /// The TAP's name.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl TapError {
    /// There is an interface of that name already, and somebody uses it.
    #[must_use]
    pub fn is_taken(&self) -> bool {
        matches!(self, Self::Create { source, .. } if source.raw_os_error() == Some(libc::EBUSY))
    }
}

/// Why the kernel says that a name is busy.
fn taken(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EBUSY) => ": an interface of this name is in use",
        _ => "",
    }
}

/// A TAP device: an Ethernet interface whose other end is this object. One read or write is one frame. The interface is
/// removed when this is dropped, also when the process is killed.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    name: String,
}

impl Tap {
    /// Makes the device `name` (up to 15 bytes; `%d` in it is replaced by the first free number) in the calling thread's
    /// network namespace, as a port of `bridge` with the bridge's MTU, up and non-blocking.
    ///
    /// # Errors
    /// Each says what was not possible. Nothing is left behind.
    pub fn open(name: &str, bridge: Option<&str>) -> Result<Self, TapError> {
        let fd = rustix::fs::open("/dev/net/tun", OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| TapError::Device(e.into()))?;
        let name = ifreq::make_tap(&fd, name).map_err(|source| TapError::Create { name: name.to_owned(), source })?;
        let set_up = |source| TapError::SetUp { name: name.clone(), source };
        let control = ifreq::control().map_err(set_up)?;
        // The host itself has nothing to say here: without this it would send router solicitations to the guest.
        // A kernel without IPv6 has no such file.
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
        if let Some(bridge) = bridge {
            // A bridge without an address of its own takes its smallest port's: 0xfe keeps it from changing its
            // address with every VM that comes and goes (libvirt does the same).
            ifreq::set_first_address_byte(&control, &name, 0xfe).map_err(set_up)?;
            let mtu = ifreq::mtu(&control, bridge).map_err(|_| TapError::NoBridge { bridge: bridge.to_owned() })?;
            ifreq::set_mtu(&control, &name, mtu).map_err(set_up)?;
            let index = ifreq::index(&control, &name).map_err(set_up)?;
            ifreq::add_to_bridge(&control, bridge, index).map_err(|source| TapError::Join {
                name: name.clone(),
                bridge: bridge.to_owned(),
                source,
            })?;
        }
        ifreq::set_up(&control, &name).map_err(set_up)?;
        Ok(Self { fd, name })
    }

    /// The interface's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the interface is up and has a carrier now. False when it is gone.
    #[must_use]
    pub fn has_link(&self) -> bool {
        ifreq::control().and_then(|control| ifreq::has_link(&control, &self.name)).unwrap_or(false)
    }

    /// Reads one frame. A frame longer than `buf` is cut.
    ///
    /// # Errors
    /// `WouldBlock` if there is none; others when the device is gone.
    pub fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&self.fd, buf)?)
    }

    /// Writes one frame.
    ///
    /// # Errors
    /// The frame is no frame (`InvalidInput`), or the device is down or gone.
    pub fn write(&self, frame: &[u8]) -> io::Result<()> {
        loop {
            match rustix::io::write(&self.fd, frame) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether the interface `ifname` can carry traffic now: `IFF_RUNNING`, see netdevice(7). Looks in the calling thread's
/// network namespace. The kernel updates it in the background: a change of the carrier shows up to about 1 s later.
///
/// # Errors
/// There is no such interface.
pub fn uplink_running(ifname: &str) -> io::Result<bool> {
    Ok(ifreq::flags(&ifreq::control()?, ifname)? & libc::IFF_RUNNING != 0)
}
