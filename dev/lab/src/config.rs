//! What a lab shall be.

use std::path::PathBuf;

use ninefold_model::{HostName, InvalidName};
use serde::{Deserialize, Serialize};

use crate::error::LabError;

/// What [`crate::Lab::up`] makes.
#[derive(Debug, Clone)]
pub struct LabConfig {
    /// The lab's name, at most 8 characters; it is part of every namespace's name.
    pub name: String,
    /// The hosts for VMs.
    pub hosts: Vec<HostName>,
    /// The lab outlives this process until it is taken down by name. Otherwise it vanishes with this process.
    pub persistent: bool,
    pub security: LabSecurity,
    /// Where `ninefold-keeper` and `ninefold-witness` are. By default NINEFOLD_BIN_DIR, else near the running program
    /// (as Cargo places them), else on the PATH.
    pub bin_dir: Option<PathBuf>,
    /// Keep each host's processes in a control group of version 2, if the machine has such. Otherwise they are found
    /// by their network namespace and signalled one by one.
    pub control_groups: bool,
    /// Each host's storage pool, and the witness's register, is on a disk of its own that forgets what was not synced when
    /// its host loses power. Needs loop devices and ext4.
    pub disks: bool,
    /// Each host sees its own files alone, and so the socket of its own keeper alone, as on machines of their own. The machine on which the lab is sees
    /// all of them.
    pub apart: bool,
    /// Where the logs go when the thread that owns the lab panics (a failed test). By default `lab-debris` in Cargo's
    /// target directory.
    pub debris: Option<PathBuf>,
}

/// How the lab's hosts know each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LabSecurity {
    /// Certificates of an authority that the lab makes and forgets.
    #[default]
    MutualTls,
    /// No encryption: to measure what it costs.
    PlainText,
}

impl LabConfig {
    /// A lab with hosts `a` and `b`.
    ///
    /// # Errors
    /// It does not fail: [`Lab::up`](crate::Lab::up) is what looks at the name.
    pub fn new(name: &str) -> Result<Self, LabError> {
        let mut config = Self {
            name: name.to_owned(),
            hosts: Vec::new(),
            persistent: false,
            security: LabSecurity::default(),
            bin_dir: None,
            control_groups: true,
            disks: false,
            apart: false,
            debris: None,
        };
        config.set_hosts(2)?;
        Ok(config)
    }

    /// So many hosts, named from `a` on; 26 at most.
    ///
    /// # Errors
    /// It does not fail: every letter can name a host.
    pub fn set_hosts(&mut self, count: usize) -> Result<(), LabError> {
        let names = ('a'..='z').take(count).map(|name| name.to_string().parse::<HostName>());
        let failed = |e: InvalidName| LabError::Name { name: self.name.clone(), reason: e.to_string() };
        self.hosts = names.collect::<Result<_, _>>().map_err(failed)?;
        Ok(())
    }
}
