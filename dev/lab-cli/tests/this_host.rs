//! Every verb of `ninefold vm` on a host that sees nothing but its own keeper, as an operator has it: the command runs inside of one host of a lab whose hosts
//! are apart, and then inside of the other. Real VMs; needs root and the test guest.

mod fixture;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use fixture::LabName;
use ninefold_keeper::config::KeeperConfig;
use ninefold_testkit::command::Program;

/// `ninefold vm` inside of one host.
struct Host<'a> {
    program: Program,
    /// The verbs that were tried, anywhere.
    tried: &'a RefCell<BTreeSet<String>>,
}

impl<'a> Host<'a> {
    fn new(lab: &LabName, host: &str, tried: &'a RefCell<BTreeSet<String>>) -> Self {
        let ninefold = fixture::ninefold_path();
        let words = ["exec", host, "--name", lab.name(), "--", ninefold.to_str().unwrap()];
        Self { program: fixture::lab().before(&words), tried }
    }

    fn words<'w>(&self, verb: &[&'w str]) -> Vec<&'w str> {
        self.tried.borrow_mut().insert(verb[0].to_owned());
        [&["vm"], verb].concat()
    }

    fn json(&self, verb: &[&str]) -> serde_json::Value {
        self.program.json(&self.words(verb))
    }

    fn ok(&self, verb: &[&str]) -> String {
        self.program.ok(&self.words(verb))
    }

    fn fails(&self, verb: &[&str]) -> String {
        self.program.fails(&self.words(verb), 1)
    }
}

