//! What went wrong, and what to do about it.

use std::io;
use std::path::PathBuf;

use ninefold_control::{ClientError, Refusal};
use ninefold_keeper::config::ConfigError;
use ninefold_keeper::devices::agent::AgentError;
use ninefold_model::status::Role;
use ninefold_shell::{Failure, ShellError, refusal};
use ninefold_snapshot::store::StoreError;
use ninefold_transport::{AuthorityError, TransportError};
use ninefold_volume::VolumeError;
use ninefold_witness_client::WitnessError;

/// The name of this program, before what it says on its standard error.
pub const NAME: &str = "ninefold";

/// Why a command failed. Its text is one line; [`Failure::help`] says what to do.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    #[error(transparent)]
    Shell(#[from] ShellError),
    #[error("{}", refusal::told(.0))]
    Keeper(ClientError),
    #[error("{source}")]
    Volume {
        /// The pool's directory.
        pool: PathBuf,
        #[source]
        source: Box<VolumeError>,
    },
    #[error("{0}")]
    Store(#[source] Box<StoreError>),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Witness(#[from] WitnessError),
    /// This host cannot prove who it is.
    #[error("the certificate of this host cannot be used")]
    Identity(#[source] Box<TransportError>),
    #[error("{0}")]
    NoSnapshot(String),
    #[error("{0}")]
    NotRecovered(String),
    #[error("there is no storage pool at {pool}")]
    NoPool { pool: PathBuf },
    #[error("the name of {path} does not tell its format")]
    FileFormat { path: PathBuf },
    /// This host keeps none.
    #[error("no keeper has its VM's run directory in {}", .roots.iter().map(|r| r.display().to_string()).collect::<Vec<_>>().join(" or in "))]
    NoneHere { roots: Vec<PathBuf> },
    /// This host keeps others.
    #[error("this host keeps no VM '{wanted}'; it keeps {}", .here.join(", "))]
    NotHere { wanted: String, here: Vec<String> },
    /// More than one may be meant.
    #[error("this host keeps several VMs that may be meant: {}", .vms.join(", "))]
    SeveralHere { vms: Vec<String> },
    #[error("no keeper answers: {}", .errors.join("; "))]
    NoKeeper { errors: Vec<String> },
    /// Keepers answer, and none of them is the VM's primary.
    #[error("the VM does not run on {}", .hosts.join(" or on "))]
    NotRunning {
        hosts: Vec<String>,
        /// What the keepers asked know: their roles and their peer.
        role: Role,
        peer: Option<String>,
    },
    /// The guest's agent does not answer.
    #[error("the VM runs on {host}: {source}")]
    Agent {
        host: String,
        #[source]
        source: AgentError,
    },
    #[error("the guest on {host} cannot be shut down by its agent")]
    AgentShutdown {
        host: String,
        #[source]
        source: AgentError,
    },
    #[error("the VM runs on {host} already")]
    Running { host: String },
    /// By the witness's record it may be another host's.
    #[error("VM '{vm}' is not retired: {}", refusal::words(.refusal))]
    NotRetired { vm: String, refusal: Box<Refusal> },
    #[error("the VM stays on {host}: {reason}")]
    Stayed { host: String, reason: String },
    #[error("the VM has ended on {host}: {reason}")]
    Ended { host: String, reason: String },
    #[error("the guest on {host} has not switched itself off within {}, and runs on", humantime::format_duration(*.within))]
    DidNotShutDown { host: String, within: std::time::Duration },
    #[error("the keeper on {host} was started anew meanwhile")]
    Restarted { host: String },
    #[error("no keeper of host '{host}' is known here")]
    NoSuchHost { host: String, hosts: Vec<String> },
    #[error("{what} did not happen within {seconds} s")]
    TimedOut { what: String, seconds: u64 },
    #[error("{what}: {path}")]
    Host { what: String, path: PathBuf },
    #[error("the image on trial failed: {0}; the committed one is booted")]
    FellBack(String),
    #[error("the committed image has no kernel")]
    NoKernel,
    #[error("the keeper on {host} knows nothing of images on trial")]
    OldKeeper { host: String },
    #[error("no memory dump: {0}")]
    NoDump(String),
    #[error("this host cannot run protected VMs: {} failed", .0.join(", "))]
    Doctor(Vec<String>),
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        Self::Keeper(error)
    }
}

impl From<StoreError> for CliError {
    fn from(error: StoreError) -> Self {
        if error.is_cancelled() { ShellError::Interrupted.into() } else { Self::Store(Box::new(error)) }
    }
}

impl CliError {
    /// An I/O error with its object: `.map_err(CliError::io("read x"))`.
    pub fn io<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        |source| Self::Shell(ShellError::io(what)(source))
    }
}

impl Failure for CliError {
    fn shell(&self) -> Option<&ShellError> {
        match self {
            Self::Shell(error) => Some(error),
            _ => None,
        }
    }

    fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Keeper(error) => error.refusal(),
            Self::NotRetired { refusal, .. } => Some(refusal),
            _ => None,
        }
    }

    fn own_help(&self) -> Option<String> {
        let text = match self {
            Self::Shell(_) => return None,
            Self::Volume { pool, source } => return crate::storage::help(pool, source),
            Self::Authority(error) => return crate::ca::help(error),
            Self::Config(_) => "docs/guides/operate.md, 'The keepers', has each field of a keeper's configuration",
            Self::Identity(_) => return None,
            Self::Witness(WitnessError::Unreachable { .. }) => {
                "does it run, and is it where the configuration says (`witness`)? `ninefold-witness --help` says how it is started"
            }
            Self::Witness(_) => "its log says more",
            Self::NoPool { .. } => {
                "name the host's pool with --pool DIR (`pool` in the keeper's configuration); `create`, `import` and `adopt` \
                 make one"
            }
            Self::Store(error) => match **error {
                StoreError::NotFound(_) => "`ninefold snapshot list` shows those that are there",
                StoreError::HasChild { .. } => "remove that first, or export it and import the file",
                StoreError::Busy(_) => "try again when whoever uses it is done",
                StoreError::Exists(_) => "choose another name",
                StoreError::Snapshot { .. } | StoreError::Import { .. } | StoreError::Io { .. } => return None,
            },
            Self::NoSnapshot(_) => "`ninefold vm events` shows what happened, `ninefold snapshot list` what there is",
            Self::NotRecovered(_) => {
                "`ninefold vm recover` says what each host's log would go back to; `ninefold vm events` shows what happened"
            }
            Self::FileFormat { .. } => "say it with --file-format: raw, qcow2, vmdk, vdi or vhdx",
            Self::Keeper(error @ (ClientError::Refused(_) | ClientError::Unknown { .. })) => {
                return refusal::help_for(error);
            }
            Self::Keeper(_) => "start the keeper, and look at its log",
            Self::NoneHere { .. } => {
                "name the directory with the run directories (`run_dir` in the keeper's configuration) with --run-dir or in NINEFOLD_RUN_DIR"
            }
            Self::NotHere { .. } | Self::SeveralHere { .. } => {
                "choose one with --vm: its name, its id, or 8 or more characters with which its id alone begins"
            }
            Self::NoKeeper { .. } => "is it running, and is this the `run_dir` of its configuration?",
            Self::NotRunning { peer: Some(peer), role: Role::Backup, .. } => {
                return Some(format!("it is the backup of {peer}: ask the keeper there"));
            }
            Self::NotRunning { .. } => {
                "`ninefold vm status` shows the roles; `ninefold vm start` boots it on the host that had it last, or says why not"
            }
            Self::Agent { source: AgentError::Silent(_), .. } => {
                "the guest has to run QEMU's agent (qemu-guest-agent); one that is busy may answer with a longer --wait"
            }
            Self::Agent { .. } => "try again; the agent has one client at a time",
            Self::AgentShutdown { source: AgentError::Refused(_), .. } => {
                "its agent has /sbin/shutdown do it: is that there, and allowed? `--mode acpi` presses the power button"
            }
            Self::AgentShutdown { .. } => {
                "a guest that runs, and QEMU's agent in it (qemu-guest-agent), are needed; `--mode acpi` presses the power button"
            }
            Self::Running { .. } => "`ninefold vm stop` ends it, `ninefold vm switchover` moves it",
            Self::NotRetired { vm, refusal } => return Some(not_retired(vm, refusal)),
            Self::NoSuchHost { hosts, .. } => {
                let hosts = hosts.join(", ");
                return Some(format!(
                    "hosts that can be asked from here: {hosts}. The keeper on another machine is asked there"
                ));
            }
            Self::Stayed { .. } | Self::Ended { .. } | Self::Restarted { .. } | Self::TimedOut { .. } => {
                "`ninefold vm events` and `ninefold vm status` show what the keepers are at"
            }
            Self::DidNotShutDown { .. } => {
                "`ninefold vm console` shows what it is at; `ninefold vm shutdown --force` or `ninefold vm stop` ends it"
            }
            Self::FellBack(_) => "`ninefold vm console` shows what it said, `ninefold vm events` what happened",
            Self::NoKernel => "give one with --kernel, or --boot-sector",
            Self::OldKeeper { .. } => "switch over, then upgrade that keeper",
            Self::NoDump(_) => "`dumps` in the keeper's configuration says where dumps go",
            Self::Doctor(_) => "follow the advice above, then run `ninefold doctor` again",
            Self::Host { .. } => return None,
        };
        Some(text.to_owned())
    }
}

/// What there is to do about a VM that may be another host's, and what it costs.
fn not_retired(vm: &str, refusal: &Refusal) -> String {
    let there = match refusal.host() {
        Some(host) => format!("stop it on {host} if it runs there, and retire it there"),
        None => "stop it where it runs, and retire it there".to_owned(),
    };
    format!(
        "{there}; if the host that had it is gone for good, `ninefold vm retire {vm} --force` does it from here: a VM that runs all the same ends as soon as \
         its host hears of that, and what was only in its memory is lost"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nobody forces a retirement without having read what it costs.
    #[test]
    fn who_is_refused_a_retirement_is_told_what_force_would_lose() {
        let record = ninefold_model::Record::boot("b".parse().unwrap());
        let refusal = Box::new(Refusal::HeldElsewhere { record, host: Some("b".parse().unwrap()) });
        let error = CliError::NotRetired { vm: "db".into(), refusal };
        let words = error.to_string();
        assert!(
            words.starts_with("VM 'db' is not retired: ") && words.contains("b was the last host that ran"),
            "{words}"
        );
        let help = error.own_help().unwrap();
        for part in ["stop it on b", "`ninefold vm retire db --force`", "only in its memory is lost"] {
            assert!(help.contains(part), "{part}: {help}");
        }
        assert!(error.refusal().is_some(), "programs are told the code");
    }
}
