//! What of a VM that runs, or that was saved, is otherwise in a host's file.
//!
//! A machine is what it was booted with, wherever it goes, until it is booted anew: a guest does not see a processor come or go
//! because its VM has gone to another host. So a host that takes a VM in builds [what runs](VmSpec::as_booted), and its own file says
//! what it would boot. Where the two differ is found here, and said.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::HostName;
use crate::spec::{BootKind, Hardware, VmSpec};

/// Longest text of one value, characters.
const MAX_VALUE: usize = 120;
/// Differences that are told; more say nothing new.
const MAX_DIFFERENCES: usize = 64;

/// A field in which a host's file differs from the VM that runs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Bearing {
    /// The host follows the VM that runs. What its file says holds when the VM is next booted there.
    NextBoot,
    /// Each host goes by its own file while it has the VM.
    Policy,
    /// The host has its part of it (disks, TAP devices, a log) as its file says, and cannot hold this VM.
    CannotFollow,
}

/// What a difference in hardware is about, for those to whom not all matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    Arch,
    /// How many volumes there are, or what one of them is.
    Volume,
    VolumeName,
    Other,
}

impl Difference {
    /// What it is about.
    #[must_use]
    pub fn of(&self) -> Of {
        match self.field.strip_prefix("hardware.") {
            Some("arch") => Of::Arch,
            Some(field) if field.starts_with("volumes") && field.ends_with(".name") => Of::VolumeName,
            Some(field) if field.starts_with("volumes") => Of::Volume,
            _ => Of::Other,
        }
    }

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

impl Hardware {
    /// In what a machine that runs, or was saved, differs from another that is to go on with its state, as a host's file describes it, in
    /// the order of the file's fields. This is the one place that says on what two QEMUs must agree: sessions, logs and snapshots go by it,
    /// and an operator is told by it.
    #[must_use]
    pub fn compatible(&self, file: &Hardware) -> Vec<Difference> {
        use Bearing::{CannotFollow, NextBoot};
        let mut found = Found(Vec::new());
        found.json("hardware.arch", &self.arch, &file.arch, CannotFollow);
        found.compare("hardware.vcpus", &self.vcpus, &file.vcpus, NextBoot);
        found.compare("hardware.memory_mib", &self.memory_mib, &file.memory_mib, NextBoot);
        found.json("hardware.accel", &self.accel, &file.accel, NextBoot);
        found.compare("hardware.boot", &kind(&self.boot), &kind(&file.boot), CannotFollow);
        if let (BootKind::Linux { cmdline: theirs }, BootKind::Linux { cmdline: ours }) = (&self.boot, &file.boot) {
            found.json("hardware.boot.linux.cmdline", theirs, ours, NextBoot);
        }
        found.compare("hardware.nics (how many)", &self.nics.len(), &file.nics.len(), CannotFollow);
        for (n, (theirs, ours)) in self.nics.iter().zip(&file.nics).enumerate() {
            found.compare(&format!("hardware.nics[{n}].mac"), &theirs.mac, &ours.mac, CannotFollow);
        }
        found.compare("hardware.volumes (how many)", &self.volumes.len(), &file.volumes.len(), CannotFollow);
        for (n, (theirs, ours)) in self.volumes.iter().zip(&file.volumes).enumerate() {
            found.compare(&format!("hardware.volumes[{n}].name"), &theirs.name, &ours.name, CannotFollow);
            found.compare(&format!("hardware.volumes[{n}].size"), &theirs.size, &ours.size, CannotFollow);
            found.json(&format!("hardware.volumes[{n}].bootindex"), &theirs.bootindex, &ours.bootindex, NextBoot);
        }
        found.json("hardware.watchdog", &self.watchdog, &file.watchdog, NextBoot);
        found.json("hardware.uuid", &self.uuid, &file.uuid, NextBoot);
        found.0.truncate(MAX_DIFFERENCES);
        found.0
    }
}

/// In what a VM that runs as `runs` differs from what a host's `file` says, in the order of the file's fields. What the owner wants of
/// protection and checkpoints is none: that travels with the VM. Nor is when a host takes another for lost, and whom it speaks to.
#[must_use]
pub fn differences(runs: &VmSpec, file: &VmSpec) -> Vec<Difference> {
    use Bearing::{CannotFollow, Policy};
    let mut found = Found(Vec::new());
    found.compare("id", &runs.id, &file.id, CannotFollow);
    found.compare("name", &runs.name, &file.name, Policy);
    found.0.extend(runs.hardware.compatible(&file.hardware));
    let (theirs, ours) = (&runs.policy, &file.policy);
    found.compare("policy.backups", &theirs.backups, &ours.backups, Policy);
    found.json("policy.clock_gap", &theirs.clock_gap, &ours.clock_gap, Policy);
    found.json("policy.watchdog", &theirs.watchdog, &ours.watchdog, Policy);
    found.json("policy.non_volatile", &theirs.non_volatile, &ours.non_volatile, CannotFollow);
    // What a client was told of a write rests on it.
    for name in runs.hardware.volumes.iter().map(|v| &v.name) {
        let field = format!("policy.acknowledge.{name}");
        found.json(&field, &runs.acknowledge(name), &file.acknowledge(name), CannotFollow);
    }
    found.0.truncate(MAX_DIFFERENCES);
    found.0
}

impl VmSpec {
    /// This VM, which was booted elsewhere or earlier, on the host whose file says `file`: the machine is this one's, but for the
    /// accelerator, which QEMU cannot change and the host has to have; what it is called and how it is kept is as the file says. Right
    /// where [`differences`] finds nothing that cannot be followed.
    #[must_use]
    pub fn as_booted(&self, file: &VmSpec) -> VmSpec {
        let mut spec = VmSpec { hardware: self.hardware.clone(), ..file.clone() };
        spec.hardware.accel = file.hardware.accel;
        // The file may be another VM's, a clone's.
        if self.uuid() != spec.uuid() {
            spec.hardware.uuid = Some(self.uuid());
        }
        // A watchdog that this host's file knows nothing of is acted on as where it was booted.
        if spec.hardware.watchdog.is_some() && spec.policy.watchdog.is_none() {
            spec.policy.watchdog.clone_from(&self.policy.watchdog);
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

fn kind(boot: &BootKind) -> &'static str {
    match boot {
        BootKind::Linux { .. } => "linux",
        BootKind::BootSector => "boot_sector",
        BootKind::Volume => "volume",
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
            "id": "3f0e1c4a-7d52-4b60-9c1f-5a2e8d90b7c4", "name": "db",
            "hardware": {
                "memory_mib": 256, "boot": { "linux": { "cmdline": "quiet" } }, "nics": [{ "mac": "52:54:00:12:34:56" }],
                "volumes": [{ "name": "root", "size": 512 }, { "name": "data", "size": 1024 }]
            }
        });
        serde_json::from_value(json).unwrap()
    }

