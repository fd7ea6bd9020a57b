//! What went wrong, and what to do about it.

use std::io;

use ninefold_control::{ClientError, Refusal};
use ninefold_lab::LabError;
use ninefold_shell::{Failure, ShellError, refusal};

/// The name of this program, before what it says on its standard error.
pub const NAME: &str = "ninefold-lab";

/// Why a command failed. Its text is one line; [`Failure::help`] says what to do.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error(transparent)]
    Shell(#[from] ShellError),
    #[error(transparent)]
    Lab(#[from] LabError),
    #[error("{}", refusal::told(.0))]
    Keeper(ClientError),
    #[error("no lab is up")]
    NoLab,
    #[error("several labs are up: {}", .0.join(", "))]
    SeveralLabs(Vec<String>),
    #[error("lab '{lab}' has no VM")]
    NoVm { lab: String },
    #[error("the demo showed a fault: {}", .0.join("; "))]
    Demo(Vec<String>),
    /// Random faults have shown a defect.
    #[error("seed {seed} has found something: {}", .failures.join("; "))]
    Chaos { seed: u64, failures: Vec<String> },
}

impl From<ClientError> for CommandError {
    fn from(error: ClientError) -> Self {
        Self::Keeper(error)
    }
}

impl CommandError {
    /// An I/O error with its object: `.map_err(CommandError::io("read x"))`.
    pub fn io<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        |source| Self::Shell(ShellError::io(what)(source))
    }
}

impl Failure for CommandError {
    fn shell(&self) -> Option<&ShellError> {
        match self {
            Self::Shell(error) => Some(error),
            _ => None,
        }
    }

    fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Keeper(error) => error.refusal(),
            _ => None,
        }
    }

    fn own_help(&self) -> Option<String> {
        let text = match self {
            Self::Shell(_) => return None,
            Self::Lab(error) => return lab_help(error),
            Self::Keeper(error @ (ClientError::Refused(_) | ClientError::Unknown { .. })) => {
                return refusal::help_for(error);
            }
            Self::Keeper(_) => "`ninefold-lab restart HOST` starts a keeper; look at its log",
            Self::NoLab => "`ninefold-lab up` makes one",
            Self::SeveralLabs(_) => "choose one with --name LAB",
            Self::NoVm { .. } => "it was made without one: `ninefold-lab down`, then `ninefold-lab up`",
            Self::Chaos { .. } => {
                "this is a bug in Ninefold, or in the rule: keep the directory that was named and the output"
            }
            Self::Demo(_) => "this is a bug in Ninefold: keep the report and the output",
        };
        Some(text.to_owned())
    }
}

fn lab_help(error: &LabError) -> Option<String> {
    Some(match error {
        LabError::NotRoot => "run it as root, for example with sudo".into(),
        LabError::Name { .. } => "a lab's name has 1 to 8 lower-case letters, digits and inner hyphens".into(),
        LabError::Exists(name) => format!("`ninefold-lab down --name {name}`, or choose another with --name"),
        LabError::NotFound(_) => match ninefold_lab::Lab::list() {
            labs if labs.is_empty() => "no lab is up; `ninefold-lab up` makes one".into(),
            labs => format!("labs that are up: {}", labs.join(", ")),
        },
        LabError::NoHost { lab, .. } => {
            let nodes = ninefold_lab::Lab::attach(lab).map(|l| l.topology().nodes().collect::<Vec<_>>().join(", "));
            format!("its hosts: {}", nodes.unwrap_or_else(|_| "`ninefold-lab status` shows them".into()))
        }
        LabError::Program(_) => "`cargo build --workspace --bins` builds it beside `ninefold-lab`".into(),
        LabError::Io { what, .. } if what.contains("test guest") => "build the guest once: `make guest`".into(),
        LabError::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => "run it as root".into(),
        LabError::Left { lab, .. } => format!("try `ninefold-lab down --name {lab}` again"),
        LabError::Timeout { .. } => "the logs above say how far it came; `ninefold doctor` checks this host".into(),
        LabError::Host { .. } => "`ninefold-lab status` shows what runs where".into(),
        LabError::Io { .. } | LabError::Command { .. } | LabError::Resp(_) => return None,
    })
}
