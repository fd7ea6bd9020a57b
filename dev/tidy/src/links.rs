//! Whether what documents and comments refer to is there.
//!
//! | in | is held against |
//! |---|---|
//! | a document's links `[text](path#heading)` | files, directories, headings |
//! | paths such as `docs/witness.md`, in documents and comments | files, directories |
//! | names of files such as `gate.rs` or `witness.md` | the ends of files' paths |
//! | tests behind the file that has them | the functions of that file |
//! | names such as `net::gate` and `ninefold_net::Gate`, in documents | the words of that crate's code |
//! | "decision 4" | the numbers of the decisions, which have no holes |
//! | commands: `make soak`, `cargo test -p ninefold-net --test gate` | targets of the Makefile, packages, tests, examples |
//!
//! Addresses in the web are not asked for: the tests have no network.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::markdown::{self, Document};
use crate::rust;
use crate::tree::{Tree, join, parent};

/// A reference that leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    pub file: String,
    /// From 1 on.
    pub line: usize,
    /// For a person.
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.what)
    }
}

/// Begins of paths that are another project's, or are made by a build.
const ELSEWHERE: [&str; 7] = [
    // QEMU's source.
    "docs/interop/",
    "docs/specs/",
    // The cache that guest/build fills.
    "guest/current",
    "guest/vmlinuz",
    "guest/initrd.img",
    // What the fuzzer finds.
    "fuzz/artifacts",
    "fuzz/corpus",
];
/// Documents that the benchmark writes.
const WRITTEN: [&str; 2] = ["ft.md", "volume.md"];
/// Where the decisions are.
const DECISIONS: &str = "docs/decisions";

/// All references that lead nowhere, by file and line.
pub fn check(tree: &Tree) -> Vec<Fault> {
    let check = Check::new(tree);
    let mut faults = check.decisions.faults.clone();
    for (path, text) in tree.texts() {
        match path.rsplit_once('.').map_or("", |(_, ending)| ending) {
            "md" => check.document(path, text, &mut faults),
            "rs" => {
                for comment in rust::parts(text).comments {
                    check.words(path, comment.line, &comment.text, &mut faults);
                    check.commands(path, comment.line, &comment.text, &mut faults);
                }
            }
            _ if text.starts_with("#!") || path.ends_with("Makefile") || path.ends_with(".toml") => {
                for (line, text) in text.lines().enumerate() {
                    let Some((_, comment)) = text.split_once('#') else { continue };
                    check.words(path, line + 1, comment, &mut faults);
                }
            }
            _ => {}
        }
    }
    faults.sort();
    faults.dedup();
    faults
}

/// A package of this repository, by its name: where it is.
fn packages(tree: &Tree) -> BTreeMap<&str, &str> {
    let manifests = tree.texts().filter(|(path, _)| path.ends_with("Cargo.toml"));
    let named = manifests.filter_map(|(path, text)| {
        let (_, package) = text.split_once("[package]")?;
        let name = package.lines().find_map(|line| line.strip_prefix("name = \""))?;
        Some((name.trim_end_matches('"'), parent(path)))
    });
    named.collect()
}

struct Decisions {
    numbers: BTreeSet<u32>,
    /// Numbers that are missing or double, titles that say another.
    faults: Vec<Fault>,
}

