//! The modules of the workspace: what each defines and imports, and the paths in its code.

use std::collections::{BTreeMap, BTreeSet};

use super::graph::Graph;
use super::tokens::{behind, behind_item, is_word, tokens};
use crate::tree::{Tree, parent};

/// A path that a `use` gives a name.
#[derive(Debug, Clone)]
struct Import {
    path: Vec<String>,
    /// None: everything that is there (`*`).
    name: Option<String>,
    public: bool,
}

#[derive(Debug, Default)]
struct Module {
    /// The file that it is in.
    file: String,
    parent: Option<usize>,
    children: BTreeMap<String, usize>,
    /// What is defined in it, without its modules.
    items: BTreeSet<String>,
    imports: Vec<Import>,
    /// Paths of two words and more.
    paths: Vec<Vec<String>>,
    /// All words of its code, but for those of imports.
    words: BTreeSet<String>,
}

/// All modules.
#[derive(Debug, Default)]
pub(super) struct Workspace {
    modules: Vec<Module>,
    /// The libraries, by their names in code.
    libraries: BTreeMap<String, usize>,
    /// Files, with the crate of each.
    files: BTreeMap<String, String>,
}

/// Where a path leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Module(usize),
    /// Something that is defined in this module.
    Item(usize),
}

/// Longest chain of re-exports that is followed.
const MAX_STEPS: usize = 12;
const DEFINITIONS: [&str; 9] = ["struct", "enum", "union", "trait", "type", "fn", "const", "static", "macro_rules"];

impl Workspace {
    pub(super) fn read(tree: &Tree) -> Workspace {
        let mut workspace = Workspace::default();
        let manifests = tree.texts().filter(|(path, _)| {
            let parts: Vec<_> = path.split('/').collect();
            matches!(parts[..], ["crates" | "dev", _, "Cargo.toml"])
        });
        for (manifest, text) in manifests {
            let directory = parent(manifest);
            let name = text.lines().find_map(|line| line.strip_prefix("name = \"")).unwrap_or_default();
            let name = name.trim_end_matches('"').replace('-', "_");
            let within = format!("{directory}/src/");
            let roots = tree.texts().map(|(path, _)| path).filter(|path| {
                let Some(rest) = path.strip_prefix(&within) else { return false };
                matches!(rest, "lib.rs" | "main.rs") || parent(rest) == "bin" || rest.ends_with("/main.rs")
            });
            for root in roots {
                let module = workspace.file(tree, directory, root, None, &within);
                if root.ends_with("src/lib.rs") {
                    workspace.libraries.insert(name.clone(), module);
                }
            }
        }
        workspace
    }

    /// Reads a file, and those of its children, as a module; answers its number. Children are in `beside`.
    fn file(&mut self, tree: &Tree, of: &str, path: &str, parent: Option<usize>, beside: &str) -> usize {
        self.files.insert(path.to_owned(), of.rsplit('/').next().unwrap_or(of).to_owned());
        let tokens = tokens(tree.text(path).unwrap_or_default());
        self.module(tree, of, path, parent, beside, &tokens)
    }

