//! CPU and device state: out of a paused QEMU, into a standby.
//!
//! Out: `xen-save-devices-state` (a stable command, not only for Xen) writes it to a memfd that QEMU inherits and opens
//! as `/proc/self/fd/N`; it truncates the file each time. `"live": false` matters: with the default, QEMU gives up its
//! block devices after saving a VM that is already stopped.
//!
//! In: `migrate-incoming` of a QEMU started with `-incoming defer`, from a socket passed by `getfd`. Its counterpart
//! `xen-load-devices-state` is not used: QEMU 10.0 aborts in it. Both sides need
//! `-global migration.send-configuration=off` and `suppress-vmdesc=on`, for the saved state has neither section.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::json;

use crate::error::{MachineError, Result};
use crate::qmp::Qmp;

/// Larger states are refused: real ones have some 30 KB, and a hostile length must not fill the host's memory.
pub const MAX_STATE: u64 = 64 << 20;
/// How long loading may take. It is milliseconds; the limit is for a QEMU that hangs.
const LOAD_TIMEOUT: Duration = Duration::from_secs(20);

/// The file that QEMU saves into.
#[derive(Debug)]
pub(crate) struct StateFile(File);

impl StateFile {
    pub(crate) fn create() -> Result<StateFile> {
        let fd = rustix::fs::memfd_create(c"ninefold-state", rustix::fs::MemfdFlags::CLOEXEC)
            .map_err(MachineError::os("memfd_create for the device state"))?;
        Ok(StateFile(fd.into()))
    }

    /// The name under which QEMU opens it.
    pub(crate) fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }

    /// Bytes saved.
    pub(crate) fn bytes(&self) -> Result<u64> {
        let size = rustix::fs::fstat(&self.0).map_err(MachineError::os("size of the device state"))?.st_size;
        let size = u64::try_from(size).unwrap_or(0);
        if size == 0 || size > MAX_STATE {
            return Err(MachineError::Protocol { reason: format!("a device state of {size} bytes") });
        }
        Ok(size)
    }

    /// Replaces `out` by the state; allocates only when `out` is too small.
    pub(crate) fn read(&self, out: &mut Vec<u8>) -> Result<()> {
        let size = self.bytes()? as usize;
        out.resize(size, 0);
        self.0.read_exact_at(out, 0).map_err(MachineError::io("reading the device state"))
    }
}

impl AsFd for StateFile {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Feeds `state` to a QEMU that waits for it. On success its devices are loaded and its vCPUs stand still.
pub(crate) fn load(qmp: &mut Qmp, state: &[u8]) -> Result<()> {
    let (mut ours, theirs) = UnixStream::pair().map_err(MachineError::io("socketpair for the device state"))?;
    // A usual state then fits in whole, and the writer below never waits.
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&ours, 1 << 20);
    let theirs: OwnedFd = theirs.into();
    qmp.execute_with_fd::<serde::de::IgnoredAny>("getfd", Some(json!({"fdname": "state"})), theirs.as_fd())?;
    // QEMU holds the only other end, so that its death ends the writing.
    drop(theirs);
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || {
            let written = ours.write_all(state);
            let _ = ours.shutdown(std::net::Shutdown::Write);
            written.map(|()| ours)
        });
        let loaded = qmp
            .run("migrate-incoming", Some(json!({"uri": "fd:state"})))
            .and_then(|()| qmp.await_migration(LOAD_TIMEOUT));
        if loaded.is_err() {
            // A writer that waits for a QEMU that does not read would wait for ever.
            qmp.close();
        }
        match (loaded, writer) {
            (Ok(true), writer) => {
                let _ = writer.join();
                Ok(())
            }
            (Ok(false), _) => Err(MachineError::Load { reason: "QEMU says that it failed".into() }),
            (Err(error), _) => Err(error),
        }
    })
}
