//! Every command explains itself with an example.

mod fixture;

use fixture::lab;

#[test]
fn every_help_has_an_example() {
    let verbs = lab().every_help_has_an_example();
    assert!(verbs >= 20, "only {verbs} commands were found");
}

#[test]
fn wrong_usage_is_told_apart() {
    for wrong in [&["kill", "a", "fan"][..], &["nonsense"], &["restart", "a", "--faults", "log.snyc=abort"]] {
        assert!(lab().fails(wrong, 2).contains("--help"), "{wrong:?}");
    }
}
