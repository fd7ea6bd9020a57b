//! What the programs are made of.

use ninefold_tidy::packages::{Packages, features_in_programs};
use ninefold_tidy::tree::{Tree, root};

/// What a program must not link with, and why.
const WITHOUT: [(&str, &[&str], &str); 2] = [
    (
        "ninefold-keeper",
        &[
            "redb",
            "tokio",
            "tokio-postgres",
            "plotters",
            "proptest",
            "clap_complete",
            "ninefold-lab",
            "ninefold-witness",
        ],
        "a keeper asks the witness, and keeps no database; it has threads of its own, and nothing of the lab",
    ),
    (
        "ninefold-core",
        &[
            "rustix",
            "libc",
            "socket2",
            "rustls",
            "ninefold-transport",
            "ninefold-machine",
            "ninefold-net",
            "ninefold-volume",
        ],
        "what a keeper decides is a function: it has no files, sockets, processes or threads",
    ),
];

#[test]
fn programs_link_with_nothing_that_they_do_not_need() {
    let packages = Packages::ask(&root()).unwrap();
    for (program, unwanted, why) in WITHOUT {
        let linked = packages.linked(program).unwrap_or_else(|| panic!("there is no package {program}"));
        // What finds nothing finds nothing unwanted either.
        assert!(linked.contains("ninefold-model") && linked.contains("serde"), "{linked:?}");
        let found: Vec<_> = unwanted.iter().filter(|name| linked.contains(**name)).collect();
        assert!(found.is_empty(), "{program} links with {found:?}: {why}");
    }
}

/// Any client may use the control API without anything of a keeper's insides.
#[test]
fn the_control_api_depends_on_next_to_nothing() {
    let packages = Packages::ask(&root()).unwrap();
    let direct = packages.direct("ninefold-control").unwrap();
    assert!(direct.iter().eq(&["ninefold-model", "serde", "serde_json", "thiserror"]), "{direct:?}");
}

/// What a keeper decides is a function: it knows requests and answers, and no socket on which they come.
#[test]
fn the_core_knows_no_client() {
    let tree = Tree::read(&root().join("crates/core/src")).unwrap();
    assert!(tree.texts().any(|(_, text)| text.contains("ninefold_control::")));
    for (path, text) in tree.texts() {
        assert!(!text.contains("ninefold_control::client") && !text.contains("Client"), "{path}");
    }
}

/// Nobody can tell a program for use to die: it is built without fault points.
#[test]
fn programs_for_use_have_no_fault_points() {
    let features = features_in_programs(&root(), "ninefold-fault").unwrap();
    assert!(features.is_empty(), "{features:?}");
    // What finds no features anywhere would find none here either.
    assert!(features_in_programs(&root(), "serde").unwrap().contains("derive"));
    assert!(features_in_programs(&root(), "redb-is-not-there").is_err());
}
