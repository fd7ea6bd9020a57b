//! What of a VM that runs, or that was saved, is otherwise in a host's file.
//!
//! A machine is what it was booted with, wherever it goes, until it is booted anew: a guest does not see a processor come or go
//! because its VM has gone to another host. So a host that takes a VM in builds [what runs](VmSpec::as_booted), and its own file says
//! what it would boot. Where the two differ is found here, and said.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::HostName;
use crate::spec::{Boot, VmSpec};

/// Longest text of one value, characters.
const MAX_VALUE: usize = 120;
/// Differences that are told; more say nothing new.
const MAX_DIFFERENCES: usize = 64;

/// A field in which a host's file differs from the VM that runs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Difference {
    /// As in the file, such as `vcpus` or `volumes[1].size`.
    pub field: String,
    /// What the VM that runs, or that was saved, has; `none` where it has none.
    pub runs: String,
    /// What the host's file says.
    pub file: String,
    pub bearing: Bearing,
}

/// What follows from a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bearing {
    /// The host follows the VM that runs. What its file says holds when the VM is next booted there.
    NextBoot,
    /// Each host goes by its own file while it has the VM.
    Policy,
    /// The host has its part of it (disks, TAP devices, a log) as its file says, and cannot hold this VM.
    CannotFollow,
}

impl Difference {
    /// The difference between the VM that `runner` runs and the file of `host`, in a sentence.
    #[must_use]
    pub fn sentence(&self, runner: &HostName, host: &HostName) -> String {
        let Self { field, runs, file, bearing } = self;
        match bearing {
            Bearing::NextBoot if runner == host => {
                format!("{field}: the VM runs with {runs}, {host}'s file says {file}, from the next boot on {host} on")
            }
            Bearing::NextBoot => format!(
                "{field}: {runner} runs {runs}, {host}'s file says {file}; {host} follows the VM that runs, and its file holds from \
                 the next boot on {host} on"
            ),
            Bearing::Policy => format!(
                "{field}: {runs} at {runner}, {host}'s file says {file}; each host goes by its own file while it has the VM"
            ),
            Bearing::CannotFollow => format!(
                "{field}: {runner} runs {runs}, {host}'s file says {file}, which {host} cannot change while its keeper runs"
            ),
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} and not {}", self.field, self.runs, self.file)
    }
}

/// In what a VM that runs as `runs` differs from what a host's `file` says, in the order of the file's fields. What is a host's own
/// affair (paths of images, names of bridges) is none; nor is what the owner may change while the VM runs and what travels with it
/// (protection).
#[must_use]
pub fn differences(runs: &VmSpec, file: &VmSpec) -> Vec<Difference> {
    let mut found = Found(Vec::new());
    use Bearing::{CannotFollow, NextBoot, Policy};
    found.compare("id", &runs.id, &file.id, CannotFollow);
    found.compare("name", &runs.name, &file.name, CannotFollow);
    found.json("arch", &runs.arch, &file.arch, CannotFollow);
    found.compare("vcpus", &runs.vcpus, &file.vcpus, NextBoot);
    found.compare("memory_mib", &runs.memory_mib, &file.memory_mib, NextBoot);
    found.json("accel", &runs.accel, &file.accel, NextBoot);
    found.compare("boot", &kind(&runs.boot), &kind(&file.boot), CannotFollow);
    if let (Boot::Linux { cmdline: theirs, .. }, Boot::Linux { cmdline: ours, .. }) = (&runs.boot, &file.boot) {
        found.json("boot.linux.cmdline", theirs, ours, NextBoot);
    }
    found.compare("nics (how many)", &runs.nics.len(), &file.nics.len(), CannotFollow);
    for (n, (theirs, ours)) in runs.nics.iter().zip(&file.nics).enumerate() {
        found.compare(&format!("nics[{n}].mac"), &theirs.mac, &ours.mac, CannotFollow);
    }
    found.compare("volumes (how many)", &runs.volumes.len(), &file.volumes.len(), CannotFollow);
    for (n, (theirs, ours)) in runs.volumes.iter().zip(&file.volumes).enumerate() {
        found.compare(&format!("volumes[{n}].name"), &theirs.name, &ours.name, CannotFollow);
        found.compare(&format!("volumes[{n}].size"), &theirs.size, &ours.size, CannotFollow);
        // What a client was told of a write rests on it.
        found.json(&format!("volumes[{n}].acknowledge"), &theirs.acknowledge, &ours.acknowledge, CannotFollow);
        found.json(&format!("volumes[{n}].bootindex"), &theirs.bootindex, &ours.bootindex, NextBoot);
    }
    found.json("non_volatile", &runs.non_volatile, &file.non_volatile, CannotFollow);
    found.compare("backups", &runs.backups, &file.backups, Policy);
    found.json("clock_gap", &runs.clock_gap, &file.clock_gap, Policy);
    found.json("watchdog", &runs.watchdog, &file.watchdog, NextBoot);
    found.compare("uuid", &runs.uuid(), &file.uuid(), NextBoot);
    found.0.truncate(MAX_DIFFERENCES);
    found.0
}

