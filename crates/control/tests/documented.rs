//! docs/api.md is what a client in another language is written from: it names every request with its fields and every code with its details, and what it asks
//! can be asked.

use ninefold_control::wire::read_request;
use ninefold_control::{Refusal, Request};

const API: &str = include_str!("../../../docs/api.md");

/// The variants of an enum as its source has them: the name on the wire, and the fields.
fn variants(source: &str, name: &str) -> Vec<(String, Vec<String>)> {
    let (_, body) = source.split_once(&format!("pub enum {name} {{\n")).expect("the enum");
    let (body, _) = body.split_once("\n}\n").expect("its end");
    let mut found: Vec<(String, Vec<String>)> = Vec::new();
    for line in body.lines().filter(|l| !l.trim_start().starts_with(['/', '#'])) {
        let words = match line.strip_prefix("    ").filter(|l| l.starts_with(char::is_uppercase)) {
            Some(variant) => {
                let end = variant.find(|c: char| !c.is_alphanumeric()).unwrap_or(variant.len());
                found.push((snake(&variant[..end]), Vec::new()));
                &variant[end..]
            }
            None => line,
        };
        let fields = words.split(['{', ',']).filter_map(|word| Some(word.trim().split_once(": ")?.0.to_owned()));
        if let Some((_, known)) = found.last_mut() {
            known.extend(fields.filter(|f| f.chars().all(|c| c.is_ascii_lowercase() || c == '_')));
        }
    }
    found
}

fn snake(name: &str) -> String {
    let mut text = String::new();
    for c in name.chars() {
        if c.is_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.extend(c.to_lowercase());
    }
    text
}

/// The row of a table whose first cell names this.
fn row(name: &str) -> &'static str {
    let named = format!("`{name}`");
    let mut rows = API.lines().filter(|l| l.starts_with('|'));
    rows.find(|l| l.split('|').nth(1).is_some_and(|cell| cell.contains(&named)))
        .unwrap_or_else(|| panic!("docs/api.md has no row for {named}"))
}

#[test]
fn each_request_and_each_code_has_a_row_with_its_fields() {
    let requests = variants(include_str!("../src/request.rs"), "Request");
    let codes = variants(include_str!("../src/refusal.rs"), "Refusal");
    assert!(requests.len() > 20 && codes.len() > 30, "{requests:?} {codes:?}");
    assert!(
        requests.contains(&("restore".into(), ["name", "force", "clone"].map(Into::into).to_vec())),
        "{requests:?}"
    );
    assert!(codes.contains(&("busy".into(), vec!["with".into()])), "{codes:?}");
    for (name, fields) in requests.into_iter().chain(codes) {
        let row = row(&name);
        for field in fields {
            assert!(row.contains(&format!("`{field}`")), "the row of `{name}` says nothing of `{field}`: {row}");
        }
    }
    // And each thing that a keeper may be at.
    for (work, _) in variants(include_str!("../src/refusal.rs"), "Work") {
        assert!(row("busy").contains(&format!("`{work}`")), "the row of `busy` says nothing of `{work}`");
    }
}

/// The names that the source suggests are those on the wire.
#[test]
fn names_on_the_wire_are_those_of_the_source() {
    let text = serde_json::to_value(Request::CommitImage).unwrap();
    assert_eq!(text["request"], snake("CommitImage"));
    assert_eq!(Refusal::NothingOnTrial.parts().0, snake("NothingOnTrial"));
}

#[test]
fn what_is_asked_in_the_document_can_be_asked() {
    let asked: Vec<_> = API.lines().filter_map(|l| l.trim().strip_prefix("→ ")).collect();
    assert!(asked.len() >= 4, "{asked:?}");
    for line in asked {
        match read_request(line.as_bytes()).1 {
            Ok(_) => {}
            // One shows what is refused.
            Err(Refusal::BadRequest { field: Some(field), .. }) if API.contains(&format!("\"field\":\"{field}\"")) => {}
            Err(refusal) => panic!("{line}: {refusal}"),
        }
    }
}
