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
        directory: "crates/core/src",
        files: &[
            "backup.rs",
            "core.rs",
            "former_backups.rs",
            "guest_state.rs",
            "health.rs",
            "log.rs",
            "naming.rs",
            "operations.rs",
            "prepare.rs",
            "replica.rs",
            "requests.rs",
            "resting.rs",
            "retire.rs",
            "snapshot.rs",
            "stall.rs",
            "volumes.rs",
        ],
        because: "one state machine in several files",
    },
    Known {
        directory: "crates/keeper/src",
        files: &["backup/acknowledge.rs", "backup/offer.rs", "durable/log/job.rs", "msg.rs"],
        because: "the core gives a session its log, which is given who acknowledges for it, who tells the core",
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
        files: &["disks.rs", "lab.rs", "teardown.rs"],
        because: "one type, the lab, in several files",
    },
    Known {
        directory: "crates/machine/src",
        files: &["machine.rs", "suspension.rs"],
        because: "one type, the machine, in several files",
    },
    Known {
        directory: "crates/replica/src",
        files: &[
            "protocol/backup.rs",
            "protocol/give_back.rs",
            "protocol/gone.rs",
            "protocol/mod.rs",
            "protocol/primary.rs",
        ],
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