/// Waits until the guest's agent tells of its kernel: a guest whose file systems are frozen does not, nor while its keeper speaks to it.
fn await_kernel(host: &Host<'_>) {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let output = host.program.run(&["--json", "vm", "info", "--wait", "10"]);
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
    fixture::lab().json(&["up", "--apart", "--name", name]);
    let tried = RefCell::default();
    let [a, b] = &["a", "b"].map(|host| Host::new(&lab, host, &tried));

    each_host_sees_itself_alone(&lab);

    assert_ne!(a.json(&["new-id"])["id"], b.json(&["new-id"])["id"], "no VM has another's id");
    // Looking. Hosts are named, not their directories.
    let status = a.json(&["status"]);
    assert_eq!((&status["primary"], &status["hosts"][0]["host"]), (&"a".into(), &"a".into()), "{status:#}");
    assert_eq!(status["hosts"].as_array().unwrap().len(), 1);
    let told = a.ok(&["status"]);
    assert!(told.contains("runs on host a: protected by host b"), "{told}");
    assert!(!told.contains(lab.run_dir("a").to_str().unwrap()), "{told}");
    let told = b.ok(&["status"]);
    assert!(told.contains("runs on host a, says its backup on host b"), "{told}");
    assert!(a.ok(&["events"]).contains("protected by host b"));
    assert!(b.ok(&["events"]).contains("holds a checkpoint of host a"));
    assert_eq!(a.json(&["checkpoints", "--last", "1"])["host"], "a");
    // What the guest's agent tells, whose answers are held like any output of a protected VM.
    let info = a.json(&["info", "--wait", "60"]);
    let told = |what: &str| info[what].as_str().is_some_and(|text| !text.is_empty());
    assert!(info["host"] == "a" && told("agent") && told("kernel"), "{info:#}");
    let macs = info["interfaces"].as_array().unwrap().iter().filter_map(|i| i["mac"].as_str()).collect::<Vec<_>>();
    assert!(macs.iter().any(|mac| mac.starts_with("52:54:00")), "{info:#}");
    // It freezes the guest's file systems for a snapshot, and would tell nothing if they were frozen still.
    let taken = a.json(&["snapshot", "monday", "--freeze", "require"])["event"].clone();
    assert!(taken["event"] == "snapshot_taken" && taken["freeze"]["file_systems"].is_u64(), "{taken:#}");
    await_kernel(a);

    // What changes the VM where it is. The epochs are each host's own, whatever its role.
    for (host, own) in [(a, "a"), (b, "b")] {
        assert_eq!(host.json(&["epochs", "fixed", "--ms", "30"])["hosts"], serde_json::json!([own]));
        assert_eq!(host.json(&["status"])["hosts"][0]["status"]["epoch_policy"]["fixed"]["ms"], 30);
    }
    assert_eq!(a.json(&["protect"])["host"], "a");
    assert_eq!(a.json(&["pause"])["event"]["event"], "paused");
    assert!(a.ok(&["status"]).contains("is paused on host a: protected by host b"));
    assert_eq!(a.json(&["pause"])["host"], "a", "it is paused already");
    let said = a.fails(&["shutdown"]);
    assert!(said.contains("paused") && said.contains("help: `ninefold vm resume` first"), "{said}");
    assert_eq!(a.json(&["resume"])["event"]["event"], "resumed");
    assert!(a.fails(&["resume"]).contains("the VM is not paused\nhelp: it runs"));
    assert!(a.fails(&["wake"]).contains("the guest is not suspended"));
    assert_eq!(a.json(&["reset"])["host"], "a");
    let hasty = a.json(&["snapshot", "hasty", "--freeze", "never"])["event"].clone();
    assert!(hasty["event"] == "snapshot_taken" && hasty["freeze"].is_null(), "{hasty:#}");
    assert_eq!(a.json(&["dump"])["event"]["event"], "dumped");
    // What takes its time has a name and an end.
    let operations = a.json(&["operations"])["operations"].clone();
    let dump = operations.as_array().unwrap().iter().find(|o| o["kind"] == "dump").expect("the dump is an operation");
    assert_eq!(
        (&dump["host"], &dump["state"], &dump["outcome"]["event"]),
        (&"a".into(), &"done".into(), &"dumped".into())
    );
    let operation = dump["id"].as_str().unwrap();
    assert_eq!(a.json(&["operations", operation, "--wait"])["operations"][0], *dump);
    assert_eq!(a.json(&["unprotect"])["host"], "a");
    assert_eq!(a.json(&["protect"])["event"]["event"], "protected");
    let mut console = a.program.command(&a.words(&["console", "--linger", "0"]));
    let mut console = console.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    console.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert!(console.wait().unwrap().success());

    // Handed over, used there, and handed back.
    let moved = a.json(&["switchover"]);
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
        &["reset"],
        &["protect"],
        &["unprotect"],
        &["checkpoints"],
        &["info"],
        &["trial", "--cmdline", "quiet"],
        &["commit-image"],
        &["fall-back"],
        &["snapshot", "x"],
    ] {
        let said = a.fails(verb);
        assert!(said.contains("does not run on a\nhelp: it is the backup of b"), "{verb:?}: {said}");
    }
    assert_eq!(b.json(&["protect"])["host"], "b");
    assert!(b.ok(&["status"]).contains("runs on host b: protected by host a"));
    assert!(b.ok(&["events"]).contains("TOOK OVER"));
    let moved = b.json(&["switchover"]);
    assert_eq!(moved["host"], "a", "{moved:#}");

    // A trial may only be ended while there is one (`tests/health.rs` has some), and has to find its image.
    for verb in ["commit-image", "fall-back"] {
        assert!(a.fails(&[verb]).contains("no image is on trial"));
    }
    let said = a.fails(&["trial", "--kernel", "/nowhere/vmlinuz"]);
    assert!(said.contains("/nowhere/vmlinuz"), "{said}");

    // Nobody in this guest hears the button, and what its agent needs is not there: it runs on. Then it is.
    for mode in ["acpi", "auto"] {
        let said = a.fails(&["shutdown", "--mode", mode, "--within", "100ms"]);
        assert!(said.contains("has not switched itself off within 100ms, and runs on"), "{mode}: {said}");
    }
    let said = a.fails(&["shutdown", "--mode", "agent"]);
    assert!(said.contains("cannot be shut down by its agent: the agent refuses"), "{said}");
    assert!(said.contains("help: its agent has /sbin/shutdown do it"), "{said}");
    types(
        &lab.vm_dir("a"),
        "printf '#!/bin/sh\\nexec poweroff -f\\n' >/sbin/shutdown; chmod +x /sbin/shutdown; echo th'ere'",
        "there",
    );
    assert_eq!(a.json(&["shutdown", "--within", "30s"])["event"]["event"], "stopped");

    // Begun in each way.
    let said = a.fails(&["restore", "tuesday"]);
    assert!(said.contains("tuesday"), "{said}");
    // The VM has no log that it could go on from (`lab/tests/power_loss.rs` has VMs that do).
    let said = a.fails(&["recover"]);
    assert!(said.contains("log"), "{said}");
    let said = a.fails(&["start", "--host", "b"]);
    assert!(
        said.contains("no keeper of host 'b' is known here\nhelp: hosts that can be asked from here: a."),
        "{said}"
    );
    let restored = a.json(&["restore", "monday", "--host", "a"]);
    assert_eq!((&restored["host"], &restored["event"]["event"]), (&"a".into(), &"restored".into()), "{restored:#}");
    // They were frozen in its memory: whoever goes on with that has them thawed.
    await_kernel(a);
    let said = a.fails(&["start"]);
    assert!(said.contains("runs on a already"), "{said}");
    a.json(&["stop"]);
    // By the witness a had it last: b starts nothing, and says where to ask; who can ask both starts it on a.
    let standby = |host: &Host<'_>| host.json(&["status"])["hosts"][0]["status"]["role"] == "standby";
    assert!((0..200).any(|_| standby(b)), "b has not heard that the VM has ended");
    let said = b.fails(&["start"]);
    assert!(
        said.contains("a was the last host that ran the VM")
            && said.contains("\nhelp: a VM that has ended on a is started there"),
        "{said}"
    );
    let both = fixture::ninefold([lab.run_dir("b").as_path(), &lab.run_dir("a")]);
    let started = both.json(&["vm", "start"]);
    assert_eq!((&started["host"], &started["event"]["event"]), (&"a".into(), &"protected".into()), "{started:#}");
    // It may obey or not: it ends. Then it is started again by the host that had it last.
    assert_eq!(a.json(&["switchover"])["host"], "b");
    assert_eq!(b.json(&["shutdown", "--within", "500ms", "--force"])["event"]["event"], "stopped");
    assert_eq!(b.json(&["start", "--no-wait"])["host"], "b");
    assert_eq!(b.json(&["stop"])["host"], "b");
    // Another name, and the end, of which a may not decide.
    assert!((0..200).any(|_| standby(a)), "a has not heard that the VM has ended");
    let said = a.fails(&["retire", "vm"]);
    assert!(said.contains("VM 'vm' is not retired") && said.contains("stop it on b"), "{said}");
    assert_eq!(b.json(&["rename", "vm", "former"])["event"]["event"], "renamed");
    assert_eq!(b.json(&["retire", "former"])["event"]["event"], "retired");

    // Whoever adds a verb thinks of a host that sees only its own keeper.
    let verbs = Program::new(fixture::ninefold_path()).verbs();
    let all: BTreeSet<_> =
        verbs.into_iter().filter(|v| v.len() == 2 && v[0] == "vm").map(|mut v| v.remove(1)).collect();
    assert!(all.len() > 20, "{all:?}");
    let forgotten: Vec<_> = all.difference(&tried.borrow()).cloned().collect();
    assert!(forgotten.is_empty(), "this test does not try {forgotten:?}");

    fixture::lab().json(&["down", "--name", name]);
    assert_eq!(lab.traces(), Vec::<String>::new());
}

