//! A thread that panics ends its process.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

/// Set in the process that is to end.
const INNER: &str = "NINEFOLD_TEST_PANICS";

#[test]
fn a_thread_that_panics_ends_the_process() {
    if std::env::var_os(INNER).is_some() {
        ninefold_keeper::panics::end_the_process();
        let gone = std::thread::Builder::new().name("log".into()).spawn(|| panic!("a mistake")).unwrap().join();
        // As a keeper whose core goes on.
        assert!(gone.is_err());
        return;
    }
    let ended = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_thread_that_panics_ends_the_process", "--nocapture"])
        .env(INNER, "1")
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.signal(), Some(libc::SIGABRT), "{said}");
    assert!(said.contains("'log'") && said.contains("a mistake"), "{said}");
}

/// A pipe that nobody reads: the thread that panics could wait there for ever, and the others say meanwhile that all is well.
#[test]
fn who_takes_no_reports_keeps_no_process_that_is_to_end() {
    if std::env::var_os(INNER).is_some() {
        ninefold_keeper::panics::end_the_process();
        let stderr = std::io::stderr();
        let flags = fcntl_getfl(&stderr).unwrap();
        fcntl_setfl(&stderr, flags | OFlags::NONBLOCK).unwrap();
        while rustix::io::write(&stderr, &[b'x'; 4096]).is_ok() {}
        while rustix::io::write(&stderr, b"x").is_ok() {}
        fcntl_setfl(&stderr, flags).unwrap();
        let gone = std::thread::spawn(|| panic!("a mistake")).join();
        assert!(gone.is_err());
        return;
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "who_takes_no_reports_keeps_no_process_that_is_to_end", "--nocapture"])
        .env(INNER, "1")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    let ended = loop {
        match child.try_wait().unwrap() {
            Some(ended) => break Some(ended),
            None if Instant::now() > deadline => break None,
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    if ended.is_none() {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert_eq!(ended.and_then(|ended| ended.signal()), Some(libc::SIGABRT));
}
