//! Running code and programs inside a network namespace (setns(2), network_namespaces(7)).
//!
//! A socket belongs to the namespace of the thread that makes it and stays there, so a thread that enters the
//! namespace, opens the socket and ends is enough. `/sys` is not changed by this: it still shows the interfaces of the
//! namespace in which it was mounted.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::error::{LabError, io_at};

/// Where iproute2 keeps the named namespaces.
pub fn path(netns: &str) -> PathBuf {
    PathBuf::from("/run/netns").join(netns)
}

fn open(netns: &str) -> Result<OwnedFd, LabError> {
    let path = path(netns);
    Ok(File::open(&path).map_err(io_at(format!("open {}", path.display())))?.into())
}

fn enter(netns: &OwnedFd) -> io::Result<()> {
    move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network)).map_err(io::Error::from)
}

/// Runs `f` in a thread of its own inside the namespace and gives back what it returns. A panic of `f` goes on in the
/// caller.
///
/// # Errors
/// The namespace is not there or cannot be entered.
pub fn in_netns<T: Send>(netns: &str, f: impl FnOnce() -> T + Send) -> Result<T, LabError> {
    let fd = open(netns)?;
    let done = std::thread::scope(|scope| {
        scope.spawn(|| enter(&fd).map(|()| f())).join().unwrap_or_else(|p| std::panic::resume_unwind(p))
    });
    done.map_err(io_at(format!("enter the network namespace {netns}")))
}

/// [`in_netns`] for a system call: both errors in one.
///
/// # Errors
/// The namespace is not there or cannot be entered, or `f` fails.
pub fn io_in_netns<T: Send>(netns: &str, what: &str, f: impl FnOnce() -> io::Result<T> + Send) -> Result<T, LabError> {
    in_netns(netns, f)?.map_err(io_at(format!("{netns}: {what}")))
}

/// Connects to `server`, from inside the namespace if one is given, and waits no longer than `patience` for that and for each
/// answer.
///
/// # Errors
/// The namespace is not there, or nobody accepts the connection in time.
pub fn connect(netns: Option<&str>, server: SocketAddr, patience: Duration) -> Result<TcpStream, LabError> {
    let open = || {
        let stream = TcpStream::connect_timeout(&server, patience)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        Ok(stream)
    };
    let what = format!("connect to {server}");
    match netns {
        Some(netns) => io_in_netns(netns, &what, open),
        None => open().map_err(io_at(what)),
    }
}

/// Makes `command` start in a session of its own, inside the namespace and the control group (its `cgroup.procs`,
/// opened for writing) if they are given, from its very first instruction on.
///
/// # Errors
/// The namespace is not there. That it, or the control group, cannot be entered is said when the command is started.
pub fn confine(command: &mut Command, netns: Option<&str>, cgroup_procs: Option<OwnedFd>) -> Result<(), LabError> {
    let netns = netns.map(open).transpose()?;
    // SAFETY: between fork and exec the closure makes system calls only (write, setns, setsid); it takes no lock and
    // allocates nothing. `io::Error::from` of an errno does not allocate either.
    unsafe {
        command.pre_exec(move || {
            if let Some(procs) = &cgroup_procs {
                // "0" stands for the writing process (cgroups(7)).
                rustix::io::write(procs, b"0")?;
            }
            if let Some(netns) = &netns {
                move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
            }
            rustix::process::setsid()?;
            Ok(())
        });
    }
    Ok(())
}

/// The namespace's inode number, which `/proc/PID/ns/net` shows for each process in it.
pub(crate) fn inode(netns: &str) -> Result<u64, LabError> {
    let stat = rustix::fs::fstat(open(netns)?).map_err(io_at(format!("fstat of the namespace {netns}")))?;
    Ok(stat.st_ino)
}