impl Decisions {
    fn of(tree: &Tree) -> Decisions {
        let mut decisions = Decisions { numbers: BTreeSet::new(), faults: Vec::new() };
        for (path, text) in tree.texts().filter(|(path, _)| parent(path) == DECISIONS) {
            let mut wrong = |what: String| decisions.faults.push(Fault { file: path.to_owned(), line: 1, what });
            let name = &path[DECISIONS.len() + 1..];
            let number = name.split_once('-').filter(|(n, _)| n.len() == 4).and_then(|(n, _)| n.parse::<u32>().ok());
            let Some(number) = number else {
                wrong("a decision's file is called NNNN-title.md".into());
                continue;
            };
            if !text.starts_with(&format!("# {number}. ")) {
                wrong(format!("the title of decision {number} begins with '# {number}. '"));
            }
            if !decisions.numbers.insert(number) {
                wrong(format!("there is another decision {number}"));
            }
        }
        let last = decisions.numbers.last().copied().unwrap_or(0);
        for number in (1..last).filter(|n| !decisions.numbers.contains(n)) {
            let what = format!("there is no decision {number}");
            decisions.faults.push(Fault { file: DECISIONS.to_owned(), line: 1, what });
        }
        decisions
    }
}

struct Check<'a> {
    tree: &'a Tree,
    packages: BTreeMap<&'a str, &'a str>,
    tops: Vec<&'a str>,
    decisions: Decisions,
    /// The anchors of each document.
    documents: BTreeMap<&'a str, Document>,
    /// The words of the code of each package of the workspace, by the name of its directory.
    words: BTreeMap<&'a str, BTreeSet<&'a str>>,
    make: BTreeSet<&'a str>,
}

impl<'a> Check<'a> {
    fn new(tree: &'a Tree) -> Check<'a> {
        let packages = packages(tree);
        let documents = tree.texts().filter(|(path, _)| path.ends_with(".md"));
        let mut words: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for directory in packages.values() {
            let name = directory.rsplit('/').next().unwrap_or_default();
            let source = format!("{directory}/src/");
            for (path, text) in tree.texts().filter(|(path, _)| path.starts_with(&source)) {
                let all = words.entry(name).or_default();
                all.extend(text.split(|c: char| !c.is_alphanumeric() && c != '_'));
                all.extend(path[source.len()..].trim_end_matches(".rs").split('/'));
            }
        }
        let make = tree.text("Makefile").unwrap_or_default();
        let make = make.lines().filter_map(|line| Some(line.split_once(':')?.0));
        Check {
            tree,
            packages,
            tops: tree.tops().collect(),
            decisions: Decisions::of(tree),
            documents: documents.map(|(path, text)| (path, markdown::read(text))).collect(),
            words,
            make: make.collect(),
        }
    }

    fn document(&self, path: &str, text: &str, faults: &mut Vec<Fault>) {
        let document = &self.documents[path];
        for link in &document.links {
            if let Some(what) = self.link(path, &link.text, &link.target) {
                faults.push(Fault { file: path.to_owned(), line: link.line, what });
            }
        }
        for (line, code) in &document.code {
            self.commands(path, *line, code, faults);
            if let Some(what) = self.item(code) {
                faults.push(Fault { file: path.to_owned(), line: *line, what });
            }
        }
        for (line, text) in text.lines().enumerate() {
            self.words(path, line + 1, text, faults);
            self.tests(path, line + 1, text, faults);
        }
    }

    /// What is wrong with a link.
    fn link(&self, from: &str, text: &str, target: &str) -> Option<String> {
        if ["https://", "http://", "mailto:"].iter().any(|begin| target.starts_with(begin)) {
            return None;
        }
        let (path, anchor) = target.split_once('#').map_or((target, None), |(path, anchor)| (path, Some(anchor)));
        let to = if path.is_empty() { Some(from.to_owned()) } else { join(parent(from), path) };
        let Some(to) = to.filter(|to| self.tree.has(to)) else {
            return Some(format!("the link '{target}' leads to no file"));
        };
        if let Some(anchor) = anchor {
            let there = self.documents.get(to.as_str()).is_some_and(|d| d.anchors.iter().any(|a| a == anchor));
            if !there {
                return Some(format!("the link '{target}' leads to no heading"));
            }
        }
        // A decision's number is in its file's name.
        let number = text.strip_prefix("decision ").or_else(|| text.strip_prefix("Decision "));
        let number = number.and_then(|n| n.trim_end_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().ok())?;
        let named = to.strip_prefix(DECISIONS)?.get(1..5)?.parse::<u32>().ok()?;
        (named != number).then(|| format!("'{text}' leads to decision {named}"))
    }

    /// Holds paths, names of files and numbers of decisions against what there is.
    fn words(&self, file: &str, line: usize, text: &str, faults: &mut Vec<Fault>) {
        let mut wrong = |what: String| faults.push(Fault { file: file.to_owned(), line, what });
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '/' | '-' | '*');
        // With what stands before it, which tells an address in the web or an absolute path from a path in here.
        for word in text.split(|c: char| {
            c.is_whitespace() || matches!(c, '`' | '(' | ')' | '"' | '\'' | '[' | ']' | '|' | '<' | '>' | ',')
        }) {
            if word.contains("://") {
                continue;
            }
            for path in word.split(|c| !is_part(c)) {
                let path = path.trim_end_matches(['.', '-']);
                if let Some(what) = self.path(file, path) {
                    wrong(what);
                }
            }
        }
        for number in numbers_of_decisions(text) {
            if !self.decisions.numbers.contains(&number) {
                wrong(format!("there is no decision {number}"));
            }
        }
    }

