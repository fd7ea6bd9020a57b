//! What went wrong, and what to do about it.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use ninefold_keeper::agent::AgentError;
use ninefold_keeper::api::ApiError;
use ninefold_lab::LabError;
use ninefold_model::status::Role;
use ninefold_snapshot::store::StoreError;
use ninefold_volume::VolumeError;

/// Why a command failed. Its text is one line; [`CliError::help`] says what to do.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    #[error(transparent)]
    Lab(#[from] LabError),
    #[error(transparent)]
    Keeper(#[from] ApiError),
    #[error("{source}")]
    Volume {
        /// The pool's directory.
        pool: PathBuf,
        #[source]
        source: Box<VolumeError>,
    },
    #[error("{0}")]
    Store(#[source] Box<StoreError>),
    #[error("{0}")]
    NoSnapshot(String),
    #[error("{0}")]
    NotRecovered(String),
    #[error("there is no storage pool at {pool}")]
    NoPool { pool: PathBuf },
    #[error("the name of {path} does not tell its format")]
    FileFormat { path: PathBuf },
    #[error("no lab is up")]
    NoLab,
    #[error("several labs are up: {}", .0.join(", "))]
    SeveralLabs(Vec<String>),
    #[error("lab '{lab}' has no VM")]
    NoVm { lab: String },
    #[error("no keeper answers: {}", .errors.join("; "))]
    NoKeeper {
        errors: Vec<String>,
        /// They were looked for in a lab.
        in_lab: bool,
    },
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
    #[error("the VM runs on {host} already")]
    Running { host: String },
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
    #[error("{what}")]
    Io { what: String, source: io::Error },
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
    #[error("the demo showed a fault: {}", .0.join("; "))]
    Demo(Vec<String>),
    /// Random faults have shown a defect.
    #[error("seed {seed} has found something: {}", .failures.join("; "))]
    Chaos { seed: u64, failures: Vec<String> },
    /// A command that was run for the user ended with this exit code; it has said why itself.
    #[error("the command ended with exit code {0}")]
    Child(u8),
    /// Who reads our output has gone.
    #[error("the output was closed")]
    OutputClosed,
    #[error("interrupted")]
    Interrupted,
}

impl From<StoreError> for CliError {
    fn from(error: StoreError) -> Self {
        if error.is_cancelled() { Self::Interrupted } else { Self::Store(Box::new(error)) }
    }
}

impl CliError {
    /// An I/O error with its object: `.map_err(CliError::io("read x"))`.
    pub fn io<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        |source| Self::Io { what: what.into(), source: source.into() }
    }

    /// What the user can do.
    pub fn help(&self) -> Option<String> {
        let text = match self {
            Self::Lab(error) => return lab_help(error),
            Self::Volume { pool, source } => return crate::storage::help(pool, source),
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
            Self::Keeper(ApiError::Refused { help, .. }) => return help.clone(),
            Self::Keeper(_) => "start the keeper (in a lab: `ninefold lab restart HOST`), and look at its log",
            Self::NoLab => "`ninefold lab up` makes one; or name a keeper's directory with --run-dir",
            Self::SeveralLabs(_) => "choose one with --lab NAME (`--name NAME` in `ninefold lab`)",
            Self::NoVm { .. } => "it was made without one: `ninefold lab down`, then `ninefold lab up`",
            Self::NoKeeper { in_lab: false, .. } => {
                "is it running, and is this its run directory (`run_dir` in its configuration)?"
            }
            Self::NoKeeper { in_lab: true, .. } => {
                "is its host down or frozen? `ninefold lab status` shows it; `ninefold lab restart HOST` starts a keeper"
            }
            Self::NotRunning { peer: Some(peer), role: Role::Backup, .. } => {
                return Some(format!("it is the backup of {peer}: ask the keeper there"));
            }
            Self::NotRunning { .. } => "`ninefold vm status` shows the roles; `ninefold vm start --host HOST` boots it",
            Self::Agent { source: AgentError::Silent(_), .. } => {
                "the guest has to run QEMU's agent (qemu-guest-agent); one that is busy may answer with a longer --wait"
            }
            Self::Agent { .. } => "try again; the agent has one client at a time",
            Self::Running { .. } => "`ninefold vm stop` ends it, `ninefold vm switchover` moves it",
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
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => "run it as root",
            Self::Doctor(_) => "follow the advice above, then run `ninefold doctor` again",
            Self::Chaos { .. } => {
                "this is a bug in Ninefold, or in the rule: keep the directory that was named and the output"
            }
            Self::Demo(_) => "this is a bug in Ninefold: keep the report and the output",
            Self::Io { .. } | Self::Host { .. } | Self::Child(_) | Self::OutputClosed | Self::Interrupted => {
                return None;
            }
        };
        Some(text.to_owned())
    }

    /// The whole text with its causes.
    pub fn text(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            // Some errors of lower crates have their cause in their text already.
            if !text.contains(&cause_text) {
                text += &format!(": {cause_text}");
            }
            source = cause.source();
        }
        text
    }

    /// Tells the user.
    pub fn tell(&self, json: bool) {
        if matches!(self, Self::Child(_) | Self::OutputClosed) {
            return;
        }
        if json {
            let object = serde_json::json!({ "error": self.text(), "help": self.help() });
            eprintln!("{object}");
            return;
        }
        eprintln!("ninefold: {}", self.text());
        if let Some(help) = self.help() {
            eprintln!("help: {help}");
        }
    }

    /// The process's exit code.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Child(code) => ExitCode::from(*code),
            Self::Interrupted => ExitCode::from(130),
            _ => ExitCode::FAILURE,
        }
    }
}

fn lab_help(error: &LabError) -> Option<String> {
    Some(match error {
        LabError::NotRoot => "run it as root, for example with sudo".into(),
        LabError::Name { .. } => "a lab's name has 1 to 8 lower-case letters, digits and inner hyphens".into(),
        LabError::Exists(name) => format!("`ninefold lab down --name {name}`, or choose another with --name"),
        LabError::NotFound(_) => match ninefold_lab::Lab::list() {
            labs if labs.is_empty() => "no lab is up; `ninefold lab up` makes one".into(),
            labs => format!("labs that are up: {}", labs.join(", ")),
        },
        LabError::NoHost { lab, .. } => {
            let nodes = ninefold_lab::Lab::attach(lab).map(|l| l.topology().nodes().collect::<Vec<_>>().join(", "));
            format!("its hosts: {}", nodes.unwrap_or_else(|_| "`ninefold lab status` shows them".into()))
        }
        LabError::Program(_) => "`cargo build --workspace --bins` builds it beside `ninefold`".into(),
        LabError::Io { what, .. } if what.contains("test guest") => "build the guest once: `make guest`".into(),
        LabError::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => "run it as root".into(),
        LabError::Left { lab, .. } => format!("try `ninefold lab down --name {lab}` again"),
        LabError::Timeout { .. } => "the logs above say how far it came; `ninefold doctor` checks this host".into(),
        LabError::Host { .. } => "`ninefold lab status` shows what runs where".into(),
        LabError::Io { .. } | LabError::Command { .. } | LabError::Resp(_) => return None,
    })
}
