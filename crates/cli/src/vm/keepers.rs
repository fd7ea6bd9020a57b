//! The keepers of one VM: found, asked, and told apart by their roles.

use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use ninefold_keeper::api::Client;
use ninefold_keeper::config::KeeperConfig;
use ninefold_lab::Lab;
use ninefold_model::status::{ProtectionState, Role, VmStatus};
use serde::Serialize;

use crate::error::CliError;

/// How long a keeper may take to say how it is. One that takes longer is frozen, or its host is.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where the VM's keepers are.
#[derive(Debug, Args)]
pub struct Where {
    /// The VM of this lab; without it the only lab that is up
    #[arg(long, value_name = "LAB", conflicts_with = "run_dir")]
    lab: Option<String>,
    /// The run directory of a keeper of the VM; may be given for several keepers of this machine
    #[arg(long, value_name = "DIR")]
    run_dir: Vec<PathBuf>,
}

impl Where {
    pub fn keepers(&self) -> Result<Keepers, CliError> {
        if self.run_dir.is_empty() {
            return Keepers::of_lab(&crate::lab::attach(self.lab.as_deref())?);
        }
        let all = self.run_dir.iter().map(|dir| {
            // Its own configuration may lie elsewhere; if it does not answer, the directory stands for the host.
            let host = dir.display().to_string();
            Keeper { host, client: Client::new(dir), run_dir: dir.clone() }
        });
        let mut keepers = Keepers { all: all.collect(), in_lab: false };
        let hosts: Vec<_> = keepers.ask_all().into_iter().map(|r| r.host).collect();
        for (keeper, host) in keepers.all.iter_mut().zip(hosts) {
            keeper.host = host;
        }
        Ok(keepers)
    }
}

/// One keeper.
#[derive(Debug, Clone)]
pub struct Keeper {
    /// Its host's name; its run directory when that is all that is known.
    pub host: String,
    pub client: Client,
    run_dir: PathBuf,
}

impl Keeper {
    /// This one alone, as for what happens on its host and nowhere else.
    pub fn only(&self) -> Keepers {
        Keepers { all: vec![self.clone()], in_lab: false }
    }

    pub fn agent(&self) -> PathBuf {
        KeeperConfig::agent_socket(&self.run_dir)
    }

    pub fn console(&self) -> PathBuf {
        KeeperConfig::console_socket(&self.run_dir)
    }
}

/// What a keeper says of itself.
#[derive(Debug, Clone, Serialize)]
pub struct HostReport {
    pub host: String,
    /// Null when it does not answer.
    pub status: Option<VmStatus>,
    pub error: Option<String>,
}

impl HostReport {
    /// For people.
    pub fn role(&self) -> &'static str {
        match self.status.as_ref().map(|s| s.role) {
            None => "?",
            Some(Role::Primary) => "primary",
            Some(Role::Backup) => "backup",
            Some(Role::Standby) => "standby",
        }
    }

    /// For people; empty unless it is the primary.
    pub fn protection(&self) -> &'static str {
        match self.status.as_ref().and_then(|s| s.protection) {
            None => "",
            Some(ProtectionState::Off) => "protection off",
            Some(ProtectionState::Unprotected) => "unprotected",
            Some(ProtectionState::Syncing) => "syncing",
            Some(ProtectionState::Protected) => "protected",
            Some(ProtectionState::Waiting) => "waiting",
        }
    }
}

/// The keepers of one VM.
#[derive(Debug, Clone)]
pub struct Keepers {
    pub all: Vec<Keeper>,
    in_lab: bool,
}

impl Keepers {
    /// Those of a lab's hosts.
    pub fn of_lab(lab: &Lab) -> Result<Self, CliError> {
        let hosts = lab.topology().hosts.iter().map(|h| h.as_str()).filter(|h| lab.has_keeper(h));
        let all: Vec<_> = hosts
            .map(|host| {
                let run_dir = lab.run_dir(host);
                Keeper { host: host.to_owned(), client: Client::new(&run_dir), run_dir }
            })
            .collect();
        if all.is_empty() {
            return Err(CliError::NoVm { lab: lab.name().to_owned() });
        }
        Ok(Self { all, in_lab: true })
    }

    /// Asks all of them at once. One that does not answer in time is reported so.
    pub fn ask_all(&self) -> Vec<HostReport> {
        let (sender, answers) = mpsc::channel();
        for (place, keeper) in self.all.iter().enumerate() {
            let (sender, client) = (sender.clone(), keeper.client.clone());
            // A thread that hangs on a frozen keeper ends with this process, or with its answer.
            thread::spawn(move || {
                // Nobody waits for it any more when it comes too late.
                let _ = sender.send((place, client.status()));
            });
        }
        drop(sender);
        let mut reports: Vec<_> = self
            .all
            .iter()
            .map(|k| HostReport {
                host: k.host.clone(),
                status: None,
                error: Some(format!("{}: no answer within {} s", k.host, PATIENCE.as_secs())),
            })
            .collect();
        let deadline = Instant::now() + PATIENCE;
        while let Ok((place, answer)) = answers.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            let report: &mut HostReport = &mut reports[place];
            match answer {
                Ok(status) => {
                    report.host = status.host.to_string();
                    *report = HostReport { host: report.host.clone(), status: Some(status), error: None };
                }
                Err(error) => report.error = Some(format!("{}: {error}", report.host)),
            }
        }
        reports
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
            return Ok((Keeper { host: status.host.to_string(), ..keeper.clone() }, status.clone()));
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
        CliError::NoKeeper { errors, in_lab: self.in_lab }
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
    use super::*;

    #[test]
    fn a_vm_may_have_gone_where_nobody_is_asked() {
        let run_dir = PathBuf::from("/run/ninefold/db");
        let a = Keeper { host: "a".into(), client: Client::new(&run_dir), run_dir };
        let mut keepers = a.only();
        let said = |role, peer: Option<&str>| CliError::NotRunning {
            hosts: vec!["a".into()],
            role,
            peer: peer.map(str::to_owned),
        };
        assert!(keepers.is_elsewhere(&said(Role::Backup, Some("b"))));
        assert!(!keepers.is_elsewhere(&said(Role::Standby, None)), "it may come back");
        keepers.all.push(Keeper { host: "b".into(), ..a });
        assert!(!keepers.is_elsewhere(&said(Role::Backup, Some("b"))), "it is asked");
    }
}
