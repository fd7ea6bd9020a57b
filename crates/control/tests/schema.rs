//! docs/api/*.schema.json: what clients in other languages make their types of, and check their messages by. They are made of the types of this crate.
//!
//! `make schema` writes them anew; otherwise these tests say whether they are as they would be written, and that the examples of docs/api.md
//! and messages of this crate's own keep to them.

mod json_schema;

use std::path::{Path, PathBuf};

use json_schema::problems;
use ninefold_control::operation::{OperationId, OperationKind, State};
use ninefold_control::wire::{MAX_REQUEST, VERSION, write_answer, write_request};
use ninefold_control::{Answer, Operation, Refusal, Request};
use ninefold_model::Incarnation;
use ninefold_model::event::EventKind;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

/// Set, the files are written.
const WRITE: &str = "NINEFOLD_WRITE_SCHEMA";

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/api").join(format!("{name}.schema.json"))
}

/// The object in the schema of one kind of message gets the fields of the envelope.
fn with_envelope(schema: &mut Value, common: &Value, required: &[&str], closed: bool) {
    let object = schema.as_object_mut().expect("an object");
    let properties = object.entry("properties").or_insert_with(|| json!({})).as_object_mut().expect("properties");
    for (name, what) in common.as_object().expect("fields") {
        assert!(properties.insert(name.clone(), what.clone()).is_none(), "'{name}' is a field of a message, too");
    }
    let needed = object.entry("required").or_insert_with(|| json!([])).as_array_mut().expect("names");
    needed.extend(required.iter().map(|name| (*name).into()));
    // What a request has that is not known is refused; in answers it is ignored.
    if closed {
        object.insert("additionalProperties".into(), false.into());
    }
}

/// The variants of a message's schema.
fn variants(schema: &mut Value) -> &mut Vec<Value> {
    schema["oneOf"].as_array_mut().expect("one schema for each kind of message")
}

fn document(title: &str, says: &str, body: Value) -> Value {
    let mut document = Map::new();
    document.insert("$schema".into(), "https://json-schema.org/draft/2020-12/schema".into());
    document.insert("title".into(), title.into());
    document.insert("description".into(), says.into());
    document.extend(
        body.as_object()
            .expect("an object")
            .clone()
            .into_iter()
            .filter(|(name, _)| !matches!(name.as_str(), "$schema" | "title" | "description")),
    );
    document.into()
}

fn id() -> Value {
    json!({ "description": "What the client calls its request; the answer repeats it.", "type": ["string", "number"] })
}

/// A line of a client's.
fn request() -> Value {
    let generator = SchemaSettings::draft2020_12().for_deserialize().into_generator();
    let mut schema = generator.into_root_schema_for::<Request>().to_value();
    let common = json!({
        "version": { "description": "The version of this API that the client speaks.", "const": VERSION },
        "id": id(),
        "token": {
            "description": "The same request that comes again with the same token is the same operation.",
            "type": "string", "minLength": 1, "maxLength": 64,
        },
    });
    variants(&mut schema).iter_mut().for_each(|one| with_envelope(one, &common, &["version"], true));
    let says = format!("One request to a keeper, on a line of at most {MAX_REQUEST} bytes: docs/api.md.");
    document("Request", &says, schema)
}

/// A line of a keeper's.
fn answer() -> Value {
    let mut generator = SchemaSettings::draft2020_12().for_serialize().into_generator();
    let refusal = generator.subschema_for::<Refusal>().to_value();
    let mut schema = generator.into_root_schema_for::<Answer>().to_value();
    let all = variants(&mut schema);
    all.push(json!({
        "description": "The request is refused.",
        "type": "object",
        "properties": { "error": refusal },
        "required": ["error"],
    }));
    let common = json!({ "version": { "description": "That of the request.", "const": VERSION }, "id": id() });
    all.iter_mut().for_each(|one| with_envelope(one, &common, &["version"], false));
    let says = "One answer of a keeper: docs/api.md. A later keeper may add fields, and kinds of events, of operations and of codes: \
                who checks by this document what a keeper says takes those for what he does not know, not for faults.";
    document("Answer", says, schema)
}

fn text(schema: &Value) -> String {
    let mut text = serde_json::to_string_pretty(schema).unwrap();
    text.push('\n');
    text
}

