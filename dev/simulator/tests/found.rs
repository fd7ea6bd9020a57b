//! What the simulator has found stays mended: each plan that has failed is run again, and the VM is neither harmed nor left alone.

use std::path::Path;

use ninefold_simulator::plan::Plan;
use ninefold_simulator::rules::Rules;
use ninefold_simulator::run::harm;

#[test]
fn what_was_found_stays_mended() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("found");
    let mut names: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    assert!(names.len() >= 4, "{names:?}");
    let failing = names.iter().filter_map(|path| {
        let text = std::fs::read_to_string(path).unwrap();
        let plan: Plan = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Some((path.file_name()?.to_owned(), harm(&plan, Rules::ALL)?))
    });
    let failing: Vec<_> = failing.collect();
    assert!(failing.is_empty(), "{failing:#?}");
}
