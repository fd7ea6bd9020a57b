//! Errors say what to do, to people and to programs.

mod fixture;

use fixture::lab;

#[test]
fn a_lab_that_is_not_there() {
    for verb in [&["env", "--name", "nosuch"][..], &["status", "--name", "nosuch"], &["down", "--name", "../x"]] {
        let said = lab().fails(verb, 1);
        assert!(said.starts_with("ninefold-lab: there is no lab"), "{said}");
        assert!(said.lines().any(|l| l.starts_with("help: ")), "{said}");
    }
}

#[test]
fn a_name_that_cannot_be() {
    let said = lab().fails(&["up", "--name", "far-too-long-a-name"], 1);
    assert!(said.contains("\nhelp: a lab's name has 1 to 8"), "{said}");
}

#[test]
fn an_error_for_programs() {
    let said = lab().fails(&["--json", "status", "--name", "nosuch"], 1);
    let error: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(error["error"], "there is no lab 'nosuch'");
    assert!(error["help"].is_string());
}