    fn module(
        &mut self,
        tree: &Tree,
        of: &str,
        file: &str,
        parent: Option<usize>,
        beside: &str,
        code: &[String],
    ) -> usize {
        let number = self.modules.len();
        self.modules.push(Module { file: file.to_owned(), parent, ..Module::default() });
        let (mut at, mut depth, mut public) = (0, 0_usize, false);
        while at < code.len() {
            let token = code[at].as_str();
            let following = code.get(at + 1).map(String::as_str);
            let starts_path = at == 0 || code[at - 1] != "::";
            match token {
                "#" => {
                    let open = at + 1 + usize::from(following == Some("!"));
                    let end = behind(code, open);
                    let attribute = &code[open.min(code.len())..end];
                    let only_tests = attribute.get(1).is_some_and(|t| t == "cfg")
                        && attribute.iter().any(|t| t == "test")
                        && !attribute.iter().any(|t| t == "not");
                    at = if only_tests { behind_item(code, end) } else { end };
                    continue;
                }
                "pub" => {
                    public = true;
                    at = if following == Some("(") { behind(code, at + 1) } else { at + 1 };
                    continue;
                }
                "use" => {
                    let end = behind_use(code, at);
                    let mut imports = Vec::new();
                    import(&code[at + 1..end.max(at + 1)], &mut Vec::new(), public, &mut imports);
                    self.modules[number].imports.extend(imports);
                    at = end + 1;
                    public = false;
                    continue;
                }
                "mod" if depth == 0 && following.is_some_and(is_word) => {
                    let name = code[at + 1].clone();
                    let inside = format!("{beside}{name}/");
                    let child = if code.get(at + 2).is_some_and(|t| t == "{") {
                        let end = behind(code, at + 2);
                        let body = &code[at + 3..end - 1];
                        at = end;
                        Some(self.module(tree, of, file, Some(number), &inside, body))
                    } else {
                        at += 3;
                        let files = [format!("{beside}{name}.rs"), format!("{beside}{name}/mod.rs")];
                        let path = files.into_iter().find(|path| tree.text(path).is_some());
                        path.map(|path| self.file(tree, of, &path, Some(number), &inside))
                    };
                    self.modules[number].children.extend(child.map(|child| (name, child)));
                    public = false;
                    continue;
                }
                "{" => depth += 1,
                "}" => depth = depth.saturating_sub(1),
                _ if depth == 0 && DEFINITIONS.contains(&token) => {
                    let name = code[at + 1..].iter().find(|t| is_word(t) && !DEFINITIONS.contains(&t.as_str()));
                    self.modules[number].items.extend(name.cloned());
                }
                word if is_word(word) && starts_path => {
                    let mut path = vec![word.to_owned()];
                    let mut end = at + 1;
                    while code.get(end).is_some_and(|t| t == "::") && code.get(end + 1).is_some_and(|t| is_word(t)) {
                        path.push(code[end + 1].clone());
                        end += 2;
                    }
                    let module = &mut self.modules[number];
                    module.words.insert(path[0].clone());
                    if path.len() > 1 {
                        module.paths.push(path);
                    }
                }
                _ => {}
            }
            public = false;
            at += 1;
        }
        number
    }

    /// Where a path leads from a module; None when it leads out of the workspace, or the name was not found.
    fn resolve(&self, from: usize, path: &[String], steps: usize) -> Option<Place> {
        let (first, rest) = path.split_first()?;
        let start = match first.as_str() {
            "crate" => Place::Module(self.top(from)),
            "self" => Place::Module(from),
            "super" => Place::Module(self.modules[from].parent?),
            name => match self.named(from, name, steps) {
                Some(place) => place,
                None => Place::Module(*self.libraries.get(name)?),
            },
        };
        self.follow(start, rest, steps)
    }

    fn follow(&self, start: Place, rest: &[String], steps: usize) -> Option<Place> {
        let mut place = start;
        for name in rest {
            let Place::Module(module) = place else { return Some(place) };
            place = match name.as_str() {
                "super" => Place::Module(self.modules[module].parent?),
                "self" => place,
                // Something that was not understood, such as what a macro makes.
                name => self.named(module, name, steps).unwrap_or(Place::Item(module)),
            };
        }
        Some(place)
    }

    /// What a module calls `name`.
    fn named(&self, module: usize, name: &str, steps: usize) -> Option<Place> {
        let steps = steps.checked_sub(1)?;
        let here = &self.modules[module];
        if let Some(child) = here.children.get(name) {
            return Some(Place::Module(*child));
        }
        if here.items.contains(name) {
            return Some(Place::Item(module));
        }
        let explicit = here.imports.iter().filter(|import| import.name.as_deref() == Some(name));
        // `use crate::x::x` is not resolved by itself.
        if let Some(place) = explicit.filter_map(|import| self.import(module, &import.path, steps)).next() {
            return Some(place);
        }
        let globs = here.imports.iter().filter(|import| import.name.is_none());
        let found = globs.filter_map(|import| match self.import(module, &import.path, steps)? {
            Place::Module(whole) if whole != module => self.named(whole, name, steps),
            _ => None,
        });
        found.into_iter().next()
    }