    type Change = fn(&mut Hardware);

    /// Every field of a VM's hardware, by what a difference in it means.
    const HARDWARE: &[(&str, Bearing, Change)] = &[
        ("hardware.vcpus", Bearing::NextBoot, |h| h.vcpus = 2),
        ("hardware.memory_mib", Bearing::NextBoot, |h| h.memory_mib = 512),
        ("hardware.accel", Bearing::NextBoot, |h| h.accel = crate::spec::AccelChoice::Kvm),
        ("hardware.boot", Bearing::CannotFollow, |h| h.boot = BootKind::Volume),
        ("hardware.boot.linux.cmdline", Bearing::NextBoot, |h| h.boot = BootKind::Linux { cmdline: "debug".into() }),
        ("hardware.nics (how many)", Bearing::CannotFollow, |h| h.nics.clear()),
        ("hardware.nics[0].mac", Bearing::CannotFollow, |h| h.nics[0].mac.0[5] = 1),
        ("hardware.volumes (how many)", Bearing::CannotFollow, |h| drop(h.volumes.pop())),
        ("hardware.volumes[1].name", Bearing::CannotFollow, |h| h.volumes[1].name = "other".parse().unwrap()),
        ("hardware.volumes[1].size", Bearing::CannotFollow, |h| h.volumes[1].size = 2048),
        ("hardware.volumes[1].bootindex", Bearing::NextBoot, |h| h.volumes[1].bootindex = Some(1)),
        ("hardware.watchdog", Bearing::NextBoot, |h| h.watchdog = Some(Default::default())),
        ("hardware.uuid", Bearing::NextBoot, |h| h.uuid = Some(crate::Uuid::of_name("a", "b"))),
    ];

