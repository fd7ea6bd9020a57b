//! Links in documents and comments lead somewhere.

use ninefold_tidy::links;
use ninefold_tidy::tree::{Tree, root};

#[test]
fn every_link_leads_somewhere() {
    let tree = Tree::read(&root()).unwrap();
    // What finds nothing finds no fault either.
    assert!(tree.texts().filter(|(path, _)| path.ends_with(".md")).count() > 40);
    let faults = links::check(&tree);
    assert!(faults.is_empty(), "{}", faults.iter().map(|fault| format!("\n{fault}")).collect::<String>());
}
