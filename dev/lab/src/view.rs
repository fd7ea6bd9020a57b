//! Hosts that do not see each other's files.
//!
//! In a lab whose hosts are *apart* each process of a host is started in a mount namespace of its own (mount_namespaces(7)), in which of all labs there is
//! nothing but its host's directory: configuration, sockets, logs, pool. So it can ask its own keeper, and no other, as on a real host. Nothing of it has
//! to be taken down: a namespace ends with its processes. The machine that carries the hosts sees all of them.
//!
//! ```text
//!   on the machine                        in a process of host a
//!   /run/ninefold-lab/LAB/a               /run/ninefold-lab/LAB/a
//!   /run/ninefold-lab/LAB/b
//!   /run/ninefold-lab/LAB/lab.json …
//! ```

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::error::{LabError, io_at};
use crate::lab::Lab;
use crate::record::{LABS, VIEW};

/// What a process needs to make its view, prepared before it is forked: afterwards it must not allocate.
struct View {
    /// Mounts of other hosts and of other labs. They must not live on in the new namespace: a disk that its own host has given up would stay in use.
    others: Vec<CString>,
    /// Where the view is put together, and the directories that it consists of.
    view: CString,
    view_lab: CString,
    view_host: CString,
    /// The host's directory, which it shows.
    host: CString,
    /// What it lies over.
    labs: CString,
}

impl View {
    fn of(lab: &Lab, host: &str) -> io::Result<Self> {
        let own = lab.run_dir(host);
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        // Fields are separated by spaces; no name of a lab has a character that is escaped there.
        let all = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(Path::new);
        let others = all.filter(|at| at.starts_with(LABS) && !at.starts_with(&own)).map(c_path);
        let view = lab.dir().join(VIEW);
        Ok(Self {
            others: others.collect::<io::Result<_>>()?,
            view_lab: c_path(&view.join(lab.name()))?,
            view_host: c_path(&view.join(lab.name()).join(host))?,
            view: c_path(&view)?,
            host: c_path(&own)?,
            labs: c_path(Path::new(LABS))?,
        })
    }

    /// Makes it, in a namespace of the calling process's own. System calls alone.
    fn enter(&self) -> io::Result<()> {
        // SAFETY: it takes no pointer.
        done(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
        // What is done here stays here; what the machine unmounts later is gone here, too.
        mount(c"none", c"/", None, libc::MS_REC | libc::MS_SLAVE)?;
        for other in &self.others {
            // SAFETY: the path ends with a zero byte.
            let gone = done(unsafe { libc::umount2(other.as_ptr(), libc::MNT_DETACH) });
            // It may have gone by itself.
            gone.or_else(|e| if e.raw_os_error() == Some(libc::EINVAL) { Ok(()) } else { Err(e) })?;
        }
        mount(c"none", &self.view, Some(c"tmpfs"), 0)?;
        for dir in [&self.view_lab, &self.view_host] {
            // SAFETY: the path ends with a zero byte.
            done(unsafe { libc::mkdir(dir.as_ptr(), 0o755) })?;
        }
        mount(&self.host, &self.view_host, None, libc::MS_BIND | libc::MS_REC)?;
        mount(&self.view, &self.labs, None, libc::MS_BIND | libc::MS_REC)
    }
}

impl Lab {
    /// Makes a command start with the view of this host, if the lab's hosts are apart.
    pub(crate) fn restrict(&self, command: &mut Command, host: &str) -> Result<(), LabError> {
        if !self.record().apart {
            return Ok(());
        }
        let view = View::of(self, host).map_err(io_at(format!("find out what host {host} may see")))?;
        // SAFETY: between fork and exec the closure makes system calls only, on paths that were prepared before; it takes no lock and allocates nothing.
        // `io::Error::last_os_error` does not allocate either.
        unsafe {
            command.pre_exec(move || view.enter());
        }
        Ok(())
    }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from)
}

fn mount(source: &CStr, target: &CStr, kind: Option<&CStr>, flags: libc::c_ulong) -> io::Result<()> {
    let kind = kind.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: the strings end with zero bytes, or there is none; no data is given.
    done(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind, flags, std::ptr::null()) })
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
