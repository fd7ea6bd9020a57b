//! A host that loses power loses what it had not synced, and nothing else. Real file systems; needs root.

mod fixture;

use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;

use fixture::traces;
use ninefold_lab::{Lab, LabConfig};

fn lab_with_disks() -> Lab {
    let mut config = LabConfig::new(&fixture::name("power")).unwrap();
    config.disks = true;
    Lab::up(&config).unwrap()
}

fn write(lab: &Lab, host: &str, name: &str, sync: bool) -> PathBuf {
    let path = lab.disk_dir(host).join(name);
    let mut file = File::create(&path).unwrap();
    file.write_all(b"written").unwrap();
    if sync {
        file.sync_all().unwrap();
        File::open(lab.disk_dir(host)).unwrap().sync_all().unwrap();
    }
    path
}

#[test]
fn a_host_without_power_forgets_what_was_not_synced() {
    let lab = lab_with_disks();
    let kept = write(&lab, "a", "synced", true);
    // Synced once, and written again since.
    let half = write(&lab, "a", "half", true);
    fs::write(&half, "something else").unwrap();
    // Last: the next sync of anything would take its name along.
    let forgotten = write(&lab, "a", "not-synced", false);
    let elsewhere = write(&lab, "b", "not-synced", false);
    lab.kill_host("a").unwrap();
    assert!(!kept.exists(), "the disk is gone with its host");
    lab.restart_host("a").unwrap();
    assert_eq!(fs::read(&kept).unwrap(), b"written");
    assert!(!forgotten.exists());
    assert_ne!(fs::read(&half).unwrap(), b"something else");
    assert_eq!(fs::read(&elsewhere).unwrap(), b"written", "another host's power is another matter");

    let name = lab.name().to_owned();
    lab.down().unwrap();
    assert_eq!(traces(&name), Vec::<String>::new());
}

#[test]
fn all_of_a_lab_loses_power_at_once() {
    let lab = lab_with_disks();
    let mut sleeper = lab.command("b", "sleep").unwrap();
    sleeper.arg("1000");
    lab.spawn("b", sleeper, "sleep.log").unwrap();
    let kept = ["a", "b", "w"].map(|host| write(&lab, host, "synced", true));
    let forgotten = ["a", "b", "w"].map(|host| write(&lab, host, "not-synced", false));
    lab.power_loss().unwrap();
    assert!(lab.processes("b").unwrap().list().unwrap().is_empty());
    for host in ["a", "b", "w"] {
        lab.restart_host(host).unwrap();
    }
    assert!(kept.iter().all(|path| path.exists()));
    assert!(!forgotten.iter().any(|path| path.exists()));
    let name = lab.name().to_owned();
    // As after a crash of its maker: the guardian does it.
    drop(lab);
    assert_eq!(traces(&name), Vec::<String>::new());
}
