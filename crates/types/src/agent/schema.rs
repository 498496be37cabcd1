//! The JSON Schema of a custom tool's input: what the API accepts of it.

use crate::{
    Invalid,
    fields::{join, kind},
};
use serde_json::Value;

/// Checks a schema and gives it back as it came.
pub(super) fn decode(value: Value, path: &str) -> Result<Value, Invalid> {
    let Value::Object(schema) = &value else {
        return Err(Invalid::new(path, format!("expected an object, got {}", kind(&value))));
    };
    match schema.get("type") {
        Some(Value::String(word)) if word == "object" => {}
        Some(_) => return Err(Invalid::new(join(path, "type"), "must be `object`")),
        None => return Err(Invalid::new(join(path, "type"), "field required")),
    }
    for word in ["oneOf", "anyOf", "allOf"] {
        if schema.contains_key(word) {
            return Err(Invalid::new(
                join(path, word),
                "is not allowed at the top level of an input schema",
            ));
        }
    }
    match schema.get("properties") {
        None | Some(Value::Null) => {}
        Some(Value::Object(properties)) => {
            for (name, property) in properties {
                let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
                let at = join(&join(path, "properties"), name);
                if name.is_empty() || name.len() > 64 || !name.chars().all(allowed) {
                    let reason = "property names have 1 to 64 letters, digits, `_`, `.` or `-`";
                    return Err(Invalid::new(at, reason));
                }
                if !property.is_object() && !property.is_boolean() {
                    return Err(Invalid::new(
                        at,
                        format!("expected a schema, got {}", kind(property)),
                    ));
                }
            }
        }
        Some(other) => {
            let reason = format!("expected an object, got {}", kind(other));
            return Err(Invalid::new(join(path, "properties"), reason));
        }
    }
    match schema.get("required") {
        None | Some(Value::Null) => {}
        Some(Value::Array(names)) if names.iter().all(Value::is_string) => {}
        Some(_) => {
            return Err(Invalid::new(join(path, "required"), "expected an array of strings"));
        }
    }
    no_references(&value, path, 0)?;
    Ok(value)
}

fn no_references(value: &Value, path: &str, depth: usize) -> Result<(), Invalid> {
    if depth > 64 {
        return Err(Invalid::new(path, "is nested too deeply"));
    }
    match value {
        Value::Object(fields) => {
            for (name, inner) in fields {
                let at = join(path, name);
                if name == "$ref" && inner.is_string() {
                    return Err(Invalid::new(
                        at,
                        "references are not allowed; write the schema out",
                    ));
                }
                no_references(inner, &at, depth + 1)?;
            }
            Ok(())
        }
        Value::Array(items) => items
            .iter()
            .enumerate()
            .try_for_each(|(index, item)| no_references(item, &join(path, index), depth + 1)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(()),
    }
}
