//! `ninefold-lab chaos` that is interrupted: it says what it knows, and leaves nothing. Real VMs; needs root and the guest.

mod fixture;

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use fixture::LabName;
use rustix::process::{Pid, Signal, kill_process};

#[test]
fn an_interrupted_run_reports_and_leaves_nothing() {
    fixture::build();
    let lab = LabName::new();
    let keep = tempfile::tempdir().unwrap();
    let mut command = fixture::lab().command(&["chaos", "--seconds", "600", "--seed", "1", "--only", "redis"]);
    command.args(["--name", lab.name(), "--keep"]).arg(keep.path()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("burst 0 ") {
        line.clear();
        assert_ne!(lines.read_line(&mut line).unwrap(), 0, "it ended by itself");
    }
    kill_process(Pid::from_raw(child.id() as i32).unwrap(), Signal::INT).unwrap();
    let mut rest = String::new();
    lines.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest}");
    assert!(rest.contains("interrupted; nothing was found up to then"), "{rest}");
    assert_eq!(lab.traces(), Vec::<String>::new());
}
