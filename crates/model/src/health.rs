//! A guest's health as it is seen from outside: its watchdog, what is done when that fires, images on trial.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::boot::Boot;
use crate::guest_state::GuestState;

/// Longest image description that a trial may have (its paths and command line, as JSON), bytes: it travels with the
/// checkpoints.
pub const MAX_IMAGE: usize = 16 << 10;
/// Most failures within the period that a policy may act on.
pub const MAX_TIMES: u32 = 100;

/// A VM's watchdog: the device, and what is done when the guest has stopped patting it, or has panicked.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Watchdog {
    pub device: WatchdogDevice,
    #[serde(flatten)]
    pub policy: WatchdogPolicy,
}

impl Watchdog {
    /// An Intel 6300ESB; three failures within ten minutes are acted on, three dumps are kept.
    pub fn new(action: WatchdogAction) -> Self {
        Self { device: WatchdogDevice::default(), policy: WatchdogPolicy::new(action) }
    }
}

/// What is done when a VM's watchdog fires.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct WatchdogPolicy {
    pub action: WatchdogAction,
    /// So many failures within `within_s` are acted on as `action` says; the next one stops the VM.
    #[serde(default = "three")]
    pub times: u32,
    /// Seconds.
    #[serde(default = "ten_minutes")]
    pub within_s: u32,
    /// Memory dumps that a host keeps of this VM; the oldest go.
    #[serde(default = "three")]
    pub keep_dumps: u32,
}

fn three() -> u32 {
    3
}

fn ten_minutes() -> u32 {
    600
}

impl WatchdogPolicy {
    /// Dumps that are kept of a VM without a watchdog.
    pub const DUMPS: u32 = 3;

    /// Three failures within ten minutes are acted on, three dumps are kept.
    pub fn new(action: WatchdogAction) -> Self {
        Self { action, times: three(), within_s: ten_minutes(), keep_dumps: three() }
    }

    /// Whether its numbers make sense.
    ///
    /// # Errors
    /// What does not.
    pub fn check(&self) -> Result<(), String> {
        if self.times > MAX_TIMES {
            return Err(format!("a watchdog acts on at most {MAX_TIMES} failures, not {}", self.times));
        }
        if self.within_s == 0 || self.keep_dumps == 0 {
            return Err("a watchdog's within_s and keep_dumps must not be 0".into());
        }
        Ok(())
    }
}

/// The device as the guest sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum WatchdogDevice {
    /// Intel 6300ESB, on PCI; two stages, 1 ms to 17 minutes each. Linux: `i6300esb`.
    #[default]
    I6300esb,
    /// iBASE 700, two I/O ports; 2 to 30 seconds. Linux: `ib700wdt`.
    Ib700,
}

impl fmt::Display for WatchdogDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::I6300esb => "i6300esb",
            Self::Ib700 => "ib700",
        })
    }
}

/// What is done when the guest has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum WatchdogAction {
    /// Its reset button is pressed.
    Reset,
    /// Its memory is written to a file, then it is reset.
    Dump,
    /// Its QEMU is launched anew, with the committed image.
    FallBack,
    /// The VM is stopped.
    Stop,
}

impl fmt::Display for WatchdogAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Reset => "reset",
            Self::Dump => "dump",
            Self::FallBack => "fall back",
            Self::Stop => "stop",
        })
    }
}

/// How a guest failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// It did not pat its watchdog in time.
    Watchdog,
    /// Its kernel said that it panicked.
    Panic,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Watchdog => "its watchdog fired",
            Self::Panic => "its kernel panicked",
        })
    }
}

/// By what an image on trial is found healthy. Besides, its owner can always commit it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum HealthySign {
    /// The guest prints this text on its serial console.
    Console { text: String },
    /// Its owner, or a probe of his, says so.
    Asked,
}

/// An image on trial.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Trial {
    pub image: Boot,
    /// Milliseconds in which the guest has to be found healthy, from its start on. Only time in which it runs counts.
    pub within_ms: u64,
    /// Of these, what is left.
    pub left_ms: u64,
    pub sign: HealthySign,
}

/// What a backup has to know to go on watching where the primary left off. Travels with the session's opening and with
/// the checkpoints.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Health {
    /// The committed image, when it is not that of the VM's specification.
    #[serde(default)]
    pub committed: Option<Boot>,
    #[serde(default)]
    pub trial: Option<Trial>,
    /// The failures that count towards the policy's `times`, by their age in milliseconds, oldest first.
    #[serde(default)]
    pub failures_ms: Vec<u64>,
    /// A failure that the checkpoint contains and on which nobody has acted yet.
    #[serde(default)]
    pub pending: Option<Failure>,
    /// How the guest stood when the checkpoint was taken.
    #[serde(default)]
    pub standing: GuestState,
    /// The guest's file systems, if they were to be frozen for a snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze: Option<Freeze>,
}

/// How the guest's file systems are in a checkpoint or a snapshot, as far as that is known.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Freeze {
    /// They are frozen, or may be: whoever goes on with the guest has them thawed.
    pub thaw: bool,
    /// How many the guest's agent has frozen, as it says. None: they were not, or nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_systems: Option<u64>,
    /// Why they were not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why_not: Option<String>,
}

impl Health {
    /// The image that the guest runs, when it is not that of the VM's specification.
    pub fn image(&self) -> Option<&Boot> {
        self.trial.as_ref().map(|t| &t.image).or(self.committed.as_ref())
    }
}

/// A memory dump that is being written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DumpProgress {
    pub bytes_done: u64,
    pub bytes_total: u64,
}

/// How the guest's health is watched, in a keeper's status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct HealthStatus {
    pub watchdog: Option<Watchdog>,
    /// Failures within the watchdog's period.
    pub failures: u32,
    /// The image that the guest runs (primary), or would boot from here.
    pub image: Boot,
    /// It is on trial: another one is committed.
    pub trial: Option<Trial>,
    /// The committed image.
    pub committed: Boot,
    pub dump: Option<DumpProgress>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watchdog_needs_only_its_action() {
        let short: WatchdogPolicy = serde_json::from_str(r#"{"action":"dump"}"#).unwrap();
        assert_eq!(short, WatchdogPolicy::new(WatchdogAction::Dump));
        assert!(short.check().is_ok());
        for bad in [r#"{}"#, r#"{"action":"explode"}"#, r#"{"action":"reset","tmies":1}"#] {
            assert!(serde_json::from_str::<WatchdogPolicy>(bad).is_err(), "{bad}");
        }
        let never = WatchdogPolicy { within_s: 0, ..short.clone() };
        assert!(never.check().is_err());
        assert!(WatchdogPolicy { times: MAX_TIMES + 1, ..short }.check().is_err());
        // In a status both parts are one.
        let both = Watchdog::new(WatchdogAction::Stop);
        let json = serde_json::to_value(&both).unwrap();
        assert_eq!((&json["device"], &json["action"]), (&"i6300esb".into(), &"stop".into()));
        assert_eq!(serde_json::from_value::<Watchdog>(json).unwrap(), both);
    }

    #[test]
    fn an_empty_health_is_a_default() {
        assert_eq!(serde_json::from_str::<Health>("{}").unwrap(), Health::default());
    }
}
