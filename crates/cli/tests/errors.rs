//! Errors say what to do, to people and to programs.

mod fixture;

use fixture::fails;

#[test]
fn a_lab_that_is_not_there() {
    for verb in [
        &["vm", "status", "--lab", "nosuch"][..],
        &["lab", "status", "--name", "nosuch"],
        &["lab", "down", "--name", "../x"],
    ] {
        let said = fails(verb, 1);
        assert!(said.starts_with("ninefold: there is no lab"), "{said}");
        assert!(said.lines().any(|l| l.starts_with("help: ")), "{said}");
    }
}

#[test]
fn a_name_that_cannot_be() {
    let said = fails(&["lab", "up", "--name", "far-too-long-a-name"], 1);
    assert!(said.contains("\nhelp: a lab's name has 1 to 8"), "{said}");
}

#[test]
fn a_keeper_that_is_not_there() {
    for verb in ["status", "stop", "switchover", "checkpoints", "console", "events"] {
        let said = fails(&["vm", verb, "--run-dir", "/nowhere"], 1);
        assert!(said.starts_with("ninefold: no keeper answers: /nowhere"), "{verb}: {said}");
        assert!(said.contains("\nhelp: "), "{verb}: {said}");
    }
}

#[test]
fn an_error_for_programs() {
    let said = fails(&["--json", "vm", "status", "--lab", "nosuch"], 1);
    let error: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(error["error"], "there is no lab 'nosuch'");
    assert!(error["help"].is_string());
}

#[test]
fn a_kernel_that_is_not_there() {
    assert!(fails(&["doctor", "--kernel", "/nowhere/vmlinuz"], 1).contains("/nowhere/vmlinuz"));
}
