//! The repository's files.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

/// Directories that hold what was built or found, wherever they are.
const LEFT_OUT: [&str; 4] = [".git", "target", "corpus", "artifacts"];

/// The text files below a directory, by their path relative to it, with `/` between the parts.
#[derive(Debug, Default)]
pub struct Tree {
    texts: BTreeMap<String, String>,
    /// All files and directories, also those that are not text.
    paths: BTreeSet<String>,
}

/// The top of this repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

impl Tree {
    /// Reads everything below `root`, except for what was built there.
    ///
    /// # Errors
    /// When a file or a directory cannot be read.
    pub fn read(root: &Path) -> io::Result<Tree> {
        let mut tree = Tree::default();
        let mut todo = vec![String::new()];
        while let Some(directory) = todo.pop() {
            for entry in std::fs::read_dir(root.join(&directory))? {
                let entry = entry?;
                let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
                let path = if directory.is_empty() { name.clone() } else { format!("{directory}/{name}") };
                let kind = entry.file_type()?;
                if kind.is_dir() {
                    if !LEFT_OUT.contains(&name.as_str()) {
                        tree.paths.insert(path.clone());
                        todo.push(path);
                    }
                } else if kind.is_file() {
                    // What is not UTF-8 is no text.
                    let text = String::from_utf8(std::fs::read(entry.path())?).ok();
                    tree.paths.insert(path.clone());
                    tree.texts.extend(text.map(|text| (path, text)));
                }
            }
        }
        Ok(tree)
    }

    /// A tree of files that are given.
    pub fn of(files: &[(&str, &str)]) -> Tree {
        let mut tree = Tree::default();
        for (path, text) in files {
            tree.texts.insert((*path).to_owned(), (*text).to_owned());
            tree.paths.insert((*path).to_owned());
            let parents = path.match_indices('/').map(|(at, _)| path[..at].to_owned());
            tree.paths.extend(parents);
        }
        tree
    }

    /// The text files by path.
    pub fn texts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.texts.iter().map(|(path, text)| (path.as_str(), text.as_str()))
    }

    /// The text of a file; None when there is no such file, or it is no text.
    pub fn text(&self, path: &str) -> Option<&str> {
        self.texts.get(path).map(String::as_str)
    }

    /// Whether there is such a file or directory. `path` may end in `/`.
    pub fn has(&self, path: &str) -> bool {
        path.is_empty() || self.paths.contains(path.trim_end_matches('/'))
    }

    /// Whether the path of any file ends in these whole parts.
    pub fn has_ending(&self, parts: &str) -> bool {
        self.has(parts) || self.paths.iter().any(|path| path.strip_suffix(parts).is_some_and(|p| p.ends_with('/')))
    }

    /// The names at the top that are directories.
    pub fn tops(&self) -> impl Iterator<Item = &str> {
        let tops: BTreeSet<&str> = self.paths.iter().filter_map(|path| Some(path.split_once('/')?.0)).collect();
        tops.into_iter()
    }
}

/// The path that `relative` means in a file of the directory `from`; None when it leads out of the repository.
pub fn join(from: &str, relative: &str) -> Option<String> {
    let mut parts: Vec<&str> = from.split('/').filter(|part| !part.is_empty()).collect();
    for part in relative.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// The directory of a path; empty at the top.
pub fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_joined_and_found() {
        assert_eq!(join("docs/guides", "../protocol.md").as_deref(), Some("docs/protocol.md"));
        assert_eq!(join("", "docs/./x.md").as_deref(), Some("docs/x.md"));
        assert_eq!(join("docs", "../../x.md"), None);
        let tree = Tree::of(&[("crates/net/src/gate.rs", "")]);
        assert!(tree.has("crates/net/") && tree.has("crates/net/src/gate.rs") && !tree.has("net"));
        assert!(tree.has_ending("src/gate.rs") && tree.has_ending("gate.rs") && !tree.has_ending("ate.rs"));
        assert_eq!(tree.tops().collect::<Vec<_>>(), ["crates"]);
    }
}
