//! What a lab leaves about itself in `/run/ninefold-lab/LAB/`, so that other processes can find, use and remove it.
//!
//! * `lab.json`: this record
//! * `teardown.sh`: the script that removes the lab
//! * `HOST/`: a host's run directory: configuration, certificates, sockets, logs, the witness's register
//!
//! The directory is prepared under another name and renamed, so a lab's name is taken by one process only and the
//! record is there from the first moment.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};

use crate::config::LabSecurity;
use crate::error::{LabError, io_at};
use crate::topology::Topology;

/// Where the labs of this machine are.
pub const LABS: &str = "/run/ninefold-lab";

/// In a lab's directory: where a process of a host puts together what it may see (`view`).
pub(crate) const VIEW: &str = ".view";

/// What is written in `lab.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LabRecord {
    pub topology: Topology,
    /// It outlives the process that made it.
    pub persistent: bool,
    pub owner: Owner,
    /// Tells this lab from any other of the same name, earlier or later. Also in the file `owner`, for the guardian.
    pub token: String,
    /// The lab's control group, if the machine has such.
    pub cgroup: Option<PathBuf>,
    pub security: LabSecurity,
    /// Its hosts have disks of their own.
    #[serde(default)]
    pub disks: bool,
    /// Its hosts do not see each other's files.
    #[serde(default)]
    pub apart: bool,
    /// Where the programs of Ninefold are.
    pub bin_dir: Option<PathBuf>,
}

/// The process that made a lab. Its start time tells it from a later process with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    pub pid: u32,
    /// Clock ticks since boot: field 22 of proc_pid_stat(5).
    pub start: u64,
}

impl Owner {
    /// This process.
    pub(crate) fn current() -> Self {
        let pid = std::process::id();
        Self { pid, start: start_time(pid).unwrap_or(0) }
    }

    /// Whether it still runs.
    pub fn alive(self) -> bool {
        start_time(self.pid) == Some(self.start)
    }
}

fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    let start = fields.nth(18)?.parse().ok()?;
    // A dead process that nobody has waited for owns nothing any more.
    (state != "Z" && state != "X").then_some(start)
}

/// The directory of a lab.
pub fn lab_dir(lab: &str) -> PathBuf {
    Path::new(LABS).join(lab)
}

impl LabRecord {
    /// Takes the lab's name.
    pub(crate) fn create(&self, teardown: &str) -> Result<(), LabError> {
        let name = &self.topology.lab;
        let dir = lab_dir(name);
        let draft = Path::new(LABS).join(format!(".{name}.{}", std::process::id()));
        let at = |path: &Path| io_at(format!("make {}", path.display()));
        let _ = fs::remove_dir_all(&draft);
        // Another lab's teardown removes the parent directory when it is empty, perhaps just before ours is made.
        let mut tries = 0;
        while let Err(e) = fs::create_dir_all(&draft) {
            tries += 1;
            if e.kind() != std::io::ErrorKind::NotFound || tries > 100 {
                return Err(at(&draft)(e));
            }
        }
        for node in self.topology.nodes().chain([VIEW]) {
            let run = draft.join(node);
            fs::create_dir(&run).map_err(at(&run))?;
        }
        let json = serde_json::to_vec_pretty(self).map_err(|e| io_at("write lab.json")(std::io::Error::from(e)))?;
        fs::write(draft.join("lab.json"), json).map_err(at(&draft))?;
        fs::write(draft.join("teardown.sh"), teardown).map_err(at(&draft))?;
        fs::write(draft.join("owner"), &self.token).map_err(at(&draft))?;
        match renameat_with(CWD, &draft, CWD, &dir, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(()),
            Err(e) => {
                let _ = fs::remove_dir_all(&draft);
                match e {
                    rustix::io::Errno::EXIST => Err(LabError::Exists(name.clone())),
                    e => Err(at(&dir)(e.into())),
                }
            }
        }
    }

    /// Reads a lab's record.
    pub(crate) fn load(lab: &str) -> Result<Self, LabError> {
        let path = lab_dir(lab).join("lab.json");
        let text = fs::read(&path).map_err(|_| LabError::NotFound(lab.to_owned()))?;
        serde_json::from_slice(&text).map_err(|e| io_at(format!("read {}", path.display()))(std::io::Error::from(e)))
    }

    /// The names of all labs on this machine.
    pub(crate) fn names() -> Vec<String> {
        let entries = fs::read_dir(LABS).into_iter().flatten().flatten();
        let mut names: Vec<_> =
            entries.filter_map(|e| e.file_name().into_string().ok()).filter(|n| !n.starts_with('.')).collect();
        names.sort();
        names
    }
}
