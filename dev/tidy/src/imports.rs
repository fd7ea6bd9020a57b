//! Which file of the workspace uses which, and the circles among them.
//!
//! A file uses another when its code names something that is defined there, by a `use` or by a path. Names are followed through
//! re-exports to the file that defines them, so that a parent which only declares and re-exports its children uses nothing, and
//! is used by nobody. Tests within files (`#[cfg(test)]`) do not count. Methods cannot be followed without a compiler: a type whose
//! `impl` blocks lie in several files is used where its name stands.

mod graph;
mod modules;
mod tokens;

pub use graph::Graph;

use crate::tree::Tree;

/// Reads the crates below `crates/` and `dev/`.
pub fn read(tree: &Tree) -> Graph {
    modules::Workspace::read(tree).graph()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn graph(files: &[(&str, &str)]) -> Graph {
        let mut all = vec![
            ("crates/a/Cargo.toml", "[package]\nname = \"ninefold-a\"\n"),
            ("crates/b/Cargo.toml", "[package]\nname = \"ninefold-b\"\n"),
        ];
        all.extend(files);
        read(&Tree::of(&all))
    }

    /// Each use as "from to", without the directory of crate `a`.
    fn uses(graph: &Graph) -> Vec<String> {
        let short = |file: &str| file.replace("crates/a/src/", "").replace(".rs", "");
        graph.uses().map(|(from, to)| format!("{} {}", short(from), short(to))).collect()
    }

    #[test]
    fn names_are_followed_to_the_file_that_defines_them() {
        let graph = graph(&[
            ("crates/a/src/lib.rs", "pub mod one; mod two; pub use two::deep::Thing; pub use one::*;"),
            (
                "crates/a/src/one.rs",
                "use crate::{Thing, two::{self, Other as Renamed}}; fn f() { two::deep::act(); } pub struct One;",
            ),
            ("crates/a/src/two.rs", "pub mod deep; pub struct Other; fn g(x: super::One) { deep::act() }"),
            ("crates/a/src/two/deep.rs", "pub struct Thing; pub fn act() {} use super::super::one::One as Last;"),
            ("crates/b/src/lib.rs", "use ninefold_a::{One, Thing}; fn f() { ninefold_a::one::One; std::mem::swap(); }"),
        ]);
        let expected = [
            "one two",
            "one two/deep",
            "two one",
            "two two/deep",
            "two/deep one",
            "crates/b/src/lib one",
            "crates/b/src/lib two/deep",
        ];
        let mut expected = expected.map(str::to_owned).to_vec();
        expected.sort();
        let mut found = uses(&graph);
        found.sort();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_circle_is_found_and_a_parent_that_only_reexports_is_not_one() {
        let parent = ("crates/a/src/lib.rs", "//! [`one`]\nmod one; mod two; pub use one::One; pub use two::Two;");
        let straight = [
            parent,
            ("crates/a/src/one.rs", "pub struct One;"),
            ("crates/a/src/two.rs", "use crate::One; // one uses Two\npub struct Two(One);"),
        ];
        assert!(graph(&straight).circles().is_empty());
        let round = [parent, ("crates/a/src/one.rs", "pub struct One(crate::Two);"), straight[2]];
        let graph = graph(&round);
        let circles = graph.circles();
        assert_eq!(circles, [BTreeSet::from(["crates/a/src/one.rs", "crates/a/src/two.rs"])]);
        assert!(graph.explain(&circles[0]).contains("one.rs uses crates/a/src/two.rs: Two"));
    }

    #[test]
    fn a_parent_that_has_things_of_its_own_may_be_in_a_circle() {
        let child = ("crates/a/src/one.rs", "use super::Own; pub fn act(_: Own) {}");
        let used = graph(&[("crates/a/src/lib.rs", "mod one; pub struct Own; fn f() { one::act(Own) }"), child]);
        assert_eq!(used.circles().len(), 1);
        let reexported = graph(&[("crates/a/src/lib.rs", "mod one; pub use one::act; pub struct Own;"), child]);
        assert!(reexported.circles().is_empty());
        let both =
            graph(&[("crates/a/src/lib.rs", "mod one; pub use one::act; pub struct Own; fn f() { act(Own) }"), child]);
        assert_eq!(both.circles().len(), 1);
    }

    #[test]
    fn tests_and_comments_do_not_count() {
        let graph = graph(&[
            ("crates/a/src/lib.rs", "mod one; mod two;"),
            (
                "crates/a/src/one.rs",
                "pub fn one() {} #[cfg(test)] mod tests { use crate::two::two; fn f() { two(); } }",
            ),
            (
                "crates/a/src/two.rs",
                "pub fn two() { crate::one::one() } // crate::two::two\n#[cfg(test)] use crate::one::one; mod inner { pub fn g() { super::two() } }",
            ),
        ]);
        assert_eq!(uses(&graph), ["two one"]);
    }

    #[test]
    fn what_a_glob_brings_counts_where_it_is_used() {
        let graph = graph(&[
            ("crates/a/src/lib.rs", "mod one; mod two; mod three;"),
            ("crates/a/src/one.rs", "pub struct Used; pub struct Spare;"),
            ("crates/a/src/two.rs", "use crate::one::*; fn f(_: Used) {}"),
            ("crates/a/src/three.rs", "use crate::one::*; fn f() {}"),
        ]);
        assert_eq!(uses(&graph), ["two one"]);
    }
}