/// Nothing of one host is there for the processes of another, and all of it for the machine that carries them.
fn each_host_sees_itself_alone(lab: &LabName) {
    let labs = fixture::lab();
    let inside =
        |host: &str, command: &[&str]| labs.run(&[&["exec", host, "--name", lab.name(), "--"], command].concat());
    let text = |output: std::process::Output| String::from_utf8(output.stdout).unwrap();
    let dir = lab.run_dir("a");
    for host in ["a", "b", "w", "client"] {
        let find = ["find", "/run/ninefold-lab", "-mindepth", "1", "-maxdepth", "2"];
        let mut seen: Vec<_> = text(inside(host, &find)).lines().map(str::to_owned).collect();
        seen.sort();
        let own = lab.run_dir(host);
        let above = own.parent().unwrap();
        assert_eq!(seen, [above, &own].map(|p| p.to_str().unwrap().to_owned()), "{host}");
    }
    // Another's keeper cannot be asked, by whatever name.
    let ninefold = fixture::ninefold_path();
    let ask = [ninefold.to_str().unwrap(), "vm", "status", "--run-dir", dir.to_str().unwrap()];
    assert!(inside("a", &ask).status.success());
    let asked = inside("b", &ask);
    assert_eq!(asked.status.code(), Some(1));
    assert!(String::from_utf8(asked.stderr).unwrap().contains("no keeper has its VM's run directory"));
    assert!(lab.ninefold().ok(&["vm", "status"]).contains("runs on host a: protected by host b"));
}
