//! A program, run as its users run it.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

/// A program with what it is given besides its arguments.
#[derive(Debug, Clone)]
pub struct Program {
    path: PathBuf,
    /// Before all others.
    arguments: Vec<String>,
    /// With `None` a variable that is not there.
    environment: Vec<(OsString, Option<OsString>)>,
}

impl Program {
    /// The program at this path.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), arguments: Vec::new(), environment: Vec::new() }
    }

    /// The same with these arguments before all others, as of a program that runs another one.
    pub fn before(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|word| (*word).to_owned()));
        self
    }

    /// The same with a variable in its environment.
    pub fn with(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.as_ref().to_owned(), Some(value.as_ref().to_owned())));
        self
    }

    /// The same without a variable that it may have inherited.
    pub fn without(mut self, name: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.as_ref().to_owned(), None));
        self
    }

    /// A command line.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.path);
        command.args(&self.arguments).args(arguments);
        for (name, value) in &self.environment {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }

    /// Runs it to its end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap_or_else(|e| panic!("{}: {e}", self.path.display()))
    }

    /// Runs it and expects success; gives back what it printed.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{} {}: {:?}\n{stderr}", self.name(), arguments.join(" "), output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs it with `--json` and expects success.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let mut all = vec!["--json"];
        all.extend(arguments);
        let text = self.ok(&all);
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
    }

    /// Runs it and expects failure with this exit code: gives back what it said on standard error.
    pub fn fails(&self, arguments: &[&str], code: i32) -> String {
        let output = self.run(arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{} {}: {stderr}", self.name(), arguments.join(" "));
        assert!(output.stdout.is_empty(), "an error prints nothing on standard output");
        stderr
    }

    /// The path of each of its verbs, and its own (an empty one), as `--help` lists them.
    pub fn verbs(&self) -> Vec<Vec<String>> {
        let mut open = vec![Vec::<String>::new()];
        let mut all = Vec::new();
        while let Some(path) = open.pop() {
            let mut arguments: Vec<_> = path.iter().map(String::as_str).collect();
            arguments.push("--help");
            let below = subcommands(&self.ok(&arguments));
            open.extend(below.into_iter().map(|name| [path.clone(), vec![name]].concat()));
            all.push(path);
        }
        all
    }

    /// Fails unless the help of each of its verbs has an example and tells of `--json`. Returns how many verbs there are.
    pub fn every_help_has_an_example(&self) -> usize {
        let verbs = self.verbs();
        for path in &verbs {
            let mut arguments: Vec<_> = path.iter().map(String::as_str).collect();
            arguments.push("--help");
            let help = self.ok(&arguments);
            assert!(help.contains("Example"), "no example: {} {}\n{help}", self.name(), arguments.join(" "));
            assert!(help.contains("--json"), "{} {}", self.name(), arguments.join(" "));
        }
        verbs.len()
    }

    fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// The names under "Commands:" of a help text.
fn subcommands(help: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|l| *l != "Commands:").skip(1);
    let entries = lines.take_while(|l| !l.is_empty()).filter(|l| l.starts_with("  ") && !l.starts_with("   "));
    entries.filter_map(|l| l.split_whitespace().next()).filter(|n| *n != "help").map(str::to_owned).collect()
}
