//! Why an owner's request is refused.

use std::fmt;

use ninefold_model::{HostName, Record, Term};

/// Why an owner's request is refused. Shown, it is a sentence for the log and for the events that tell of a start that came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// The VM does not run here.
    NotHere,
    /// The VM is here already.
    Here,
    /// The VM is being stopped.
    Stopping,
    /// A switchover is under way.
    HandingOver,
    /// No backup is ready to take the VM, or not the one that was named.
    NoBackup { named: Option<HostName> },
    /// Another host has just taken the VM over, and this one keeps its checkpoint for a while.
    JustTakenOver,
    /// The witness's record, as `me` reads it.
    Held { record: Record, me: HostName },
    /// The log does not speak of the record under which it is to be gone on from.
    LogSilent { primary: HostName, term: Term },
    /// What the witness answers proves nothing.
    Doubted { reason: String },
    /// Another host has won the VM.
    Overtaken,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotHere => f.write_str("the VM does not run here"),
            Self::Here => f.write_str("the VM is here already"),
            Self::Stopping => f.write_str("the VM is being stopped"),
            Self::HandingOver => f.write_str("a switchover is under way"),
            Self::NoBackup { named: Some(host) } => write!(f, "{host} is not a backup that is ready to take the VM"),
            Self::NoBackup { named: None } => f.write_str("no backup is ready to take the VM"),
            Self::JustTakenOver => {
                f.write_str("another host has just taken the VM over, and this one keeps its checkpoint for a while")
            }
            Self::Held { record, me } => write!(f, "the witness says that {}", holder(record, me)),
            Self::LogSilent { primary, term } => write!(f, "the log does not speak of {primary} in term {term}"),
            Self::Doubted { reason } => write!(f, "the witness cannot be believed: {reason}"),
            Self::Overtaken => f.write_str("another host was faster"),
        }
    }
}

/// Who has the VM by this record, as `me` reads it.
fn holder(record: &Record, me: &HostName) -> String {
    let hosts: Vec<&str> = record.backups.iter().map(|b| b.host.as_str()).collect();
    let (primary, term) = (&record.primary, record.term);
    match &hosts[..] {
        hosts if primary == me => {
            format!("{} may take the VM over from this host (term {term})", hosts.join(" or "))
        }
        [] => format!("{primary} was the last to run it: it runs there still, or it has ended there (term {term})"),
        hosts => format!("{primary} runs it or {} may take it over (term {term})", hosts.join(" or ")),
    }
}