impl VmSpec {
    /// This VM, which was booted elsewhere or earlier, on the host whose file says `file`: the machine is this one's, and what is the
    /// host's own affair is as its file says. Right where [`differences`] finds nothing that cannot be followed.
    #[must_use]
    pub fn as_booted(&self, file: &VmSpec) -> VmSpec {
        let mut spec = file.clone();
        spec.arch = self.arch;
        spec.vcpus = self.vcpus;
        spec.memory_mib = self.memory_mib;
        spec.watchdog.clone_from(&self.watchdog);
        if self.uuid() != file.uuid() {
            spec.uuid = Some(self.uuid());
        }
        for (ours, theirs) in spec.volumes.iter_mut().zip(&self.volumes) {
            ours.bootindex = theirs.bootindex;
        }
        if let (Boot::Linux { cmdline: ours, .. }, Boot::Linux { cmdline: theirs, .. }) = (&mut spec.boot, &self.boot) {
            ours.clone_from(theirs);
        }
        spec
    }
}

/// What another host says, within the bounds of what this one would say.
#[must_use]
pub fn bounded(mut all: Vec<Difference>) -> Vec<Difference> {
    all.truncate(MAX_DIFFERENCES);
    for Difference { field, runs, file, .. } in &mut all {
        for text in [field, runs, file] {
            *text = cut(text);
        }
    }
    all
}

fn kind(boot: &Boot) -> &'static str {
    match boot {
        Boot::Linux { .. } => "linux",
        Boot::BootSector { .. } => "boot_sector",
        Boot::Volume => "volume",
    }
}

struct Found(Vec<Difference>);

impl Found {
    fn compare<T: PartialEq + fmt::Display>(&mut self, field: &str, runs: &T, file: &T, bearing: Bearing) {
        if runs != file {
            self.add(field, &runs.to_string(), &file.to_string(), bearing);
        }
    }

    /// For what is shown as it stands in a file.
    fn json<T: PartialEq + Serialize>(&mut self, field: &str, runs: &T, file: &T, bearing: Bearing) {
        if runs != file {
            self.add(field, &text(runs), &text(file), bearing);
        }
    }

    fn add(&mut self, field: &str, runs: &str, file: &str, bearing: Bearing) {
        self.0.push(Difference { field: field.into(), runs: cut(runs), file: cut(file), bearing });
    }
}

fn text<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::Null) | Err(_) => "none".into(),
        Ok(serde_json::Value::String(text)) if !text.is_empty() => text,
        Ok(other) => other.to_string(),
    }
}