#[test]
fn the_documents_are_up_to_date() {
    for (name, schema) in [("request", request()), ("answer", answer())] {
        let (path, text) = (file(name), text(&schema));
        if std::env::var_os(WRITE).is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        let there = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(there == text, "{} is not what the types say: `make schema` writes it", path.display());
    }
}

/// The lines of docs/api.md that begin so, as JSON; what it leaves out with dots is left out.
fn examples(arrow: &str) -> Vec<Value> {
    let api = include_str!("../../../docs/api.md");
    let lines = api.lines().filter_map(|line| line.trim().strip_prefix(arrow));
    lines
        .filter(|line| line.contains("\"version\""))
        .map(|line| serde_json::from_str(&line.replace(",…", "")).unwrap_or_else(|error| panic!("{line}: {error}")))
        .collect()
}

#[test]
fn the_examples_of_the_documents_keep_to_them() {
    let (requests, answers) = (request(), answer());
    let asked = examples("→ ");
    assert!(asked.len() >= 4, "{asked:?}");
    let (mut good, mut refused) = (0, 0);
    for example in &asked {
        let found = problems(&requests, example);
        // One of them shows what a field that is not there leads to.
        match example.get("hard") {
            Some(_) => refused += usize::from(!found.is_empty()),
            None => assert!(found.is_empty(), "{example}: {found:?}"),
        }
        good += usize::from(found.is_empty());
    }
    assert_eq!((good, refused), (asked.len() - 1, 1));
    let said = examples("← ");
    assert!(said.len() >= 4, "{said:?}");
    // What is left out with dots is missing.
    let whole = said.iter().filter(|answer| problems(&answers, answer).is_empty()).count();
    assert!(whole >= 2, "{whole} of {}", said.len());
}

#[test]
fn what_is_written_keeps_to_them_and_what_is_wrong_does_not() {
    let (requests, answers) = (request(), answer());
    let parse = |line: Vec<u8>| serde_json::from_slice::<Value>(&line).unwrap();
    let after = Some(ninefold_model::event::Position::START);
    let asks = [
        Request::Status,
        Request::Start { force: true },
        Request::Events { after, wait_ms: 5 },
        Request::Events { after: None, wait_ms: 0 },
        Request::Snapshot { name: "s".parse().unwrap(), parent: None, freeze: Default::default() },
        Request::Shutdown { within_ms: 1, end: false, asked: false },
    ];
    for ask in asks {
        let line = parse(write_request(&ask, Some("mine")).unwrap());
        assert_eq!(problems(&requests, &line), Vec::<String>::new(), "{line}");
    }
    for wrong in [
        json!({ "request": "status" }),
        json!({ "version": 1, "request": "sing" }),
        json!({ "version": 1, "request": "start", "force": "yes" }),
        json!({ "version": 1, "request": "stop", "hard": true }),
        json!({ "version": 1, "request": "restore" }),
        json!({ "version": 1, "request": "stop", "token": "" }),
        json!([]),
    ] {
        assert!(!problems(&requests, &wrong).is_empty(), "{wrong}");
    }
    let id = OperationId { incarnation: Incarnation(7), number: 1 };
    let one = |state| Operation { id, kind: OperationKind::Dump, token: None, state };
    let outcome = EventKind::Dumped { path: "/d".into(), bytes: 1, took_ms: 2 };
    let operations = vec![
        one(State::Running { progress: None }),
        one(State::Done { outcome: Some(Box::new(outcome)) }),
        one(State::Failed { error: Refusal::GuestOff }),
        one(State::Failed { error: Refusal::NotRunningHere { host: None } }),
    ];
    let said = [Ok(Answer::Done), Ok(Answer::Operations { operations }), Err(Refusal::RunsHere)];
    for reply in said {
        let line = parse(write_answer(&ninefold_control::wire::Envelope::default(), &reply).unwrap());
        assert_eq!(problems(&answers, &line), Vec::<String>::new(), "{line}");
    }
    for wrong in [
        json!({ "version": 1, "answer": "begun", "operation": { "id": "7-1" } }),
        json!({ "version": 1, "error": { "code": "busy", "details": { "with": "singing" } } }),
        json!({ "version": 1 }),
    ] {
        assert!(!problems(&answers, &wrong).is_empty(), "{wrong}");
    }
}