    /// What is wrong with a word, if it is a path.
    fn path(&self, file: &str, path: &str) -> Option<String> {
        if path.contains('*') || ELSEWHERE.iter().any(|begin| path.starts_with(begin)) || WRITTEN.contains(&path) {
            return None;
        }
        let top = path.split_once('/').map(|(top, _)| top);
        let ending = path.rsplit_once('.').map(|(_, ending)| ending);
        let is_source = matches!(ending, Some("rs" | "md")) && path.len() > 3 && !path.starts_with('/');
        if top.is_some_and(|top| self.tops.contains(&top)) {
            let here = || join(parent(file), path).is_some_and(|path| self.tree.has(&path));
            // Parts of a path, as `guest/mod.rs` of `tests/guest/mod.rs`.
            let found = self.tree.has(path) || here() || (is_source && self.tree.has_ending(path));
            return (!found).then(|| format!("there is no '{path}'"));
        }
        if is_source {
            let name = path.trim_start_matches("./").trim_start_matches("../");
            return (!self.tree.has_ending(name)).then(|| format!("there is no file '{path}'"));
        }
        None
    }

    /// Names of tests behind the file that has them: a path, a colon, and names with commas between them.
    fn tests(&self, file: &str, line: usize, text: &str, faults: &mut Vec<Fault>) {
        let mut rest = text;
        while let Some((_, after)) = rest.split_once(".rs`: `") {
            let path = rest[..rest.len() - after.len() - "`: `".len()].rsplit('`').next().unwrap_or_default();
            let source = self.tree.text(path).unwrap_or_default();
            rest = after;
            loop {
                let Some((name, after)) = rest.split_once('`') else { return };
                let is_name =
                    !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
                if is_name && !source.contains(&format!("fn {name}(")) {
                    faults.push(Fault { file: file.to_owned(), line, what: format!("{path} has no '{name}'") });
                }
                rest = after;
                match after.strip_prefix(", `") {
                    Some(next) if is_name => rest = next,
                    _ => break,
                }
            }
        }
    }

    /// What is wrong with a name such as `net::gate` or `ninefold_net::Gate`: nothing of the crate is called so.
    fn item(&self, code: &str) -> Option<String> {
        let (first, rest) = code.split_once("::")?;
        let name = first.strip_prefix("ninefold_").unwrap_or(first).replace('_', "-");
        let Some(words) = self.words.get(name.as_str()) else {
            return first.starts_with("ninefold_").then(|| format!("there is no crate '{first}'"));
        };
        let last = rest.rsplit("::").next()?;
        let last = last.split(|c: char| !c.is_alphanumeric() && c != '_').next()?;
        (!words.contains(last)).then(|| format!("nothing in the crate {name} is called '{last}'"))
    }

