//! Files form no circles, but for those that are known.

use std::collections::BTreeSet;

use ninefold_tidy::imports;
use ninefold_tidy::tree::{Tree, root};

/// Files that are known to form a circle, or several, and why they still do.
struct Known {
    directory: &'static str,
    files: &'static [&'static str],
    because: &'static str,
}

const KNOWN: &[Known] = &[
    Known {
        directory: "crates/cli/src",
        files: &["vm/control.rs", "vm/events.rs", "vm/trial.rs"],
        because: "verbs that follow events, and events' words",
    },
    Known {
        directory: "crates/core/src",
        files: &[
            "backup.rs",
            "core.rs",
            "effect.rs",
            "event.rs",
            "health.rs",
            "log.rs",
            "prepare.rs",
            "replica.rs",
            "requests.rs",
            "snapshot.rs",
            "stall.rs",
            "standing.rs",
            "survivors.rs",
            "volumes.rs",
        ],
        because: "one state machine in several files, and an event that says why a log failed",
    },
    Known {
        directory: "crates/keeper/src",
        files: &[
            "acknowledge.rs",
            "aside.rs",
            "back.rs",
            "booted.rs",
            "capture.rs",
            "disks.rs",
            "health/watcher.rs",
            "log.rs",
            "msg.rs",
            "recovery.rs",
            "resync.rs",
            "session.rs",
            "sink.rs",
            "snapshot.rs",
            "standby.rs",
            "vm.rs",
        ],
        because: "messages carry what the threads are about: they are to be divided",
    },
    Known {
        directory: "crates/keeper/src",
        files: &[
            "runtime/durable.rs",
            "runtime/inbox.rs",
            "runtime/mod.rs",
            "runtime/primary.rs",
            "runtime/sessions.rs",
            "runtime/vm.rs",
        ],
        because: "one type, the thread that drives the core, in several files",
    },
    Known {
        directory: "dev/lab/src",
        files: &[
            "bench/clock.rs",
            "bench/plan.rs",
            "bench/rebind.rs",
            "bench/results.rs",
            "bench/scaling.rs",
            "bench/snapshots.rs",
            "bench/subject.rs",
        ],
        because: "plans and results of the benchmark name each other",
    },
    Known {
        directory: "dev/lab/src",
        files: &["boot.rs", "guest.rs"],
        because: "a guest is chosen by the options of the VM that boots it",
    },
    Known {
        directory: "dev/lab/src",
        files: &["disks.rs", "lab.rs", "teardown.rs"],
        because: "one type, the lab, in several files",
    },
    Known {
        directory: "crates/machine/src",
        files: &[
            "dirty.rs",
            "dirty/host.rs",
            "dirty/moment.rs",
            "dirty/pagemap_scan.rs",
            "dirty/soft_dirty.rs",
            "dirty/traps.rs",
            "memory.rs",
            "ram.rs",
        ],
        because: "types of the tracker that are declared in its parent",
    },
    Known {
        directory: "crates/machine/src",
        files: &["machine.rs", "suspension.rs"],
        because: "one type, the machine, in several files",
    },
    Known {
        directory: "crates/model/src",
        files: &["health.rs", "spec.rs"],
        because: "a specification has a watchdog's policy, and a trial has an image to boot",
    },
    Known {
        directory: "crates/replica/src",
        files: &[
            "continuation.rs",
            "stream/error.rs",
            "stream/header.rs",
            "stream/layout.rs",
            "stream/page.rs",
            "stream/record.rs",
        ],
        because: "records of the stream carry origins, which are made of the stream's layout and errors",
    },
    Known {
        directory: "crates/replica/src",
        files: &["protocol/backup.rs", "protocol/give_back.rs", "protocol/mod.rs", "protocol/primary.rs"],
        because: "one state machine in several files: its states lead to each other",
    },
];

#[test]
fn files_form_no_circles_but_those_that_are_known() {
    let graph = imports::read(&Tree::read(&root()).unwrap());
    // What finds no uses finds no circles either.
    assert!(graph.files().count() > 200 && graph.uses().count() > 500, "{}", graph.uses().count());
    let known: Vec<BTreeSet<String>> =
        KNOWN.iter().map(|k| k.files.iter().map(|file| format!("{}/{file}", k.directory)).collect()).collect();
    let within = |circle: &BTreeSet<&str>, files: &BTreeSet<String>| circle.iter().all(|file| files.contains(*file));
    let found = graph.circles();
    let mut wrong = String::new();
    for circle in found.iter().filter(|circle| !known.iter().any(|files| within(circle, files))) {
        let files: Vec<_> = circle.iter().copied().collect();
        wrong += &format!("a circle that is not known:\n  {}\n{}", files.join("\n  "), graph.explain(circle));
    }
    for (entry, files) in KNOWN.iter().zip(&known) {
        assert!(!entry.because.is_empty());
        if !found.iter().any(|circle| within(circle, files)) {
            wrong += &format!("there is no circle any more of {files:?}\n");
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}