    type Kept = fn(&mut VmSpec);

    /// And of the rest, what is not a host's own affair.
    const REST: &[(&str, Bearing, Kept)] = &[
        ("id", Bearing::CannotFollow, |s| s.id = crate::VmId::random(7)),
        ("name", Bearing::Policy, |s| s.name = "other".parse().unwrap()),
        ("policy.backups", Bearing::Policy, |s| s.policy.backups = 2),
        ("policy.clock_gap", Bearing::Policy, |s| s.policy.clock_gap = crate::spec::ClockGap::Lost),
        ("policy.watchdog", Bearing::Policy, |s| {
            s.policy.watchdog = Some(crate::health::WatchdogPolicy::new(crate::health::WatchdogAction::Reset));
        }),
        ("policy.non_volatile", Bearing::CannotFollow, |s| s.policy.non_volatile = Some(Default::default())),
        ("policy.acknowledge.data", Bearing::CannotFollow, |s| {
            s.policy.acknowledge = [("data".parse().unwrap(), crate::spec::Acknowledge::Disk)].into();
        }),
    ];

    /// One field that differs is one difference, which has its name, both values and what follows from it.
    #[test]
    fn each_difference_is_one_and_is_named() {
        assert_eq!(vm().hardware.compatible(&vm().hardware), []);
        assert_eq!(differences(&vm(), &vm()), []);
        let one = |field: &str, bearing, found: Vec<Difference>| {
            let [only] = &found[..] else { panic!("{field}: {found:?}") };
            assert_eq!((only.field.as_str(), only.bearing), (field, bearing));
            assert_ne!(only.runs, only.file, "{field}");
        };
        for (field, bearing, change) in HARDWARE {
            let mut file = vm();
            change(&mut file.hardware);
            one(field, *bearing, vm().hardware.compatible(&file.hardware));
            one(field, *bearing, differences(&vm(), &file));
        }
        for (field, bearing, change) in REST {
            let mut file = vm();
            change(&mut file);
            one(field, *bearing, differences(&vm(), &file));
        }
    }

    /// What can be followed is followed; what the file says of the VM's policy holds.
    #[test]
    fn what_can_be_followed_is_followed() {
        for (field, bearing, change) in HARDWARE {
            if *bearing == Bearing::CannotFollow {
                continue;
            }
            let mut file = vm();
            change(&mut file.hardware);
            let built = vm().as_booted(&file);
            // Which accelerator works is for the host to say, and nothing that is loaded changes it.
            let left = vm().hardware.compatible(&built.hardware);
            assert_eq!(left.is_empty(), *field != "hardware.accel", "{field}: {left:?}");
            // It is still the file that is booted from next time, and that is said on whichever host it is.
            assert_eq!(differences(&built, &file).is_empty(), *field == "hardware.accel", "{field}");
        }
        for (field, _, change) in REST {
            let mut file = vm();
            change(&mut file);
            assert_eq!(vm().as_booted(&file).policy, file.policy, "{field}");
        }
    }

    /// A clone keeps the machine's identity that its memory has, unless it is given another; a watchdog is never without an action.
    #[test]
    fn what_the_file_says_nothing_of_is_as_it_was_booted() {
        let file = VmSpec { id: crate::VmId::random(7), ..vm() };
        assert_eq!(vm().as_booted(&file).uuid(), vm().uuid());
        let mut runs = vm();
        runs.hardware.watchdog = Some(Default::default());
        runs.policy.watchdog = Some(crate::health::WatchdogPolicy::new(crate::health::WatchdogAction::Stop));
        assert_eq!(runs.as_booted(&vm()).watchdog(), runs.watchdog());
        let mut ours = runs.clone();
        ours.policy.watchdog = Some(crate::health::WatchdogPolicy::new(crate::health::WatchdogAction::Dump));
        assert_eq!(runs.as_booted(&ours).watchdog(), ours.watchdog());
    }

