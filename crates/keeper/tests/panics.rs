//! A thread that panics ends its process.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

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
