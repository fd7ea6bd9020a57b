//! How operations are named, and of which kinds there are.

use std::fmt;
use std::str::FromStr;

use ninefold_model::Incarnation;
use serde::{Deserialize, Serialize};

/// The name of an operation: of one life of one keeper, the how-manieth. On the wire a text, `1764489600000000-3`, of which clients need to know
/// nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(with = "String"))]
pub struct OperationId {
    pub incarnation: Incarnation,
    /// Counts up from 1.
    pub number: u64,
}

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.incarnation, self.number)
    }
}

impl From<OperationId> for String {
    fn from(id: OperationId) -> Self {
        id.to_string()
    }
}

/// A text that names no operation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no operation's id")]
pub struct InvalidOperationId(String);

impl FromStr for OperationId {
    type Err = InvalidOperationId;

    fn from_str(text: &str) -> Result<Self, InvalidOperationId> {
        let bad = || InvalidOperationId(text.chars().take(64).collect());
        let (incarnation, number) = text.split_once('-').ok_or_else(bad)?;
        let id = Self {
            incarnation: Incarnation(incarnation.parse().map_err(|_| bad())?),
            number: number.parse().map_err(|_| bad())?,
        };
        // One text for one id.
        if id.to_string() == text { Ok(id) } else { Err(bad()) }
    }
}

impl TryFrom<String> for OperationId {
    type Error = InvalidOperationId;

    fn try_from(text: String) -> Result<Self, InvalidOperationId> {
        text.parse()
    }
}

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum OperationKind {
    /// Until the guest runs.
    Start,
    /// Until the guest goes on from the snapshot.
    Restore,
    /// Until the guest goes on from the log.
    Recover,
    /// Until the snapshot is in the pool.
    Snapshot,
    /// Until the memory is in its file.
    Dump,
    /// Until a backup is bound.
    Protect,
    /// Until this host has let go of the VM, which another one has.
    Switchover,
    /// Until the VM has ended: a protected one when the witness has agreed, so that its backup does not take over.
    Stop,
    /// Until the VM has ended, which its guest does.
    Shutdown,
    /// Until the image is committed.
    Trial,
    /// Until the witness has a tombstone in the place of the VM's record.
    Retire,
    /// Until this host calls the VM by its new name.
    Rename,
    /// One of a later keeper's, of which nothing is known here. No keeper of this version says it.
    #[serde(other)]
    #[cfg_attr(feature = "schema", schemars(skip))]
    Unknown,
}

impl OperationKind {
    /// Whether it can be cancelled, as long as it has not come too far.
    pub fn is_cancellable(self) -> bool {
        match self {
            Self::Start
            | Self::Restore
            | Self::Recover
            | Self::Snapshot
            | Self::Protect
            | Self::Shutdown
            | Self::Trial => true,
            Self::Dump | Self::Switchover | Self::Stop | Self::Retire | Self::Rename | Self::Unknown => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_one_text() {
        let id = OperationId { incarnation: Incarnation(1_764_489_600_000_000), number: 3 };
        assert_eq!(serde_json::to_value(id).unwrap(), "1764489600000000-3");
        assert_eq!("1764489600000000-3".parse(), Ok(id));
        for bad in ["", "3", "-", "1-", "-1", "1-2-3", "01-2", "1-+2", "x-1", "1-99999999999999999999999"] {
            assert!(bad.parse::<OperationId>().is_err(), "{bad}");
        }
        assert!(serde_json::from_str::<OperationId>("\"x\"").is_err());
    }
}
