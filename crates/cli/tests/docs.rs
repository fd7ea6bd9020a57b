//! What the documents say that tests show.

use std::path::Path;

/// The table of what happens when something fails, in docs/guides/operate.md.
fn rows(text: &str) -> Vec<Vec<&str>> {
    let (_, section) = text.split_once("\n## When something fails\n").expect("there is such a section");
    let section = section.split_once("\n## ").map_or(section, |(section, _)| section);
    let rows = section.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    rows.map(|row| row.split('|').map(str::trim).collect()).skip(1).collect()
}

/// The words in back quotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Each row of that table names a test, and the test is there.
#[test]
fn each_failure_has_its_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let text = std::fs::read_to_string(root.join("docs/guides/operate.md")).unwrap();
    let rows = rows(&text);
    assert!(rows.len() > 40, "{} rows", rows.len());
    for row in rows {
        let [failure, _, _, shown] = row[..] else { panic!("{row:?} has not four columns") };
        if shown == "nothing is done that could be tested" {
            continue;
        }
        let (mut file, mut tests) = (String::new(), 0);
        for word in quoted(shown) {
            if word.contains('/') {
                file = std::fs::read_to_string(root.join(word)).unwrap_or_else(|e| panic!("{failure}: {word}: {e}"));
            } else {
                let line = format!("fn {word}()");
                let before = file.split_once(&line).map(|(before, _)| before);
                let attributes = before.and_then(|before| before.rsplit_once("#[test]")).map(|(_, between)| between);
                // Nothing but attributes is between a test's mark and its name.
                let is_test = attributes
                    .is_some_and(|all| all.lines().all(|l| l.trim().is_empty() || l.trim().starts_with("#[")));
                assert!(is_test, "{failure}: there is no test {word}");
                tests += 1;
            }
        }
        assert!(tests > 0, "{failure}: no test shows it");
    }
}
