//! What Cargo says about the packages of the workspace and all that they depend on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde::Deserialize;

/// The one target that there is.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// A package.
#[derive(Debug, Clone, Deserialize)]
pub struct Package {
    pub id: String,
    pub name: String,
    pub version: String,
    /// An SPDX expression.
    pub license: Option<String>,
    /// Where it comes from; None for a package of this workspace.
    pub source: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_members: Vec<String>,
    resolve: Resolve,
}

#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Debug, Deserialize)]
struct Kind {
    /// None for what the package itself links with; `dev` and `build` otherwise.
    kind: Option<String>,
}

/// The packages and what each links with.
#[derive(Debug)]
pub struct Packages {
    by_id: BTreeMap<String, Package>,
    members: BTreeSet<String>,
    /// Without what tests and build scripts alone need.
    links: BTreeMap<String, Vec<String>>,
}

impl Packages {
    /// Asks Cargo about the workspace in `root`, as `Cargo.lock` has it.
    ///
    /// # Errors
    /// What Cargo said, for a person.
    pub fn ask(root: &Path) -> Result<Packages, String> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", TARGET])
            .current_dir(root)
            .output()
            .map_err(|error| format!("cargo cannot be started: {error}"))?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let metadata: Metadata = serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
        let links = metadata.resolve.nodes.into_iter().map(|node| {
            let linked = node.deps.into_iter().filter(|d| d.dep_kinds.iter().any(|k| k.kind.is_none()));
            (node.id, linked.map(|d| d.pkg).collect())
        });
        Ok(Packages {
            links: links.collect(),
            by_id: metadata.packages.into_iter().map(|package| (package.id.clone(), package)).collect(),
            members: metadata.workspace_members.into_iter().collect(),
        })
    }

    /// The packages of the workspace.
    pub fn members(&self) -> impl Iterator<Item = &Package> {
        self.by_id.values().filter(|package| self.members.contains(&package.id))
    }

    /// All that is used for anything, the tests included.
    pub fn all(&self) -> impl Iterator<Item = &Package> {
        self.by_id.values().filter(|package| self.links.contains_key(&package.id))
    }

    /// The names of what the member `name` depends on itself, in their order; None when there is no such member.
    pub fn direct(&self, name: &str) -> Option<BTreeSet<&str>> {
        let package = self.members().find(|package| package.name == name)?;
        let links = self.links.get(&package.id).into_iter().flatten();
        Some(links.filter_map(|id| Some(self.by_id.get(id)?.name.as_str())).collect())
    }

    /// The names of all that the member `name` links with, directly or by way of others; None when there is no such member.
    pub fn linked(&self, name: &str) -> Option<BTreeSet<&str>> {
        let first = self.members().find(|package| package.name == name)?;
        let (mut seen, mut todo) = (BTreeSet::new(), vec![first.id.as_str()]);
        while let Some(id) = todo.pop() {
            for next in self.links.get(id).into_iter().flatten() {
                if seen.insert(next.as_str()) {
                    todo.push(next);
                }
            }
        }
        Some(seen.into_iter().filter_map(|id| Some(self.by_id.get(id)?.name.as_str())).collect())
    }
}

/// The features with which the package `name` is built for the programs of the workspace (`make build`), without those that tests want.
///
/// # Errors
/// What Cargo said, for a person; or that no program links with it.
pub fn features_in_programs(root: &Path, name: &str) -> Result<BTreeSet<String>, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["tree", "--workspace", "--locked", "--target", TARGET, "--edges", "normal", "--prefix", "none"])
        .args(["--format", "{p}|{f}"])
        .current_dir(root)
        .output()
        .map_err(|error| format!("cargo cannot be started: {error}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find(|line| line.split(' ').next() == Some(name));
    let features = line.and_then(|line| line.rsplit_once('|')).map(|(_, features)| features.trim_end_matches(" (*)"));
    let features = features.ok_or_else(|| format!("no program links with {name}"))?;
    Ok(features.split(',').filter(|feature| !feature.is_empty()).map(str::to_owned).collect())
}
