//! Checks a value by a JSON Schema, as far as the documents of this API need it: a keyword that is not known here is a fault of the test, so nothing
//! passes because it was not looked at.

use serde_json::Value;

/// Says nothing of a value.
const REMARKS: [&str; 7] = ["$schema", "$defs", "title", "description", "default", "format", "deprecated"];

/// What is wrong with the value; nothing: it keeps to the schema.
pub fn problems(root: &Value, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    check(root, root, value, "", &mut found);
    found
}

fn keeps(root: &Value, schema: &Value, value: &Value) -> bool {
    let mut found = Vec::new();
    check(root, schema, value, "", &mut found);
    found.is_empty()
}

fn check(root: &Value, schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    let schema = match schema {
        Value::Bool(true) => return,
        Value::Bool(false) => return found.push(format!("{at}: nothing may be here")),
        schema => schema.as_object().expect("a schema"),
    };
    for (keyword, says) in schema {
        match keyword.as_str() {
            remark if REMARKS.contains(&remark) => {}
            "$ref" => {
                let place = says.as_str().unwrap().strip_prefix('#').expect("a place in this document");
                check(root, root.pointer(place).expect("what is referred to"), value, at, found);
            }
            "type" => {
                let names: Vec<_> = says.as_array().map_or(vec![says], |all| all.iter().collect());
                if !names.iter().any(|name| is(name.as_str().unwrap(), value)) {
                    found.push(format!("{at}: {value} is no {says}"));
                }
            }
            "const" if value != says => found.push(format!("{at}: {value} is not {says}")),
            "enum" if !says.as_array().unwrap().contains(value) => {
                found.push(format!("{at}: {value} is none of {says}"))
            }
            "const" | "enum" => {}
            "oneOf" | "anyOf" => {
                let fitting = says.as_array().unwrap().iter().filter(|one| keeps(root, one, value)).count();
                if fitting == 0 || keyword == "oneOf" && fitting > 1 {
                    found.push(format!("{at}: {value} fits {fitting} of the variants"));
                }
            }
            "allOf" => {
                for one in says.as_array().unwrap() {
                    check(root, one, value, at, found);
                }
            }
            "required" => {
                for name in says.as_array().unwrap().iter().filter_map(Value::as_str) {
                    if value.as_object().is_some_and(|object| !object.contains_key(name)) {
                        found.push(format!("{at}: '{name}' is missing"));
                    }
                }
            }
            "properties" => {
                for (name, of) in says.as_object().unwrap() {
                    if let Some(value) = value.get(name) {
                        check(root, of, value, &format!("{at}/{name}"), found);
                    }
                }
            }
            "additionalProperties" => {
                assert_eq!(says, false, "{at}");
                let known = schema.get("properties").and_then(Value::as_object);
                for name in value.as_object().into_iter().flat_map(|object| object.keys()) {
                    if known.is_none_or(|known| !known.contains_key(name)) {
                        found.push(format!("{at}: '{name}' is not known"));
                    }
                }
            }
            "items" => {
                for (n, item) in value.as_array().into_iter().flatten().enumerate() {
                    check(root, says, item, &format!("{at}/{n}"), found);
                }
            }
            "minimum" if value.as_f64().is_some_and(|n| n < says.as_f64().unwrap()) => {
                found.push(format!("{at}: {value} is too small"))
            }
            "maximum" if value.as_f64().is_some_and(|n| n > says.as_f64().unwrap()) => {
                found.push(format!("{at}: {value} is too great"))
            }
            "minLength" if value.as_str().is_some_and(|s| (s.chars().count() as u64) < says.as_u64().unwrap()) => {
                found.push(format!("{at}: {value} is too short"));
            }
            "maxLength" if value.as_str().is_some_and(|s| s.chars().count() as u64 > says.as_u64().unwrap()) => {
                found.push(format!("{at}: {value} is too long"));
            }
            "minimum" | "maximum" | "minLength" | "maxLength" => {}
            other => panic!("{at}: the keyword '{other}' is not known here"),
        }
    }
}

fn is(name: &str, value: &Value) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "number" => value.is_number(),
        "integer" => value.is_u64() || value.is_i64(),
        "object" => value.is_object(),
        "array" => value.is_array(),
        other => panic!("'{other}' is no type"),
    }
}
