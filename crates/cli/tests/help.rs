//! Every command explains itself with an example.

mod fixture;

use fixture::{fails, program};

#[test]
fn every_help_has_an_example() {
    let verbs = program().every_help_has_an_example();
    assert!(verbs >= 30, "only {verbs} commands were found");
}

#[test]
fn wrong_usage_is_told_apart() {
    for wrong in [
        &["vm", "epochs", "fixed"][..],
        &["nonsense"],
        &["vm", "epochs", "fixed", "--ms", "0"],
        &["volume", "create", "x", "--size", "10GB"],
    ] {
        assert!(fails(wrong, 2).contains("--help"), "{wrong:?}");
    }
}