/// On one line, and not too long.
fn cut(value: &str) -> String {
    let mut text: String = value.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_VALUE).collect();
    if value.chars().nth(MAX_VALUE).is_some() {
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm() -> VmSpec {
        let json = serde_json::json!({
            "id": "3f0e1c4a-7d52-4b60-9c1f-5a2e8d90b7c4", "name": "db", "memory_mib": 256, "boot": { "linux": { "kernel": "/k", "initrd": null, "cmdline": "quiet" } },
            "nics": [{ "mac": "52:54:00:12:34:56", "bridge": "br0" }],
            "volumes": [{ "name": "root", "size": 512 }, { "name": "data", "size": 1024 }]
        });
        serde_json::from_value(json).unwrap()
    }

    type Change = fn(&mut VmSpec);

    /// Every field of a VM's specification, by what a difference in it means.
    const CASES: &[(&str, Bearing, Change)] = &[
        ("id", Bearing::CannotFollow, |s| s.id = crate::VmId::random(7)),
        ("name", Bearing::CannotFollow, |s| s.name = "other".parse().unwrap()),
        ("vcpus", Bearing::NextBoot, |s| s.vcpus = 2),
        ("memory_mib", Bearing::NextBoot, |s| s.memory_mib = 512),
        ("accel", Bearing::NextBoot, |s| s.accel = crate::spec::AccelChoice::Kvm),
        ("boot", Bearing::CannotFollow, |s| s.boot = Boot::Volume),
        ("boot.linux.cmdline", Bearing::NextBoot, |s| {
            s.boot = Boot::Linux { kernel: "/k".into(), initrd: None, cmdline: "debug".into() };
        }),
        ("nics (how many)", Bearing::CannotFollow, |s| s.nics.clear()),
        ("nics[0].mac", Bearing::CannotFollow, |s| s.nics[0].mac.0[5] = 1),
        ("volumes (how many)", Bearing::CannotFollow, |s| drop(s.volumes.pop())),
        ("volumes[0].name", Bearing::CannotFollow, |s| s.volumes.swap(0, 1)),
        ("volumes[1].size", Bearing::CannotFollow, |s| s.volumes[1].size = 2048),
        ("volumes[1].acknowledge", Bearing::CannotFollow, |s| {
            s.volumes[1].acknowledge = crate::spec::Acknowledge::Disk;
        }),
        ("volumes[1].bootindex", Bearing::NextBoot, |s| s.volumes[1].bootindex = Some(1)),
        ("non_volatile", Bearing::CannotFollow, |s| s.non_volatile = Some(Default::default())),
        ("backups", Bearing::Policy, |s| s.backups = 2),
        ("clock_gap", Bearing::Policy, |s| s.clock_gap = crate::spec::ClockGap::Lost),
        ("watchdog", Bearing::NextBoot, |s| {
            s.watchdog = Some(crate::health::Watchdog::new(crate::health::WatchdogAction::Reset));
        }),
        ("uuid", Bearing::NextBoot, |s| s.uuid = Some(crate::Uuid::of_name("a", "b"))),
    ];

    /// Each difference is named, with both values; and what can be followed is followed.
    #[test]
    fn each_difference_is_named_and_followed_where_it_can_be() {
        assert_eq!(differences(&vm(), &vm()), []);
        for (field, bearing, change) in CASES {
            let mut file = vm();
            change(&mut file);
            let found = differences(&vm(), &file);
            let named = found.iter().find(|d| d.field == *field).unwrap_or_else(|| panic!("{field}: {found:?}"));
            assert_eq!(named.bearing, *bearing, "{field}");
            assert_ne!(named.runs, named.file, "{field}");
            if found.iter().any(|d| d.bearing == Bearing::CannotFollow) {
                continue;
            }
            let built = vm().as_booted(&file);
            let left = differences(&vm(), &built);
            let followed = |d: &&Difference| d.bearing == Bearing::NextBoot && d.field != "accel";
            assert_eq!(left.iter().find(followed), None, "{field}");
            // It is still the file that is booted from next time, and that is said on whichever host it is.
            assert_eq!(differences(&built, &file).is_empty(), matches!(*field, "backups" | "clock_gap" | "accel"));
        }
    }

    /// A field that is added to a specification is thought of here: it is compared, or one of those that are not.
    #[test]
    fn every_field_of_a_specification_is_thought_of() {
        let named = |field: &str| CASES.iter().any(|(name, ..)| name.split([' ', '[', '.']).next() == Some(field));
        // One architecture is all that there is; the owner's wish travels with the VM.
        let others = ["arch", "protection"];
        let source = include_str!("spec.rs");
        let (_, spec) = source.split_once("pub struct VmSpec {").unwrap();
        let (spec, _) = spec.split_once("\n}").unwrap();
        let fields: Vec<_> = spec.lines().filter_map(|l| l.trim().strip_prefix("pub ")?.split_once(':')).collect();
        assert!(fields.len() > 12, "{fields:?}");
        for (field, _) in fields {
            assert!(named(field) || others.contains(&field), "{field}");
        }
    }

    #[test]
    fn what_is_a_hosts_own_affair_is_no_difference() {
        let mut file = vm();
        file.boot = Boot::Linux { kernel: "/other".into(), initrd: Some("/initrd".into()), cmdline: "quiet".into() };
        file.nics[0].bridge = "br7".into();
        file.protection = crate::spec::Protection::None;
        assert_eq!(differences(&vm(), &file), []);
        assert_eq!(vm().as_booted(&file), file);
    }

    #[test]
    fn a_sentence_says_what_holds_when() {
        let [a, b] = ["a", "b"].map(|host| host.parse::<HostName>().unwrap());
        let found = differences(&vm(), &VmSpec { vcpus: 2, ..vm() });
        let said = found[0].sentence(&a, &b);
        assert!(
            said.contains("vcpus: a runs 1, b's file says 2") && said.contains("from the next boot on b"),
            "{said}"
        );
        let said = found[0].sentence(&b, &b);
        assert!(said.contains("vcpus: the VM runs with 1, b's file says 2, from the next boot on b on"), "{said}");
    }

    #[test]
    fn what_is_said_is_bounded() {
        let linux = |cmdline: String| Boot::Linux { kernel: "/k".into(), initrd: None, cmdline };
        let long = VmSpec { boot: linux("x\n".repeat(1 << 20)), ..vm() };
        let found = differences(&long, &vm());
        assert!(found[0].runs.chars().count() <= MAX_VALUE + 1 && !found[0].runs.contains('\n'));
        let volume = |n: usize| crate::spec::VolumeSpec::new(format!("v{n}").parse().unwrap(), 512);
        let many = |from| VmSpec { volumes: (from..from + 64).map(volume).collect(), ..vm() };
        assert_eq!(differences(&VmSpec { vcpus: 9, ..many(0) }, &many(100)).len(), MAX_DIFFERENCES);
        let hostile = Difference { field: "\x1b[2J".repeat(1000), ..found[0].clone() };
        let heard = bounded(vec![hostile; 1000]);
        assert_eq!(heard.len(), MAX_DIFFERENCES);
        assert!(heard.iter().all(|d| d.field.chars().count() <= MAX_VALUE + 1 && !d.field.contains('\x1b')));
    }
}
