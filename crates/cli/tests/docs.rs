//! What the documents say that tests show.

mod fixture;

use std::path::Path;

use ninefold_model::spec::Timing;

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

/// Each check of `ninefold doctor` is explained, in the order in which the checks come.
#[test]
fn each_check_of_the_doctor_is_explained() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let text = std::fs::read_to_string(root.join("docs/guides/operate.md")).unwrap();
    let (_, section) = text.split_once("\n### `ninefold doctor`\n").expect("there is such a section");
    let section = section.split_once("\n## ").map_or(section, |(section, _)| section);
    let explained: Vec<&str> =
        section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |")).map(|(name, _)| name).collect();
    let dir = tempfile::tempdir().unwrap();
    let output = fixture::program().with("NINEFOLD_CACHE", dir.path()).run(&[
        "doctor",
        "--json",
        "--qemu",
        "/nowhere/qemu",
        "--identity",
        "/nowhere/identity",
    ]);
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let names: Vec<&str> = found["checks"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(explained, names);
}

/// The times that the documents name are those of the code, for a host that stands still or is silent.
#[test]
fn the_times_of_a_stall_are_those_of_the_code() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let timing = Timing::default();
    let ms = |time: std::time::Duration| time.as_millis();
    let (silence, stall) = (ms(timing.failure_timeout()), ms(timing.stall_limit()));
    let (patience, least) = (silence - ms(timing.heartbeat()), ms(Timing::MIN_STILL));
    let look = ms(timing.look_limit());
    let said: [(&str, Vec<String>); 5] = [
        (
            "protocol.md",
            vec![
                format!("silence for {silence} ms"),
                format!("stands still for {stall} ms or longer"),
                format!("the failure timeout *T* ({silence} ms)"),
                format!("*T* less two heartbeats ({stall} ms; at least {least} ms)"),
                format!("for half of *T* ({look} ms)"),
                format!("`failure_timeout_ms` ({silence})"),
                format!("`failure_timeout_ms` less two heartbeats ({stall} ms)"),
            ],
        ),
        (
            "guides/operate.md",
            vec![
                format!("takes over after {silence} ms of silence"),
                format!("stands still for less than {stall} ms"),
                format!("for {stall} to {silence} ms (`stood_still`)"),
                format!("From {patience} ms on the backup may have lost patience"),
                format!("of the backup stands still for less than {silence} ms"),
                format!("output waits for {silence} ms (silence)"),
            ],
        ),
        ("guides/lab.md", vec![format!("`primary_lost` after {silence} ms")]),
        ("decisions/0007-real-time-threads.md", vec![format!("lost after {silence} ms without")]),
        ("decisions/0026-how-long-a-host-may-stand-still.md", vec![format!("{stall} ms"), format!("{silence} ms")]),
    ];
    for (file, all) in said {
        let text = std::fs::read_to_string(root.join(file)).unwrap();
        for words in all {
            assert!(text.contains(&words), "{file} does not say '{words}'");
        }
    }
}