    /// Where an import leads. Its first word is a child, a library, or one of the words for modules around it.
    fn import(&self, module: usize, path: &[String], steps: usize) -> Option<Place> {
        let (first, rest) = path.split_first()?;
        let start = match first.as_str() {
            "crate" => self.top(module),
            "self" => module,
            "super" => self.modules[module].parent?,
            name => match self.modules[module].children.get(name) {
                Some(child) => *child,
                None => match self.libraries.get(name) {
                    Some(library) => *library,
                    // An enum's variants, or a module that another import has named.
                    None => return self.resolve(module, path, steps),
                },
            },
        };
        self.follow(Place::Module(start), rest, steps)
    }

    fn top(&self, mut module: usize) -> usize {
        while let Some(parent) = self.modules[module].parent {
            module = parent;
        }
        module
    }

    pub(super) fn graph(self) -> Graph {
        let mut graph = Graph::of(self.files.clone());
        for (number, module) in self.modules.iter().enumerate() {
            for import in &module.imports {
                let place = self.import(number, &import.path, MAX_STEPS);
                match (&import.name, place) {
                    // What is handed on is not used, unless the code names it.
                    (Some(name), Some(Place::Item(to))) if !import.public || module.words.contains(name) => {
                        graph.add(&module.file, &self.modules[to].file, name);
                    }
                    (None, Some(Place::Module(whole))) if !import.public => {
                        for word in &module.words {
                            if !module.items.contains(word)
                                && let Some(Place::Item(to)) = self.named(whole, word, MAX_STEPS)
                            {
                                graph.add(&module.file, &self.modules[to].file, word);
                            }
                        }
                    }
                    // A module that is imported is used by the paths that begin with it.
                    _ => {}
                }
            }
            for path in &module.paths {
                if let Some(Place::Item(to)) = self.resolve(number, path, MAX_STEPS) {
                    graph.add(&module.file, &self.modules[to].file, path.last().expect("a path has words"));
                }
            }
        }
        graph
    }
}

/// The place of the `;` that ends the `use` at `at`.
fn behind_use(code: &[String], at: usize) -> usize {
    code[at..].iter().position(|token| token == ";").map_or(code.len(), |length| at + length)
}

/// Reads a tree of imports; `before` is the path so far.
fn import(tree: &[String], before: &mut Vec<String>, public: bool, imports: &mut Vec<Import>) {
    let depth = before.len();
    let mut at = 0;
    while at < tree.len() {
        match tree[at].as_str() {
            "{" => {
                let end = behind(tree, at);
                let mut begin = at + 1;
                // Each part between commas that are not within further braces.
                let mut part = begin;
                while part < end {
                    match tree[part].as_str() {
                        "{" => part = behind(tree, part),
                        "," | "}" => {
                            import(&tree[begin..part], before, public, imports);
                            part += 1;
                            begin = part;
                        }
                        _ => part += 1,
                    }
                }
                before.truncate(depth);
                return;
            }
            "*" => {
                imports.push(Import { path: before.clone(), name: None, public });
                before.truncate(depth);
                return;
            }
            "::" => at += 1,
            "as" => break,
            word => {
                before.push(word.to_owned());
                at += 1;
            }
        }
    }
    if before.len() > depth || (tree.first().is_some_and(|t| t == "self")) {
        // `{self}` is the module itself.
        if before.last().is_some_and(|word| word == "self") && before.len() > 1 {
            before.pop();
        }
        let renamed = tree.iter().position(|t| t == "as").and_then(|at| tree.get(at + 1)).cloned();
        let name = renamed.or_else(|| before.last().cloned());
        imports.push(Import { path: before.clone(), name, public });
    }
    before.truncate(depth);
}
