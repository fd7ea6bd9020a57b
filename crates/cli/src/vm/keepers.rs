//! The keepers of one VM: found, asked, and told apart by their roles.

use std::path::PathBuf;

use clap::Args;
use ninefold_keeper::config::DEFAULT_RUN_DIR;
use ninefold_model::status::{Role, VmStatus};
pub use ninefold_shell::keepers::{HostReport, Keeper, ask_all};

use super::choose::the_vm;
use crate::error::CliError;

/// Where the VM's keepers are.
#[derive(Debug, Args)]
pub struct Where {
    /// The VM: its name, its id, or 8 or more characters with which its id alone begins. Without it the only one of this host
    #[arg(long, value_name = "VM", env = "NINEFOLD_VM")]
    vm: Option<String>,
    #[command(flatten)]
    hosts: Hosts,
}

/// Where this machine's hosts have their VMs.
#[derive(Debug, Args)]
pub struct Hosts {
    /// The directory with the run directories of this host's VMs (`run_dir` of the keepers); may be given for several hosts on this machine
    #[arg(long, value_name = "DIR", env = "NINEFOLD_RUN_DIR", value_delimiter = ':', default_value = DEFAULT_RUN_DIR)]
    run_dir: Vec<PathBuf>,
}

impl Where {
    /// Them, under the names that they give themselves.
    ///
    /// # Errors
    /// This host has no such VM, or several.
    pub fn keepers(&self) -> Result<Keepers, CliError> {
        self.hosts.keepers_of(self.vm.as_deref())
    }
}

impl Hosts {
    /// The keepers of the VM that is `wanted`, as [`the_vm`] takes it.
    ///
    /// # Errors
    /// This host has no such VM, or several.
    pub fn keepers_of(&self, wanted: Option<&str>) -> Result<Keepers, CliError> {
        let dirs = the_vm(&self.run_dir, wanted)?;
        // If it does not answer, the directory stands for the host.
        let mut keepers =
            Keepers { all: dirs.iter().map(|dir| Keeper::new(&dir.display().to_string(), dir)).collect() };
        let hosts: Vec<_> = keepers.ask_all().into_iter().map(|r| r.host).collect();
        keepers.all = keepers.all.into_iter().zip(hosts).map(|(keeper, host)| keeper.named(&host)).collect();
        Ok(keepers)
    }
}

/// The keepers of one VM.
#[derive(Debug, Clone)]
pub struct Keepers {
    pub all: Vec<Keeper>,
}

impl From<Keeper> for Keepers {
    /// This one alone, as for what happens on its host and nowhere else.
    fn from(keeper: Keeper) -> Self {
        Self { all: vec![keeper] }
    }
}

impl Keepers {
    /// Asks all of them at once. One that does not answer in time is reported so.
    pub fn ask_all(&self) -> Vec<HostReport> {
        ask_all(&self.all)
    }

    /// The keeper on whose host the VM runs. If two claim it (one of them was cut off), the later term is right.
    pub fn primary(&self) -> Result<(Keeper, VmStatus), CliError> {
        let reports = self.ask_all();
        let claims = self.all.iter().zip(&reports).filter_map(|(k, r)| Some((k, r.status.as_ref()?)));
        let mut best: Option<(&Keeper, &VmStatus)> = None;
        for (keeper, status) in claims.clone().filter(|(_, s)| s.role == Role::Primary) {
            if best.is_none_or(|(_, b)| b.term < status.term) {
                best = Some((keeper, status));
            }
        }
        if let Some((keeper, status)) = best {
            return Ok((keeper.clone().named(status.host.as_str()), status.clone()));
        }
        // A backup's word tells most.
        let mut others: Vec<_> = claims.collect();
        others.sort_by_key(|(_, s)| s.role != Role::Backup);
        let Some((_, status)) = others.first() else {
            return Err(self.silent(&reports));
        };
        Err(CliError::NotRunning {
            hosts: others.iter().map(|(_, s)| s.host.to_string()).collect(),
            role: status.role,
            peer: status.peer.as_ref().map(ToString::to_string),
        })
    }

    /// None of them answers.
    pub fn silent(&self, reports: &[HostReport]) -> CliError {
        let errors = reports.iter().filter_map(|r| r.error.clone()).collect();
        CliError::NoKeeper { errors }
    }

    /// The hosts that can be asked.
    pub fn hosts(&self) -> Vec<String> {
        self.all.iter().map(|k| k.host.clone()).collect()
    }

    /// Whether the VM has gone to a host whose keeper is not one of these, as [`Keepers::primary`] says: who waits here for what
    /// happens to it would wait in vain.
    pub fn is_elsewhere(&self, error: &CliError) -> bool {
        match error {
            CliError::NotRunning { role: Role::Backup, peer: Some(peer), .. } => {
                self.all.iter().all(|k| k.host != *peer)
            }
            _ => false,
        }
    }

    /// The first host whose keeper answers.
    pub fn first(&self) -> Result<&Keeper, CliError> {
        let reports = self.ask_all();
        let answers = self.all.iter().zip(&reports).find(|(_, report)| report.status.is_some());
        answers.map(|(keeper, _)| keeper).ok_or_else(|| self.silent(&reports))
    }

    /// The keeper of a host.
    pub fn of_host(&self, host: &str) -> Result<&Keeper, CliError> {
        self.all
            .iter()
            .find(|k| k.host == host)
            .ok_or_else(|| CliError::NoSuchHost { host: host.to_owned(), hosts: self.hosts() })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_vm_may_have_gone_where_nobody_is_asked() {
        let a = Keeper::new("a", Path::new("/run/ninefold/db"));
        let mut keepers = Keepers::from(a.clone());
        let said = |role, peer: Option<&str>| CliError::NotRunning {
            hosts: vec!["a".into()],
            role,
            peer: peer.map(str::to_owned),
        };
        assert!(keepers.is_elsewhere(&said(Role::Backup, Some("b"))));
        assert!(!keepers.is_elsewhere(&said(Role::Standby, None)), "it may come back");
        keepers.all.push(a.named("b"));
        assert!(!keepers.is_elsewhere(&said(Role::Backup, Some("b"))), "it is asked");
    }
}
