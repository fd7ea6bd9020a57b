//! What depends on what, by Cargo's own word: the product on nothing that is for developers, the pure crates on nothing with I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

/// What no crate of the product may depend on, besides the crates under `dev/`: it is for the lab's clients and its pictures.
const FOR_DEVELOPERS: &[&str] = &["tokio-postgres", "plotters"];

/// The crates without I/O, and all that they may depend on, also indirectly. Whoever adds a crate here has looked at what it does: it reads no file, opens
/// no socket, starts no thread and asks no clock.
const PURE: &[(&str, &[&[&str]])] = &[("ninefold-model", &[OF_MODEL]), ("ninefold-replica", &[OF_MODEL, OF_REPLICA])];

/// Serialisation, and error types.
const OF_MODEL: &[&str] = &[
    "itoa",
    "memchr",
    "proc-macro2",
    "quote",
    "serde",
    "serde_core",
    "serde_derive",
    "serde_json",
    "syn",
    "thiserror",
    "thiserror-impl",
    "unicode-ident",
    "zmij",
];

/// A checksum and a compression more.
const OF_REPLICA: &[&str] = &["cfg-if", "crc32fast", "lz4_flex", "ninefold-model"];

/// The workspace as Cargo resolves it.
struct Workspace {
    /// Names, by package id.
    names: BTreeMap<String, String>,
    /// Names of the packages in a folder of the workspace.
    product: BTreeSet<String>,
    dev: BTreeSet<String>,
    /// Normal and build dependencies by name, on whatever target.
    needs: BTreeMap<String, BTreeSet<String>>,
}

impl Workspace {
    fn of(metadata: &Value) -> Self {
        let text = |v: &Value| v.as_str().unwrap().to_owned();
        let root = text(&metadata["workspace_root"]);
        let (mut names, mut product, mut dev) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        for package in metadata["packages"].as_array().unwrap() {
            let name = text(&package["name"]);
            let place = text(&package["manifest_path"]);
            match Path::new(&place).strip_prefix(&root) {
                Ok(place) if place.starts_with("crates") => drop(product.insert(name.clone())),
                Ok(place) if place.starts_with("dev") => drop(dev.insert(name.clone())),
                _ => {}
            }
            names.insert(text(&package["id"]), name);
        }
        let mut needs: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for node in metadata["resolve"]["nodes"].as_array().unwrap() {
            let all = needs.entry(names[&text(&node["id"])].clone()).or_default();
            for dep in node["deps"].as_array().unwrap() {
                let kinds = dep["dep_kinds"].as_array().unwrap();
                if kinds.iter().any(|kind| kind["kind"] != "dev") {
                    all.insert(names[&text(&dep["pkg"])].clone());
                }
            }
        }
        Self { names, product, dev, needs }
    }

    /// All that a package needs, and by what way it comes to it.
    fn reaches(&self, package: &str) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        let mut open = vec![(package.to_owned(), package.to_owned())];
        while let Some((name, way)) = open.pop() {
            for next in self.needs.get(&name).into_iter().flatten() {
                if !found.contains_key(next) {
                    let way = format!("{way} -> {next}");
                    found.insert(next.clone(), way.clone());
                    open.push((next.clone(), way));
                }
            }
        }
        found
    }

    /// What is not as it is to be, in words.
    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for package in &self.product {
            for (name, way) in self.reaches(package) {
                if self.dev.contains(&name) || FOR_DEVELOPERS.contains(&name.as_str()) {
                    faults.push(format!("what an operator installs depends on what is for developers: {way}"));
                }
            }
        }
        for (package, allowed) in PURE {
            assert!(self.product.contains(*package), "there is no {package}");
            for (name, way) in self.reaches(package) {
                if !allowed.iter().any(|list| list.contains(&name.as_str())) {
                    faults.push(format!("a crate without I/O depends on one that is not known to have none: {way}"));
                }
            }
        }
        faults
    }
}

fn metadata() -> Value {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut cargo = Command::new(env!("CARGO"));
    // What other systems would need need not have been fetched.
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    cargo.args(["metadata", "--format-version=1", "--locked", "--offline", "--filter-platform", &platform]);
    let output = cargo.current_dir(root).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_product_does_without_what_is_for_developers_and_pure_crates_without_io() {
    let metadata = metadata();
    let workspace = Workspace::of(&metadata);
    assert!(workspace.product.len() >= 12 && workspace.dev.contains("ninefold-lab"), "{:?}", workspace.product);
    assert_eq!(workspace.faults(), Vec::<String>::new());
    // The lists say no more than there is.
    for (package, allowed) in PURE {
        let reached = workspace.reaches(package);
        let idle: Vec<_> = allowed.iter().flat_map(|list| *list).filter(|name| !reached.contains_key(**name)).collect();
        assert!(idle.is_empty(), "{package} does not depend on {idle:?}");
    }

    // It sees what it is there for: one dependency more, of each kind, far from the top.
    let faults_with = |from: &str, to: &str, kind: Value| {
        let id = |name: &str| {
            let found = workspace.names.iter().find(|(_, n)| *n == name);
            found.unwrap_or_else(|| panic!("there is no {name}")).0.clone()
        };
        let mut changed = metadata.clone();
        let nodes = changed["resolve"]["nodes"].as_array_mut().unwrap();
        let node = nodes.iter_mut().find(|n| n["id"] == id(from)).unwrap();
        let dep = json!({ "name": to, "pkg": id(to), "dep_kinds": [{ "kind": kind, "target": null }] });
        node["deps"].as_array_mut().unwrap().push(dep);
        Workspace::of(&changed).faults()
    };
    let told = faults_with("ninefold-transport", "ninefold-testkit", json!("build"));
    assert!(told.iter().any(|f| f.contains("ninefold-cli -> ") && f.ends_with(" -> ninefold-testkit")), "{told:?}");
    let told = faults_with("ninefold-shell", "plotters", Value::Null);
    assert!(told.iter().any(|f| f.ends_with("ninefold-cli -> ninefold-shell -> plotters")), "{told:?}");
    let told = faults_with("ninefold-model", "rustix", Value::Null);
    assert!(
        told.iter().any(|f| f.contains("no") && f.contains("ninefold-replica -> ninefold-model -> rustix")),
        "{told:?}"
    );
    assert_eq!(faults_with("ninefold-cli", "ninefold-lab", json!("dev")), Vec::<String>::new(), "tests may");
}
