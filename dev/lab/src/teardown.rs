//! How a lab goes away, whatever became of the process that made it.
//!
//! One shell script per lab, made before anything else, undoes everything; nothing else ever takes a lab down. It is
//! run
//!
//! * by the **guardian**, a shell in a session of its own that reads from a pipe whose other end only the owner holds.
//!   When the pipe closes (the owner dropped the lab, was interrupted, crashed or was killed) it runs the script;
//! * by hand for a persistent lab, whose guardian was dismissed with the word `keep`.
//!
//! ```text
//!  owner: up ──► spawn guardian ──► make namespaces … ──► (persistent: "keep" ──► guardian ends)
//!                     │ pipe closed, for whatever reason
//!                     ▼
//!                teardown: kill control group, remove it, delete namespaces, delete /run/ninefold-lab/LAB
//! ```

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::disks;
use crate::error::{LabError, io_at};
use crate::netns;
use crate::topology::Topology;

/// The shell script that removes a lab. It can be run at any stage of a lab's life, and again.
pub(crate) fn script(topology: &Topology, cgroup: Option<&Path>, state_dir: &Path) -> String {
    // Every name in it is a DNS label or comes from /proc/mounts, so single quotes are enough.
    let mut s =
        String::from("# Removes a Ninefold lab; see teardown.rs.\ntrap '' HUP INT QUIT TERM PIPE\nexec 2>/dev/null\n");
    let hosts = || topology.hosts.iter().map(ToString::to_string);
    s += &disks::thaw_all(state_dir, hosts());
    match cgroup {
        Some(dir) => {
            let _ = write!(
                s,
                "cg='{}'\nn=0\nwhile [ -d \"$cg\" ] && [ $n -lt 500 ]; do\n\
                 \x20 echo 1 > \"$cg/cgroup.kill\"\n  rmdir \"$cg\"/*/\n  rmdir \"$cg\" && break\n\
                 \x20 n=$((n+1)); sleep 0.02\ndone\n",
                dir.display()
            );
        }
        None => {
            // Two rounds, because a process can fork while the first one runs.
            let _ = write!(
                s,
                "for round in 1 2; do for ns in {}; do\n  id=\"net:[$(stat -L -c %i /run/netns/$ns)]\"\n\
                 \x20 for p in /proc/[0-9]*; do [ \"$(readlink $p/ns/net)\" = \"$id\" ] && kill -9 ${{p#/proc/}}; done\n\
                 done; done\n",
                topology.namespaces().join(" ")
            );
        }
    }
    s += "ip -force -batch - <<END\n";
    for ns in topology.namespaces() {
        let _ = writeln!(s, "netns delete {ns}");
    }
    s += "END\n";
    s += &disks::teardown(&topology.lab, state_dir, hosts());
    let _ = write!(s, "rm -rf '{0}'\nrmdir \"$(dirname '{0}')\"\nexit 0\n", state_dir.display());
    s
}

/// Runs a teardown script to its end.
pub(crate) fn run(script: &str) -> Result<(), LabError> {
    let mut shell = Command::new("sh");
    shell.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    netns::confine(&mut shell, None, None)?;
    let status = shell.status().map_err(io_at("run the teardown"))?;
    match status.success() {
        true => Ok(()),
        false => Err(LabError::Command { what: "the teardown".into(), detail: status.to_string() }),
    }
}

/// The process that takes the lab down when its owner is gone.
#[derive(Debug)]
pub(crate) struct Guardian {
    shell: Option<Child>,
}

impl Guardian {
    /// Starts one, before the lab's name is taken, so that there is no moment at which the lab could outlive this
    /// process. It acts only if the lab of that name is the one with this token.
    pub(crate) fn watch(script: &str, state_dir: &Path, token: &str) -> Result<Self, LabError> {
        let guarded = format!(
            "trap '' HUP INT QUIT TERM PIPE\nread -r word\n[ \"$word\" = keep ] && exit 0\n\
             [ \"$(cat '{}/owner' 2>/dev/null)\" = '{token}' ] || exit 0\n{script}",
            state_dir.display()
        );
        let mut shell = Command::new("sh");
        shell.args(["-c", &guarded]).current_dir("/");
        // Its end of the pipe is the standard input; ours is closed on exec in every other child.
        shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        // Out of reach of the terminal's signals and of a kill of the owner's process group.
        netns::confine(&mut shell, None, None)?;
        Ok(Self { shell: Some(shell.spawn().map_err(io_at("start the lab's guardian"))?) })
    }

    /// The lab shall outlive this process.
    pub(crate) fn dismiss(mut self) -> Result<(), LabError> {
        if let Some(pipe) = self.shell.as_mut().and_then(|s| s.stdin.as_mut()) {
            pipe.write_all(b"keep\n").map_err(io_at("dismiss the lab's guardian"))?;
        }
        self.finish()
    }

    /// Has the lab taken down (unless it was dismissed) and waits for it.
    pub(crate) fn finish(&mut self) -> Result<(), LabError> {
        let Some(mut shell) = self.shell.take() else { return Ok(()) };
        drop(shell.stdin.take());
        shell.wait().map_err(io_at("wait for the lab's guardian")).map(drop)
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        let _ = self.finish();
    }
}
