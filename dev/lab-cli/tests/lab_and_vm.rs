//! A lab from `up` to `down`, through the command. Real VMs; needs root and the test guest.

mod fixture;

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use fixture::LabName;
use ninefold_lab::record::lab_dir;
use rustix::process::{Pid, Signal, kill_process};

/// For what nobody reports: asks again and again, with a limit only against hanging for ever.
fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(90);
    while !done() {
        assert!(Instant::now() < deadline, "no {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_lab_from_up_to_down() {
    fixture::build();
    let lab = LabName::new();
    let name = lab.name();
    let (labs, ninefold) = (fixture::lab(), lab.ninefold());
    let vm = |verb: &[&str]| ninefold.json(&[&["vm"], verb].concat());
    let in_lab = |verb: &[&str]| labs.json(&[verb, &["--name", name]].concat());

    let made = in_lab(&["up"]);
    assert_eq!(made["lab"]["persistent"], true);
    assert_eq!((&made["vm"]["role"], &made["vm"]["protection"]), (&"primary".into(), &"protected".into()), "{made:#}");
    assert!(labs.fails(&["up", "--name", name], 1).contains(&format!("ninefold-lab down --name {name}")));
    assert!(labs.json(&["list"]).as_array().unwrap().iter().any(|l| l["name"] == name));

    let status = vm(&["status"]);
    assert_eq!((&status["primary"], &status["protection"]), (&"a".into(), &"protected".into()), "{status:#}");
    let roles: Vec<_> = status["hosts"].as_array().unwrap().iter().map(|h| h["status"]["role"].clone()).collect();
    assert_eq!(roles, ["primary", "backup"]);
    let env = labs.ok(&["env", "--name", name]);
    assert_eq!(env, format!("export NINEFOLD_RUN_DIR={0}/a:{0}/b\n", lab_dir(name).display()));
    assert!(ninefold.ok(&["vm", "status"]).starts_with("VM 'vm' runs on host a: protected by host b\n"));
    let picture = labs.ok(&["status", "--name", name]);
    assert!(picture.contains("a primary") && picture.contains("w witness"), "{picture}");

    wrong_hosts(&lab);

    // The VM moves, and its console with it.
    assert_eq!(console(&lab, "echo before-$((40+2))\n", "before-42"), Some(0));
    let moved = vm(&["switchover"]);
    assert_eq!((&moved["host"], &moved["event"]["event"]), (&"b".into(), &"took_over".into()), "{moved:#}");
    assert_eq!(vm(&["status"])["primary"], "b");
    assert_eq!(console(&lab, "echo after-$((40+2))\n", "after-42"), Some(0));

    // Protected again without our doing: `protect` only waits for it.
    vm(&["protect"]);
    vm(&["epochs", "fixed", "--ms", "20"]);
    let policies: Vec<_> =
        vm(&["status"])["hosts"].as_array().unwrap().iter().map(|h| h["status"]["epoch_policy"].clone()).collect();
    assert_eq!(policies, [serde_json::json!({"fixed": {"ms": 20}}), serde_json::json!({"fixed": {"ms": 20}})]);
    wait_until("checkpoints", || vm(&["checkpoints", "--last", "5"])["checkpoints"].as_array().unwrap().len() == 5);
    assert_eq!(vm(&["unprotect"])["host"], "b");
    assert_eq!(vm(&["status"])["protection"], "off");
    assert_eq!(vm(&["protect"])["event"]["event"], "protected");

    // A whole host is lost, and comes back. A console that is open goes on, and repeats nothing.
    let mut open = Typed::start(&lab);
    open.say("echo first-$((40+2))\n", "first-42");
    in_lab(&["kill", "b", "host"]);
    wait_until("take-over by a", || vm(&["status"])["primary"] == "a");
    let heard = open.say("echo second-$((40+2))\n", "second-42");
    assert_eq!(heard.matches("first-42").count(), 1, "{heard}");
    drop(open);
    assert!(labs.ok(&["status", "--name", name]).contains("host off"));
    in_lab(&["restart", "b"]);
    vm(&["protect"]);
    let events = ninefold.ok(&["vm", "events"]);
    assert!(events.contains("TOOK OVER"), "{events}");
    assert!(ninefold.ok(&["vm", "events", "--json"]).lines().all(|l| l.starts_with('{')));

    // Cables and the witness.
    in_lab(&["cut", "b", "both", "--blackhole"]);
    assert!(labs.ok(&["status", "--name", name]).contains("black hole"));
    in_lab(&["heal", "b", "both"]);
    vm(&["protect"]);
    in_lab(&["witness", "kill"]);
    assert!(labs.fails(&["witness", "stop", "--name", name], 1).contains("no witness runs here"));
    in_lab(&["witness", "start"]);

    let shell =
        labs.command(&["exec", "--name", name, "client", "--", "sh", "-c", "echo in; exit 7"]).output().unwrap();
    assert_eq!((shell.status.code(), String::from_utf8_lossy(&shell.stdout).as_ref()), (Some(7), "in\n"));

    vm(&["stop"]);
    let said = ninefold.fails(&["vm", "stop"], 1);
    assert!(said.contains("does not run on") && said.contains("\nhelp: "), "{said}");
    in_lab(&["down"]);
    assert_eq!(lab.traces(), Vec::<String>::new());
}

/// Hosts that are not there, and a keeper that does not run the VM.
fn wrong_hosts(lab: &LabName) {
    let (labs, name) = (fixture::lab(), lab.name());
    let said = labs.fails(&["kill", "x", "host", "--name", name], 1);
    assert!(said.contains("has no host 'x'") && said.contains("\nhelp: its hosts: a, b, w, client"), "{said}");
    let said = labs.fails(&["cut", "client", "replication", "--name", name], 1);
    assert!(said.contains("not on the"), "{said}");
    let said = labs.fails(&["restart", "a", "--name", name], 1);
    assert!(said.contains("host a: runs"), "{said}");
    let said = lab.ninefold().fails(&["vm", "start"], 1);
    assert!(said.contains("runs on a already"), "{said}");
    let backup = fixture::ninefold([lab.run_dir("b").as_path()]);
    let said = backup.fails(&["vm", "switchover"], 1);
    assert!(said.contains("does not run on b") && said.contains("\nhelp: it is the backup of a"), "{said}");
}

/// Types `input` at the guest's console; expects `output`. Gives back the exit code.
fn console(lab: &LabName, input: &str, output: &str) -> Option<i32> {
    let mut child = lab
        .ninefold()
        .command(&["vm", "console", "--linger", "3"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let done = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&done.stdout);
    assert!(text.contains(output), "{text}");
    done.status.code()
}

/// An open console.
struct Typed {
    child: Child,
    output: std::sync::mpsc::Receiver<Vec<u8>>,
    heard: String,
}

impl Typed {
    fn start(lab: &LabName) -> Self {
        let mut command = lab.ninefold().command(&["vm", "console"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let (sender, output) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = stdout.read(&mut buffer) {
                let _ = sender.send(buffer[..n].to_vec());
            }
        });
        Self { child, output, heard: String::new() }
    }

    /// Types, and waits for an answer. Gives back all that was heard so far.
    fn say(&mut self, input: &str, answer: &str) -> String {
        self.child.stdin.as_mut().unwrap().write_all(input.as_bytes()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.heard.contains(answer) {
            let left = deadline.saturating_duration_since(Instant::now());
            let more = self.output.recv_timeout(left).unwrap_or_else(|e| panic!("{e}: {}", self.heard));
            self.heard += &String::from_utf8_lossy(&more);
        }
        self.heard.clone()
    }
}

impl Drop for Typed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn an_interrupted_command_leaves_nothing() {
    fixture::build();
    let report = tempfile::tempdir().unwrap();
    let report = report.path().join("report.json");
    let demo = ["demo", "--report", report.to_str().unwrap()];
    // In the middle of making the networks; while the VM boots.
    for (command, begun, signal) in [
        (&["up"][..], "lab.json", Signal::INT),
        (&["up"], "a/by-name/vm/keeper.sock", Signal::TERM),
        (&demo, "b/by-name/vm/keeper.sock", Signal::INT),
    ] {
        let lab = LabName::new();
        let arguments = [command, &["--name", lab.name()]].concat();
        let mut running =
            fixture::lab().command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        await_path(&lab_dir(lab.name()).join(begun), &mut running);
        kill_process(Pid::from_child(&running), signal).unwrap();
        let status: ExitStatus = running.wait().unwrap();
        assert_eq!(status.code(), Some(130), "{arguments:?} after {begun}");
        assert_eq!(lab.traces(), Vec::<String>::new(), "{arguments:?} after {begun}");
    }
}

fn await_path(path: &Path, child: &mut Child) {
    wait_until("sign of the lab", || {
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        path.exists()
    });
}
