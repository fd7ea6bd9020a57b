//! Errors say what to do, to people and to programs.

mod fixture;

use fixture::{fails, program};

#[test]
fn a_keeper_that_is_not_there() {
    for verb in ["status", "stop", "switchover", "checkpoints", "console", "events"] {
        let said = fails(&["vm", verb, "--run-dir", "/nowhere"], 1);
        assert!(said.starts_with("ninefold: no keeper has its VM's run directory in /nowhere\n"), "{verb}: {said}");
        assert!(said.contains("\nhelp: "), "{verb}: {said}");
    }
}

#[test]
fn keepers_that_the_environment_names() {
    let said = program().with("NINEFOLD_RUN_DIR", "/nowhere/a:/nowhere/b").fails(&["vm", "status"], 1);
    assert!(said.contains("/nowhere/a or in /nowhere/b"), "{said}");
    // What is said on the command line counts.
    let said = program().with("NINEFOLD_RUN_DIR", "/nowhere/a").fails(&["vm", "status", "--run-dir", "/elsewhere"], 1);
    assert!(said.contains("in /elsewhere\n") && !said.contains("/nowhere"), "{said}");
}

#[test]
fn an_error_for_programs() {
    let said = fails(&["--json", "vm", "status", "--run-dir", "/nowhere"], 1);
    let error: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert!(error["error"].as_str().unwrap().ends_with("in /nowhere"), "{said}");
    assert!(error["help"].is_string());
}

#[test]
fn a_kernel_that_is_not_there() {
    assert!(fails(&["doctor", "--kernel", "/nowhere/vmlinuz"], 1).contains("/nowhere/vmlinuz"));
}

#[test]
fn a_configuration_that_is_not_there() {
    let said = fails(&["doctor", "--config", "/nowhere/db.json"], 1);
    assert!(said.contains("cannot read /nowhere/db.json") && said.contains("help: "), "{said}");
}
