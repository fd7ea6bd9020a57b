//! A client in another language, written from docs/api.md alone: see `api/client.py`. Real hosts, keepers and QEMUs; needs root and python3.

mod support;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use ninefold_keeper::config::KeeperConfig;
use ninefold_lab::{Lab, LabConfig, VmOptions};
use ninefold_model::spec::{Boot, Protection};
use ninefold_testkit::{programs, sleeper};
use support::lab_name;

#[test]
fn a_client_written_from_the_documents_alone_starts_protects_and_moves_a_vm() {
    programs::build(programs::OF_A_LAB);
    let lab = Lab::up(&LabConfig::new(&lab_name()).unwrap()).unwrap();
    let mut options = VmOptions::new("vm".parse().unwrap());
    options.memory_mib = 32;
    // A machine that is busy with builds shall not look like one that has died.
    options.timing.failure_timeout_ms = 500;
    options.protection = Protection::FaultTolerant;
    options.boot = Some(Boot::BootSector { image: sleeper::image(&lab.dir()) });
    lab.configure_vm(&options).unwrap();
    lab.start_witness().unwrap();
    for host in ["a", "b"] {
        lab.start_keeper(host).unwrap();
    }
    let mut client = Command::new("python3")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/api/client.py"))
        .args(["a", "b"].map(|host| KeeperConfig::control_socket(&lab.vm_dir(host).unwrap())))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 can be started");
    let mut said = BufReader::new(client.stdout.take().unwrap()).lines();
    let mut tell = client.stdin.take().unwrap();
    // What it has to say on its standard error is beside this.
    assert_eq!(said.next().and_then(Result::ok).as_deref(), Some("restart"), "{}", lab.logs_for_error());
    lab.kill_keeper("a").unwrap();
    lab.start_keeper("a").unwrap();
    tell.write_all(b"restarted\n").unwrap();
    assert_eq!(said.next().and_then(Result::ok).as_deref(), Some("done"), "{}", lab.logs_for_error());
    assert!(client.wait().unwrap().success());
}
