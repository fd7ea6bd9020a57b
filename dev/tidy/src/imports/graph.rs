//! Files, what each uses of which other, and circles.

use std::collections::{BTreeMap, BTreeSet};

/// Files, and what each uses of which other.
#[derive(Debug, Default)]
pub struct Graph {
    /// By path, each with the crate that it belongs to.
    files: BTreeMap<String, String>,
    /// From, to: the names that are used.
    uses: BTreeMap<(String, String), BTreeSet<String>>,
}

impl Graph {
    /// A graph of these files, each with its crate, and no uses.
    pub(super) fn of(files: BTreeMap<String, String>) -> Graph {
        Graph { files, uses: BTreeMap::new() }
    }

    pub(super) fn add(&mut self, from: &str, to: &str, name: &str) {
        if from != to {
            let names = self.uses.entry((from.to_owned(), to.to_owned())).or_default();
            names.insert(name.to_owned());
        }
    }

    /// The files by path, each with its crate.
    pub fn files(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files.iter().map(|(file, of)| (file.as_str(), of.as_str()))
    }

    /// The crate of a file.
    pub fn crate_of(&self, file: &str) -> &str {
        self.files.get(file).map_or("", String::as_str)
    }

    /// All uses: from, to.
    pub fn uses(&self) -> impl Iterator<Item = (&str, &str)> {
        self.uses.keys().map(|(from, to)| (from.as_str(), to.as_str()))
    }

    /// What `from` uses of `to`.
    pub fn names(&self, from: &str, to: &str) -> impl Iterator<Item = &str> {
        self.uses.get(&(from.to_owned(), to.to_owned())).into_iter().flatten().map(String::as_str)
    }

    /// The files that use each other in a circle, each group by path: the strongly connected components of more than one.
    pub fn circles(&self) -> Vec<BTreeSet<&str>> {
        let mut next: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (from, to) in self.uses() {
            next.entry(from).or_default().push(to);
        }
        let mut search = Search {
            next: &next,
            numbers: BTreeMap::new(),
            lowest: BTreeMap::new(),
            stack: Vec::new(),
            found: Vec::new(),
        };
        for (file, _) in self.files() {
            if !search.numbers.contains_key(file) {
                search.visit(file);
            }
        }
        let mut circles: Vec<_> = search.found.into_iter().filter(|group| group.len() > 1).collect();
        circles.sort();
        circles
    }

    /// How the files of a circle use each other, for a person.
    pub fn explain(&self, circle: &BTreeSet<&str>) -> String {
        let within =
            self.uses.iter().filter(|((from, to), _)| circle.contains(from.as_str()) && circle.contains(to.as_str()));
        let lines = within.map(|((from, to), names)| {
            format!("  {from} uses {to}: {}\n", names.iter().cloned().collect::<Vec<_>>().join(", "))
        });
        lines.collect()
    }
}

/// Tarjan's search for strongly connected components.
struct Search<'a, 'n> {
    next: &'n BTreeMap<&'a str, Vec<&'a str>>,
    numbers: BTreeMap<&'a str, usize>,
    lowest: BTreeMap<&'a str, usize>,
    stack: Vec<&'a str>,
    found: Vec<BTreeSet<&'a str>>,
}

impl<'a> Search<'a, '_> {
    fn visit(&mut self, file: &'a str) {
        let number = self.numbers.len();
        self.numbers.insert(file, number);
        self.lowest.insert(file, number);
        self.stack.push(file);
        for to in self.next.get(file).into_iter().flatten().copied() {
            if !self.numbers.contains_key(to) {
                self.visit(to);
                self.lowest.insert(file, self.lowest[file].min(self.lowest[to]));
            } else if self.stack.contains(&to) {
                self.lowest.insert(file, self.lowest[file].min(self.numbers[to]));
            }
        }
        if self.lowest[file] == number {
            let at = self.stack.iter().position(|f| *f == file).expect("a file that is visited is on the stack");
            self.found.push(self.stack.split_off(at).into_iter().collect());
        }
    }
}
