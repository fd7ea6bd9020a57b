//! The tour shows the way: no file of it is met twice on one way.

use std::collections::BTreeSet;

use ninefold_tidy::tree::{Tree, root};

#[test]
fn no_way_visits_a_file_twice() {
    let tree = Tree::read(&root()).unwrap();
    let tour = tree.text("docs/tour.md").expect("the tour");
    let ways: Vec<_> = tour.split("\n## ").skip(1).collect();
    assert_eq!(ways.len(), 3);
    for way in ways {
        let mut visited = BTreeSet::new();
        let links = way.split("](../").skip(1).map(|rest| rest.split(')').next().unwrap_or_default());
        for file in links {
            assert!(visited.insert(file), "{file} is visited twice on {}", way.lines().next().unwrap_or_default());
        }
        assert!(visited.len() > 15, "{visited:?}");
    }
}