    /// Holds commands against the Makefile and the packages.
    fn commands(&self, file: &str, line: usize, text: &str, faults: &mut Vec<Fault>) {
        let mut wrong = |what: String| faults.push(Fault { file: file.to_owned(), line, what });
        let words: Vec<&str> =
            text.split_whitespace().map(|w| w.trim_matches(['`', '\'', '(', ')', ',', ';', ':'])).collect();
        if words[..words.len().min(2)].first() == Some(&"make") && file.ends_with(".md") {
            let target = words.get(1).filter(|t| t.chars().all(|c| c.is_ascii_lowercase()) && !t.is_empty());
            if let Some(target) = target.filter(|target| !self.make.contains(**target)) {
                wrong(format!("the Makefile has no '{target}'"));
            }
        }
        let Some(begin) = words.iter().position(|word| *word == "cargo") else { return };
        let mut place = None;
        for pair in words[begin..].windows(2) {
            let [option, value] = [pair[0], pair[1].trim_end_matches('.')];
            if value.chars().any(|c| !c.is_ascii_alphanumeric() && c != '-' && c != '_') || value.starts_with('-') {
                continue;
            }
            // What stands for a name is written in capitals.
            if value.chars().all(|c| c.is_ascii_uppercase()) {
                continue;
            }
            match option {
                "-p" => match self.packages.get(value) {
                    Some(directory) => place = Some(*directory),
                    None => wrong(format!("there is no package '{value}'")),
                },
                "--test" | "--example" => {
                    let Some(directory) = place else { continue };
                    let kind = if option == "--test" { "tests" } else { "examples" };
                    let there = |end: &str| self.tree.has(&format!("{directory}/{kind}/{value}{end}"));
                    if !there(".rs") && !there("/main.rs") {
                        wrong(format!("{directory} has no {} '{value}'", &option[2..]));
                    }
                }
                _ => {}
            }
        }
    }
}

