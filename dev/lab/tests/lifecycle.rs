//! A lab comes and goes: nothing stays, whatever becomes of its owner. Real namespaces; needs root.

mod fixture;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use fixture::{lab, traces, wait_until};
use ninefold_lab::record::lab_dir;
use ninefold_lab::{Lab, LabConfig, LabError};

#[test]
fn down_leaves_nothing() {
    let lab = lab("up");
    let name = lab.name().to_owned();
    assert!(!traces(&name).is_empty());
    let mut sleeper = lab.command("a", "sleep").unwrap();
    sleeper.arg("1000");
    lab.spawn("a", sleeper, "sleep.log").unwrap();
    assert!(matches!(Lab::up(&LabConfig::new(&name).unwrap()), Err(LabError::Exists(_))));
    let seen = Lab::attach(&name).unwrap();
    let status = seen.status().unwrap();
    assert_eq!(status.hosts.iter().map(|h| h.name.as_str()).collect::<Vec<_>>(), ["a", "b", "w", "client"]);
    assert_eq!(status.hosts[0].processes[0].program, "sleep");
    drop(seen);
    assert!(lab_dir(&name).exists(), "dropping an attached lab does not take it down");
    lab.down().unwrap();
    assert_eq!(traces(&name), Vec::<String>::new());
    assert!(matches!(Lab::attach(&name), Err(LabError::NotFound(_))));
}

#[test]
fn drop_leaves_nothing_also_in_a_panic() {
    let name = fixture::name("panic");
    let theirs = name.clone();
    let ended = std::thread::spawn(move || {
        let mut config = LabConfig::new(&theirs).unwrap();
        config.debris = Some(std::env::temp_dir().join(format!("debris-{theirs}")));
        let lab = Lab::up(&config).unwrap();
        std::fs::write(lab.run_dir("a").join("keeper.log"), "the last words").unwrap();
        lab.freeze("a").unwrap();
        panic!("as a test fails");
    })
    .join();
    assert!(ended.is_err());
    assert_eq!(traces(&name), Vec::<String>::new());
    let debris = std::env::temp_dir().join(format!("debris-{name}"));
    let log = std::fs::read_to_string(debris.join(&name).join("a/keeper.log"));
    let _ = std::fs::remove_dir_all(&debris);
    assert_eq!(log.unwrap(), "the last words");
}

#[test]
fn a_persistent_lab_stays_until_it_is_taken_down() {
    let name = fixture::name("keep");
    let mut config = LabConfig::new(&name).unwrap();
    config.persistent = true;
    drop(Lab::up(&config).unwrap());
    let attached = Lab::attach(&name);
    let up = attached.as_ref().is_ok_and(|l| l.netns("a").is_ok_and(|n| ninefold_lab::netns::path(&n).exists()));
    attached.unwrap().down().unwrap();
    assert!(up);
    assert_eq!(traces(&name), Vec::<String>::new());
}

#[test]
fn a_killed_owner_leaves_nothing() {
    // Killed when the lab is up, and in the middle of its making.
    for (tag, when) in [("kill", "up"), ("midway", "begun")] {
        let name = fixture::name(tag);
        let mut owner = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "owner_to_be_killed", "--ignored", "--nocapture"])
            .env("LAB_TEST_NAME", &name)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        if when == "up" {
            let stdout = owner.stdout.take().unwrap();
            assert!(BufReader::new(stdout).lines().map_while(Result::ok).any(|l| l.contains("lab is up")));
        } else {
            wait_until("the lab's first trace", || lab_dir(&name).exists());
        }
        owner.kill().unwrap();
        owner.wait().unwrap();
        wait_until("nothing is left", || traces(&name).is_empty());
    }
}

/// Not a test: the process that `a_killed_owner_leaves_nothing` kills.
#[test]
#[ignore = "run by another test"]
fn owner_to_be_killed() {
    let Ok(name) = std::env::var("LAB_TEST_NAME") else { return };
    let lab = Lab::up(&LabConfig::new(&name).unwrap()).unwrap();
    let mut sleeper = lab.command("b", "sleep").unwrap();
    sleeper.arg("1000");
    lab.spawn("b", sleeper, "sleep.log").unwrap();
    println!("\nlab is up");
    // Until killed.
    loop {
        std::thread::park();
    }
}

#[test]
fn sweep_removes_what_a_dead_owner_and_a_dead_guardian_left() {
    let name = fixture::name("sweep");
    let mut config = LabConfig::new(&name).unwrap();
    config.persistent = true;
    let lab = Lab::up(&config).unwrap();
    // As if its owner and its guardian had both been killed: not persistent, and an owner that is not there.
    let path = lab.dir().join("lab.json");
    let mut record: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    record["persistent"] = false.into();
    record["owner"]["start"] = 1.into();
    std::fs::write(&path, record.to_string()).unwrap();
    drop(lab);
    // Another test's lab may sweep it first.
    Lab::sweep().unwrap();
    wait_until("nothing is left", || traces(&name).is_empty());
}
