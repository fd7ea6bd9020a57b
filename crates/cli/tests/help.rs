//! Every command explains itself with an example.

mod fixture;

use fixture::{fails, ok};

/// The names under "Commands:".
fn subcommands(help: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|l| *l != "Commands:").skip(1);
    let entries = lines.take_while(|l| !l.is_empty()).filter(|l| l.starts_with("  ") && !l.starts_with("   "));
    entries.filter_map(|l| l.split_whitespace().next()).filter(|n| *n != "help").map(str::to_owned).collect()
}

#[test]
fn every_help_has_an_example() {
    let mut open = vec![Vec::<String>::new()];
    let mut seen = 0;
    while let Some(path) = open.pop() {
        let mut arguments: Vec<_> = path.iter().map(String::as_str).collect();
        arguments.push("--help");
        let help = ok(&arguments);
        assert!(help.contains("Example"), "no example: ninefold {}\n{help}", arguments.join(" "));
        assert!(help.contains("--json"), "ninefold {}", arguments.join(" "));
        seen += 1;
        open.extend(subcommands(&help).into_iter().map(|name| [path.clone(), vec![name]].concat()));
    }
    assert!(seen >= 30, "only {seen} commands were found");
}

#[test]
fn wrong_usage_is_told_apart() {
    for wrong in [
        &["lab", "kill", "a", "fan"][..],
        &["vm", "epochs", "fixed"],
        &["nonsense"],
        &["vm", "epochs", "fixed", "--ms", "0"],
        &["lab", "restart", "a", "--faults", "log.snyc=abort"],
        &["volume", "create", "x", "--size", "10GB"],
    ] {
        assert!(fails(wrong, 2).contains("--help"), "{wrong:?}");
    }
}
