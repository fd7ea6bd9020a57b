//! How a guest stands: part of every checkpoint.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a guest has done with itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Activity {
    /// It runs, as far as it is let.
    #[default]
    Running,
    /// It has suspended itself to memory (ACPI S3), and waits to be woken.
    Suspended,
    /// It has powered itself off.
    Off,
}

/// How a guest stands. Whoever goes on from a checkpoint leaves the guest as the checkpoint says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct GuestState {
    #[serde(default)]
    pub activity: Activity,
    /// Its owner has paused it, whatever it was doing.
    #[serde(default)]
    pub paused: bool,
}

impl GuestState {
    /// Whether its processors run, as far as anybody lets them.
    pub fn runs(self) -> bool {
        self == Self::default()
    }
}

impl fmt::Display for GuestState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match (self.activity, self.paused) {
            (Activity::Off, _) => "shutdown",
            (_, true) => "paused",
            (Activity::Suspended, false) => "suspended",
            (Activity::Running, false) => "running",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_what_keeps_it_from_running() {
        let standing = |activity, paused| GuestState { activity, paused }.to_string();
        assert_eq!(standing(Activity::Running, false), "running");
        assert_eq!(standing(Activity::Suspended, false), "suspended");
        assert_eq!(standing(Activity::Suspended, true), "paused");
        assert_eq!(standing(Activity::Off, true), "shutdown");
        assert!(GuestState::default().runs() && !GuestState { paused: true, ..GuestState::default() }.runs());
        // A word of before there was any.
        assert_eq!(serde_json::from_str::<GuestState>("{}").unwrap(), GuestState::default());
    }
}