/// The numbers in "decision 4" and "decisions 3 and 4".
fn numbers_of_decisions(text: &str) -> Vec<u32> {
    let mut numbers = Vec::new();
    let words: Vec<&str> = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    for (at, word) in words.iter().enumerate() {
        let many = matches!(*word, "decisions" | "Decisions");
        if !many && !matches!(*word, "decision" | "Decision") {
            continue;
        }
        let following = words[at + 1..].iter().filter(|word| !many || **word != "and");
        let following = following.map_while(|word| word.parse::<u32>().ok());
        numbers.extend(following.take(if many { usize::MAX } else { 1 }));
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is wrong with a repository that has `files`, a decision and a crate besides.
    fn faults(files: &[(&str, &str)]) -> Vec<String> {
        let mut all = vec![
            ("docs/decisions/0001-first.md", "# 1. First\n"),
            ("crates/net/Cargo.toml", "[package]\nname = \"ninefold-net\"\n"),
            ("crates/net/src/gate.rs", "pub struct Gate;\nfn it_opens() {}\n"),
            ("crates/net/tests/gate.rs", ""),
            ("Makefile", "test: root ## Test\n"),
        ];
        all.extend(files);
        check(&Tree::of(&all)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn links_lead_to_files_and_headings() {
        let text = "# Top\n[a](b.md) [c](b.md#one) [d](#top) [e](../crates/net) [f](https://nowhere.example/x.md)\n";
        assert!(faults(&[("docs/a.md", text), ("docs/b.md", "## One\n")]).is_empty());
        let text = "[a](c.md)\n[c](b.md#two)\n[d](#top)\n[e](../../x)\n![f](img/x.svg)\n";
        let found = faults(&[("docs/a.md", text), ("docs/b.md", "## One\n")]);
        assert_eq!(found.iter().filter(|f| f.contains("leads to no file")).count(), 3, "{found:#?}");
        assert_eq!(found.iter().filter(|f| f.contains("leads to no heading")).count(), 2, "{found:#?}");
    }

    #[test]
    fn paths_in_documents_and_comments_are_there() {
        let good = "See `crates/net/src/gate.rs`, net/src/gate.rs, gate.rs, docs/decisions, /srv/docs/x.md, docs/*.md, https://a.example/docs/no.md.";
        let code = format!("// {good}\nlet x = \"docs/in-a-text.md\";\n");
        assert_eq!(faults(&[("docs/a.md", good), ("crates/net/src/lib.rs", &code)]), [""; 0]);
        for bad in ["`crates/net/src/door.rs`", "See docs/protocol.md.", "door.rs", "(crates/nets)", "`witness.md`"] {
            let found = faults(&[("docs/a.md", bad)]);
            assert_eq!(found.len(), 1, "{bad}: {found:#?}");
            let found = faults(&[("crates/net/src/lib.rs", &format!("fn f() {{}}\n/// {bad}\n"))]);
            assert_eq!(found.len(), 1, "{bad}: {found:#?}");
            assert!(found[0].starts_with("crates/net/src/lib.rs:2: "), "{found:#?}");
            let found = faults(&[("scripts/x", &format!("#!/bin/sh\n# {bad}\n"))]);
            assert_eq!(found.len(), 1, "{bad}: {found:#?}");
        }
    }

    #[test]
    fn decisions_are_numbered_without_holes_and_found_by_their_numbers() {
        let second = ("docs/decisions/0002-second.md", "# 2. Second\n");
        let text = "Decisions 1 and 2; decision 2, [decision 1](decisions/0001-first.md).";
        assert!(faults(&[second, ("docs/a.md", text)]).is_empty());
        let found = faults(&[("docs/a.md", "decisions 1 and 2"), ("crates/net/src/lib.rs", "// Decision 7.")]);
        assert_eq!(found, ["crates/net/src/lib.rs:1: there is no decision 7", "docs/a.md:1: there is no decision 2"]);
        assert_eq!(
            faults(&[("docs/decisions/0003-third.md", "# 3. Third\n")]),
            ["docs/decisions:1: there is no decision 2"]
        );
        let found = faults(&[("docs/decisions/0001-again.md", "# 1. Again\n")]);
        assert_eq!(found, ["docs/decisions/0001-first.md:1: there is another decision 1"]);
        assert_eq!(faults(&[("docs/decisions/0002-second.md", "# 3. Second\n")]).len(), 1);
        assert_eq!(faults(&[("docs/decisions/2.md", "# 2. Second\n")]).len(), 1);
        let found = faults(&[second, ("docs/a.md", "[decision 2](decisions/0001-first.md)")]);
        assert_eq!(found, ["docs/a.md:1: 'decision 2' leads to decision 1"]);
    }

    #[test]
    fn names_tests_and_commands_are_those_of_the_code() {
        let good = "`net::gate`, `ninefold_net::Gate`, `std::thread`, `crates/net/src/gate.rs`: `it_opens`.\n\
                    `make test`, `cargo test -p ninefold-net --test gate -- --ignored`, `cargo test -p CRATE --test NAME`\n";
        assert_eq!(faults(&[("docs/a.md", good)]), [""; 0]);
        for bad in [
            "`net::door`",
            "`ninefold_net::Door::open`",
            "`ninefold_door::Gate`",
            "`crates/net/src/gate.rs`: `it_closes`",
            "`crates/net/src/gate.rs`: `it_opens`, `it_closes`",
            "`make chaos`",
            "`cargo test -p ninefold-door`",
            "`cargo test -p ninefold-net --test door`",
            "`cargo run --release -p ninefold-net --example gate`",
        ] {
            let found = faults(&[("docs/a.md", bad)]);
            assert_eq!(found.len(), 1, "{bad}: {found:#?}");
        }
    }
}