    /// A field that is added to a specification is thought of here: it is compared, or one of those that are not.
    #[test]
    fn every_field_of_a_specification_is_thought_of() {
        let fields = |source: &str, of: &str| {
            let (_, found) = source.split_once(of).unwrap();
            let (found, _) = found.split_once("\n}").unwrap();
            let name = |line: &str| Some(line.trim().strip_prefix("pub ")?.split_once(':')?.0.to_owned());
            found.lines().filter_map(name).collect::<Vec<_>>()
        };
        let first = |name: &str| name.split([' ', '[']).next().unwrap_or_default().to_owned();
        let table = HARDWARE.iter().map(|(name, ..)| *name).chain(REST.iter().map(|(name, ..)| *name));
        let named: Vec<_> = table.map(first).collect();
        // One architecture is all that there is. What travels with the VM, and what is each host's own affair, is no difference.
        let others = ["arch", "protection", "epochs", "timing", "peers", "witness"];
        for (part, source, of) in [
            ("hardware", include_str!("spec/hardware.rs"), "pub struct Hardware {"),
            ("policy", include_str!("spec/policy.rs"), "pub struct Policy {"),
        ] {
            let found = fields(source, of);
            assert!(found.len() > 8, "{found:?}");
            for field in found {
                let whole = format!("{part}.{field}");
                let is_named = named.iter().any(|n| *n == whole || n.starts_with(&format!("{whole}.")));
                assert!(is_named || others.contains(&field.as_str()), "{whole}");
            }
        }
    }

    #[test]
    fn a_difference_says_what_it_is_about() {
        for (field, _, change) in HARDWARE {
            let mut file = vm();
            change(&mut file.hardware);
            let about = match *field {
                "hardware.volumes[1].name" => Of::VolumeName,
                field if field.starts_with("hardware.volumes") => Of::Volume,
                _ => Of::Other,
            };
            assert_eq!(vm().hardware.compatible(&file.hardware)[0].of(), about, "{field}");
        }
    }

    #[test]
    fn what_travels_with_the_vm_is_no_difference() {
        let mut file = vm();
        file.policy.protection = crate::spec::Protection::None;
        file.policy.epochs = crate::spec::EpochPolicy::Fixed { ms: 7 };
        assert_eq!(differences(&vm(), &file), []);
    }

    #[test]
    fn a_sentence_says_what_holds_when() {
        let [a, b] = ["a", "b"].map(|host| host.parse::<HostName>().unwrap());
        let mut file = vm();
        file.hardware.vcpus = 2;
        let found = differences(&vm(), &file);
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
        let mut long = vm();
        long.hardware.boot = BootKind::Linux { cmdline: "x\n".repeat(1 << 20) };
        let found = differences(&long, &vm());
        assert!(found[0].runs.chars().count() <= MAX_VALUE + 1 && !found[0].runs.contains('\n'));
        let volume = |n: usize| crate::spec::VolumeSpec::new(format!("v{n}").parse().unwrap(), 512);
        let many =
            |from| Hardware { volumes: (from..from + 64).map(volume).collect(), vcpus: from as u16, ..vm().hardware };
        assert_eq!(many(0).compatible(&many(100)).len(), MAX_DIFFERENCES);
        let hostile = Difference { field: "\x1b[2J".repeat(1000), ..found[0].clone() };
        let heard = bounded(vec![hostile; 1000]);
        assert_eq!(heard.len(), MAX_DIFFERENCES);
        assert!(heard.iter().all(|d| d.field.chars().count() <= MAX_VALUE + 1 && !d.field.contains('\x1b')));
    }
}
