//! A host that loses power loses what it had not synced, and nothing else. Real file systems; needs root.

mod fixture;

use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;

use fixture::traces;
use ninefold_lab::{Lab, LabConfig, disks};

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

/// Writes so much to a host's disk and syncs it; how long that took.
fn write_synced(lab: &Lab, host: &str, bytes: usize) -> std::io::Result<std::time::Duration> {
    let begin = std::time::Instant::now();
    let mut file = File::create(lab.disk_dir(host).join("bulk"))?;
    file.write_all(&vec![1; bytes])?;
    file.sync_all()?;
    Ok(begin.elapsed())
}

/// The kernel's limit for the device of a host's disk, if there is one.
fn limit(lab: &Lab, host: &str) -> Option<String> {
    use std::os::unix::fs::MetadataExt as _;
    let device = fs::metadata(lab.disk_dir(host)).unwrap().dev();
    limit_of(&format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device)))
}

fn limit_of(device: &str) -> Option<String> {
    let all = fs::read_to_string("/sys/fs/cgroup/blkio/blkio.throttle.write_bps_device").unwrap();
    all.lines().find(|l| l.split(' ').next() == Some(device)).map(str::to_owned)
}

#[test]
fn a_disk_is_slow_until_it_is_not() {
    if !disks::slow_supported() {
        return eprintln!("this machine has no limits for devices");
    }
    let lab = lab_with_disks();
    let slow = lab.slow_disk("a", 1 << 20).unwrap();
    // However busy the machine is, it cannot be quicker.
    let took = write_synced(&lab, "a", 2 << 20).unwrap();
    assert!(took.as_secs_f64() > 1.0, "2 MiB at 1 MiB/s took {took:?}");
    assert_eq!(limit(&lab, "b"), None, "another host's disk is another matter");
    drop(slow);
    assert_eq!(limit(&lab, "a"), None);
    // One that is slow when the lab goes does not hold it up, and is not slow for who gets the device next.
    std::mem::forget(lab.slow_disk("a", 1).unwrap());
    let device = limit(&lab, "a").unwrap().split(' ').next().unwrap().to_owned();
    let name = lab.name().to_owned();
    lab.down().unwrap();
    assert_eq!(traces(&name), Vec::<String>::new());
    assert_eq!(limit_of(&device), None);
}

#[test]
fn a_disk_is_full_until_it_is_not() {
    let lab = lab_with_disks();
    lab.fill_disk("a").unwrap();
    let error = write_synced(&lab, "a", 1 << 20).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    write_synced(&lab, "b", 1 << 20).unwrap();
    lab.clear_disk("a").unwrap();
    write_synced(&lab, "a", 1 << 20).unwrap();
    lab.clear_disk("a").unwrap();
    lab.down().unwrap();
}
