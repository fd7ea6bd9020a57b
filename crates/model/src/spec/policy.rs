//! The part of a VM that its owner may change while it runs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::address::Peer;
use super::hardware::Hardware;
use super::timing::Timing;
use crate::health::WatchdogPolicy;
use crate::record::MAX_BACKUPS;
use crate::{HostName, VolumeName};

/// How a VM is kept. Each host goes by its own while it has the VM; only the wish for protection travels with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    pub protection: Protection,
    /// How many backups it has when it is fault-tolerant, 1 to [`MAX_BACKUPS`].
    pub backups: u8,
    pub epochs: EpochPolicy,
    pub timing: Timing,
    /// What becomes of the time in which it ran nowhere, when a backup takes over.
    pub clock_gap: ClockGap,
    /// What is done when its watchdog fires. Wanted where its hardware has one, and only there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watchdog: Option<WatchdogPolicy>,
    /// Its checkpoints are committed to disk, so that it goes on after a loss of power. Decided when it is created.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub non_volatile: Option<NonVolatile>,
    /// Of its volumes those that do not acknowledge in memory.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub acknowledge: BTreeMap<VolumeName, Acknowledge>,
    /// The other hosts on which the VM may live.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<Peer>,
    /// Who keeps the VM's record. Every host's file has to say it; what travels between hosts does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub witness: Option<Peer>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            protection: Protection::default(),
            backups: 1,
            epochs: EpochPolicy::default(),
            timing: Timing::default(),
            clock_gap: ClockGap::default(),
            watchdog: None,
            non_volatile: None,
            acknowledge: BTreeMap::new(),
            peers: Vec::new(),
            witness: None,
        }
    }
}

/// What is wrong with a policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("policy.{field}: {reason}")]
pub struct InvalidPolicy {
    /// As in a file, within the policy.
    pub field: String,
    pub reason: String,
}

impl Policy {
    /// Whether `host` can keep a VM of this hardware so.
    ///
    /// # Errors
    /// The first field that makes no sense.
    pub fn check(&self, host: &HostName, hardware: &Hardware) -> Result<(), InvalidPolicy> {
        let wrong = |field: &str, reason: String| Err(InvalidPolicy { field: field.to_owned(), reason });
        if !(1..=MAX_BACKUPS).contains(&usize::from(self.backups)) {
            return wrong("backups", format!("a VM has 1 to {MAX_BACKUPS} backups, not {}", self.backups));
        }
        let Timing { heartbeat_ms, failure_timeout_ms, .. } = self.timing;
        if heartbeat_ms == 0 || failure_timeout_ms / 2 < heartbeat_ms {
            return wrong(
                "timing",
                format!(
                    "failure_timeout_ms ({failure_timeout_ms}) must be at least twice heartbeat_ms ({heartbeat_ms}), which must not be 0"
                ),
            );
        }
        match (hardware.watchdog, &self.watchdog) {
            (Some(_), None) => {
                return wrong("watchdog", "hardware.watchdog needs an action: what is done when it fires".into());
            }
            (None, Some(_)) => return wrong("watchdog", "the VM has none: hardware.watchdog is not there".into()),
            (Some(_), Some(watchdog)) => {
                watchdog.check().map_err(|reason| InvalidPolicy { field: "watchdog".into(), reason })?;
            }
            (None, None) => {}
        }
        if let Some(name) = self.acknowledge.keys().find(|name| hardware.volumes.iter().all(|v| v.name != **name)) {
            return wrong(&format!("acknowledge.{name}"), "the VM has no volume of this name".into());
        }
        if let Some(n) = self.peers.iter().position(|p| p.host == *host) {
            return wrong(&format!("peers[{n}].host"), format!("host {host} is its own peer"));
        }
        if self.witness.is_none() {
            return wrong("witness", "it is missing".into());
        }
        Ok(())
    }
}

/// How far a VM is protected. Can be changed while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Protection {
    /// It runs on one host and is lost with it.
    None,
    /// A backup holds a checkpoint of it at all times and takes over.
    #[default]
    FaultTolerant,
}

/// What a guest's clocks do about the time between the checkpoint that a take-over or switchover goes on from and its going
/// on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClockGap {
    /// They show it at once.
    #[default]
    AtOnce,
    /// They run faster by a twentieth until they have caught up. Under KVM as `AtOnce`.
    Slewed,
    /// They do not show it, and are behind from then on.
    Lost,
}

