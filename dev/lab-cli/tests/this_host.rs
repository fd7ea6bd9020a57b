//! Every verb of `ninefold vm` with nothing but the keeper of this host, as an operator has it: the other host's cannot be asked.
//! Real VMs; needs root and the test guest.

mod fixture;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use fixture::LabName;
use ninefold_keeper::config::KeeperConfig;
use ninefold_testkit::command::Program;

/// Waits until the guest's agent tells of its kernel: a guest whose file systems are frozen does not, nor while its keeper speaks to it.
fn await_kernel(ninefold: &Program) {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let output = ninefold.run(&["--json", "vm", "info", "--wait", "10"]);
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        if told["kernel"].is_string() {
            return;
        }
        assert!(Instant::now() < until, "{told:#} {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Types a line into the guest's root shell, and waits until it says this.
fn types(dir: &Path, line: &str, says: &str) {
    let mut console = UnixStream::connect(KeeperConfig::console_socket(dir)).unwrap();
    console.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    writeln!(console, "\n{line}").unwrap();
    let (mut said, mut buffer) = (String::new(), [0; 4096]);
    while !said.contains(says) {
        let count = console.read(&mut buffer).expect("what the guest's shell says");
        assert!(count > 0, "the console is closed: {said}");
        said.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
}

#[test]
fn every_verb_needs_only_the_keeper_of_this_host() {
    fixture::build();
    let lab = LabName::new();
    let name = lab.name();
    fixture::lab().json(&["up", "--name", name]);
    let dirs = ["a", "b"].map(|host| lab.run_dir(host));
    let [a, b] = &dirs.each_ref().map(|dir| fixture::ninefold([dir.as_path()]));
    let at = |host: &Program, verb: &[&str]| host.json(&[&["vm"], verb].concat());
    let on_a = |verb: &[&str]| at(a, verb);

    // Looking. Hosts are named, not their directories.
    let status = on_a(&["status"]);
    assert_eq!((&status["primary"], &status["hosts"][0]["host"]), (&"a".into(), &"a".into()), "{status:#}");
    let told = a.ok(&["vm", "status"]);
    assert!(
        told.contains("runs on host a: protected by host b") && !told.contains(dirs[0].to_str().unwrap()),
        "{told}"
    );
    let told = b.ok(&["vm", "status"]);
    assert!(told.contains("runs on host a, says its backup on host b"), "{told}");
    assert!(a.ok(&["vm", "events"]).contains("protected by host b"));
    assert_eq!(on_a(&["checkpoints", "--last", "1"])["host"], "a");
    // What the guest's agent tells, whose answers are held like any output of a protected VM.
    let info = on_a(&["info", "--wait", "60"]);
    let told = |what: &str| info[what].as_str().is_some_and(|text| !text.is_empty());
    assert!(info["host"] == "a" && told("agent") && told("kernel"), "{info:#}");
    let macs = info["interfaces"].as_array().unwrap().iter().filter_map(|i| i["mac"].as_str()).collect::<Vec<_>>();
    assert!(macs.iter().any(|mac| mac.starts_with("52:54:00")), "{info:#}");
    // It freezes the guest's file systems for a snapshot, and would tell nothing if they were frozen still.
    let taken = on_a(&["snapshot", "monday", "--freeze", "require"])["event"].clone();
    assert!(taken["event"] == "snapshot_taken" && taken["freeze"]["file_systems"].is_u64(), "{taken:#}");
    await_kernel(a);

    // What changes the VM where it is.
    assert_eq!(on_a(&["epochs", "fixed", "--ms", "30"])["host"], "a");
    assert_eq!(on_a(&["protect"])["host"], "a");
    assert_eq!(on_a(&["pause"])["event"]["event"], "paused");
    assert!(a.ok(&["vm", "status"]).contains("is paused on host a: protected by host b"));
    assert_eq!(on_a(&["pause"])["host"], "a", "it is paused already");
    let said = a.fails(&["vm", "shutdown"], 1);
    assert!(said.contains("paused") && said.contains("help: `ninefold vm resume` first"), "{said}");
    assert_eq!(on_a(&["resume"])["event"]["event"], "resumed");
    assert!(a.fails(&["vm", "resume"], 1).contains("the VM is not paused\nhelp: it runs"));
    assert!(a.fails(&["vm", "wake"], 1).contains("the guest is not suspended"));
    assert_eq!(on_a(&["reset"])["host"], "a");
    let hasty = on_a(&["snapshot", "hasty", "--freeze", "never"])["event"].clone();
    assert!(hasty["event"] == "snapshot_taken" && hasty["freeze"].is_null(), "{hasty:#}");
    assert_eq!(on_a(&["dump"])["event"]["event"], "dumped");
    assert_eq!(on_a(&["unprotect"])["host"], "a");
    assert_eq!(on_a(&["protect"])["event"]["event"], "protected");
    let mut console = a.command(&["vm", "console", "--linger", "0"]);
    let mut console = console.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    console.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert!(console.wait().unwrap().success());

    // Handed over, and back.
    let moved = on_a(&["switchover"]);
    assert_eq!(moved["host"], "b", "{moved:#}");
    for verb in [
        &["stop"][..],
        &["pause"],
        &["resume"],
        &["wake"],
        &["shutdown"],
        &["switchover"],
        &["console"],
        &["dump"],
        &["snapshot", "x"],
    ] {
        let said = a.fails(&[&["vm"], verb].concat(), 1);
        assert!(said.contains("does not run on a\nhelp: it is the backup of b"), "{verb:?}: {said}");
    }
    assert_eq!(at(b, &["protect"])["host"], "b");
    let moved = at(b, &["switchover"]);
    assert_eq!(moved["host"], "a", "{moved:#}");

    // A trial may only be ended while there is one (`tests/health.rs` has some).
    for verb in ["commit-image", "fall-back"] {
        assert!(a.fails(&["vm", verb], 1).contains("no image is on trial"));
    }

    // Nobody in this guest hears the button, and what its agent needs is not there: it runs on. Then it is.
    for mode in ["acpi", "auto"] {
        let said = a.fails(&["vm", "shutdown", "--mode", mode, "--within", "100ms"], 1);
        assert!(said.contains("has not switched itself off within 100ms, and runs on"), "{mode}: {said}");
    }
    let said = a.fails(&["vm", "shutdown", "--mode", "agent"], 1);
    assert!(said.contains("cannot be shut down by its agent: the agent refuses"), "{said}");
    assert!(said.contains("help: its agent has /sbin/shutdown do it"), "{said}");
    types(
        &dirs[0],
        "printf '#!/bin/sh\\nexec poweroff -f\\n' >/sbin/shutdown; chmod +x /sbin/shutdown; echo th'ere'",
        "there",
    );
    assert_eq!(on_a(&["shutdown", "--within", "30s"])["event"]["event"], "stopped");

    // Begun in each way.
    let said = a.fails(&["vm", "restore", "tuesday"], 1);
    assert!(said.contains("tuesday"), "{said}");
    let said = a.fails(&["vm", "start", "--host", "b"], 1);
    assert!(
        said.contains("no keeper of host 'b' is known here\nhelp: hosts that can be asked from here: a."),
        "{said}"
    );
    let restored = on_a(&["restore", "monday", "--host", "a"]);
    assert_eq!((&restored["host"], &restored["event"]["event"]), (&"a".into(), &"restored".into()), "{restored:#}");
    // They were frozen in its memory: whoever goes on with that has them thawed.
    await_kernel(a);
    let said = a.fails(&["vm", "start"], 1);
    assert!(said.contains("runs on a already"), "{said}");
    on_a(&["stop"]);
    // By the witness a had it last: b starts nothing, and says where to ask; asked in b's name and a's, it starts on a.
    let standby = || at(b, &["status"])["hosts"][0]["status"]["role"] == "standby";
    assert!((0..200).any(|_| standby()), "b has not heard that the VM has ended");
    let said = b.fails(&["vm", "start"], 1);
    assert!(said.contains("a had it last") && said.contains("\nhelp: ask the keeper on a to start it"), "{said}");
    let started = fixture::ninefold([dirs[1].as_path(), &dirs[0]]).json(&["vm", "start"]);
    assert_eq!((&started["host"], &started["event"]["event"]), (&"a".into(), &"protected".into()), "{started:#}");
    // It may obey or not: it ends.
    assert_eq!(on_a(&["shutdown", "--within", "500ms", "--force"])["event"]["event"], "stopped");
    fixture::lab().json(&["down", "--name", name]);
    assert_eq!(lab.traces(), Vec::<String>::new());
}