/// How a non-volatile VM is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NonVolatile {
    /// Milliseconds between two checkpoints on disk, at most.
    pub interval_ms: u32,
    /// Output waits until its epoch is on disk, so that nothing that anybody was told is lost. Otherwise it leaves at once, and
    /// up to an interval of what the VM said and did is taken back by a loss of power.
    pub hold_output: bool,
}

impl Default for NonVolatile {
    fn default() -> Self {
        Self { interval_ms: 200, hold_output: true }
    }
}

/// When a backup may acknowledge a checkpoint with writes to a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Acknowledge {
    /// When it has them in its memory: the loss of one host loses nothing.
    #[default]
    Memory,
    /// When they are on its disk: the loss of power of both hosts loses nothing that was acknowledged.
    Disk,
}

/// When checkpoints are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum EpochPolicy {
    /// A checkpoint every `ms` milliseconds, whatever the guest does.
    Fixed { ms: u32 },
    /// Soon after output waits, at most `max_ms` milliseconds apart.
    Adaptive { max_ms: u32 },
}

impl Default for EpochPolicy {
    fn default() -> Self {
        EpochPolicy::Adaptive { max_ms: 100 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hardware() -> Hardware {
        let json = serde_json::json!({
            "memory_mib": 1, "boot": "volume", "volumes": [{ "name": "data", "size": 512 }], "watchdog": "ib700"
        });
        serde_json::from_value(json).unwrap()
    }

    fn policy() -> serde_json::Value {
        serde_json::json!({
            "watchdog": { "action": "reset" }, "acknowledge": { "data": "disk" },
            "peers": [{ "host": "b", "addr": "10.8.0.2:7701" }], "witness": { "host": "w", "addr": "10.8.0.3:7700" }
        })
    }

    /// What is wrong is named by its field.
    #[test]
    fn a_policy_that_makes_no_sense_is_refused_by_field() {
        type Change = fn(&mut serde_json::Value);
        let check = |change: Change| {
            let mut policy = policy();
            change(&mut policy);
            let policy: Policy = serde_json::from_value(policy).unwrap();
            policy.check(&"a".parse().unwrap(), &hardware())
        };
        assert_eq!(check(|_| {}), Ok(()));
        let cases: [(&str, Change); 10] = [
            ("backups", |p| p["backups"] = 0.into()),
            ("backups", |p| p["backups"] = 200.into()),
            ("timing", |p| p["timing"] = serde_json::json!({ "heartbeat_ms": 0 })),
            ("timing", |p| p["timing"] = serde_json::json!({ "heartbeat_ms": 200, "failure_timeout_ms": 399 })),
            ("timing", |p| p["timing"] = serde_json::json!({ "heartbeat_ms": u32::MAX })),
            ("watchdog", |p| drop(p.as_object_mut().unwrap().remove("watchdog"))),
            ("watchdog", |p| p["watchdog"]["within_s"] = 0.into()),
            ("acknowledge.other", |p| p["acknowledge"] = serde_json::json!({ "other": "disk" })),
            ("peers[0].host", |p| p["peers"][0]["host"] = "a".into()),
            ("witness", |p| drop(p.as_object_mut().unwrap().remove("witness"))),
        ];
        for (field, change) in cases {
            let said = check(change).unwrap_err();
            assert_eq!(said.field, field, "{said}");
            assert!(said.to_string().starts_with(&format!("policy.{field}: ")), "{said}");
        }
        let without = Hardware { watchdog: None, ..hardware() };
        let policy: Policy = serde_json::from_value(policy()).unwrap();
        assert_eq!(policy.check(&"a".parse().unwrap(), &without).unwrap_err().field, "watchdog");
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        assert_eq!(serde_json::from_str::<Policy>("{}").unwrap(), Policy::default());
        let all: Policy = serde_json::from_value(policy()).unwrap();
        assert_eq!(serde_json::from_value::<Policy>(serde_json::to_value(&all).unwrap()).unwrap(), all);
        for (name, gap) in [("at-once", ClockGap::AtOnce), ("slewed", ClockGap::Slewed), ("lost", ClockGap::Lost)] {
            let of: Policy = serde_json::from_value(serde_json::json!({ "clock_gap": name })).unwrap();
            assert_eq!(of.clock_gap, gap);
        }
        let bad = serde_json::from_value::<Policy>(serde_json::json!({ "clock_gap": "never" })).unwrap_err();
        assert!(bad.to_string().contains("never"));
    }
}
