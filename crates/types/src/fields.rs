//! Decoding request bodies field by field, so that every refusal names the exact path. Unknown fields are refused by `finish`. It only reads; defaults belong to the types.

use crate::Timestamp;
use serde_json::{Map, Value};
use std::{collections::BTreeMap, fmt};

/// Why a request was refused: `path: reason`.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub struct Invalid {
    /// Dotted path of the offending field, empty for the body itself.
    pub path: String,
    /// What is wrong with it.
    pub reason: String,
    /// A machine-readable reason, where the API names one.
    pub error_code: Option<&'static str>,
}

impl Invalid {
    /// A refusal of the field at `path`.
    pub fn new(path: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { path: path.into(), reason: reason.into(), error_code: None }
    }

    /// The same refusal with a machine-readable reason.
    #[must_use]
    pub fn with_error_code(mut self, error_code: &'static str) -> Self {
        self.error_code = Some(error_code);
        self
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.reason)
        } else {
            write!(f, "{}: {}", self.path, self.reason)
        }
    }
}

/// A field of an update: left out, null, or a value.
#[derive(Clone, Debug, PartialEq, Default)]
pub enum Patch<T> {
    /// Not in the body: keep what is stored.
    #[default]
    Absent,
    /// Explicitly null.
    Null,
    /// A new value.
    Set(T),
}

/// `path` extended by `name`.
pub fn join(path: &str, name: impl fmt::Display) -> String {
    if path.is_empty() { name.to_string() } else { format!("{path}.{name}") }
}

/// An object being read; fields are taken out one by one and `finish` refuses what is left.
#[derive(Debug)]
pub struct Fields {
    path: String,
    map: Map<String, Value>,
}

impl Fields {
    /// The object at `path`, or the refusal of anything that is not an object.
    pub fn new(value: Value, path: impl Into<String>) -> Result<Self, Invalid> {
        let path = path.into();
        match value {
            Value::Object(map) => Ok(Self { path, map }),
            other => Err(Invalid::new(path, format!("expected an object, got {}", kind(&other)))),
        }
    }

    /// Where this object stands in the body.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The path of one of its fields.
    pub fn at(&self, name: &str) -> String {
        join(&self.path, name)
    }

    /// A refusal of one of its fields.
    pub fn invalid(&self, name: &str, reason: impl Into<String>) -> Invalid {
        Invalid::new(self.at(name), reason)
    }

    /// Whether the field is present, null included.
    pub fn has(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    /// Takes a field; null counts as absent.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.map.shift_remove(name).filter(|value| !value.is_null())
    }

    /// Takes a field, telling null from absent.
    pub fn patch(&mut self, name: &str) -> Patch<Value> {
        match self.map.shift_remove(name) {
            None => Patch::Absent,
            Some(Value::Null) => Patch::Null,
            Some(value) => Patch::Set(value),
        }
    }

    /// Takes a field that must be there and not null.
    pub fn required(&mut self, name: &str) -> Result<Value, Invalid> {
        self.take(name).ok_or_else(|| self.invalid(name, "field required"))
    }

    /// Takes an optional string.
    pub fn string(&mut self, name: &str) -> Result<Option<String>, Invalid> {
        self.take(name).map(|value| string(value, &self.at(name))).transpose()
    }

    /// Takes a required string.
    pub fn required_string(&mut self, name: &str) -> Result<String, Invalid> {
        string(self.required(name)?, &self.at(name))
    }

    /// Takes an optional string of `min..=max` characters.
    pub fn text(&mut self, name: &str, min: usize, max: usize) -> Result<Option<String>, Invalid> {
        let Some(text) = self.string(name)? else { return Ok(None) };
        length(&text, &self.at(name), min, max)?;
        Ok(Some(text))
    }

    /// Takes a required string of `min..=max` characters.
    pub fn required_text(&mut self, name: &str, min: usize, max: usize) -> Result<String, Invalid> {
        let text = self.required_string(name)?;
        length(&text, &self.at(name), min, max)?;
        Ok(text)
    }

    /// Takes an optional boolean.
    pub fn boolean(&mut self, name: &str) -> Result<Option<bool>, Invalid> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => {
                Err(self.invalid(name, format!("expected a boolean, got {}", kind(&other))))
            }
        }
    }

    /// Takes an optional whole number of at least `min`.
    pub fn integer(&mut self, name: &str, min: i64) -> Result<Option<i64>, Invalid> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let Some(number) = value.as_i64() else {
            return Err(
                self.invalid(name, format!("expected a whole number, got {}", kind(&value)))
            );
        };
        if number < min {
            return Err(self.invalid(name, format!("must be at least {min}")));
        }
        Ok(Some(number))
    }

    /// Takes an optional instant.
    pub fn timestamp(&mut self, name: &str) -> Result<Option<Timestamp>, Invalid> {
        let Some(text) = self.string(name)? else { return Ok(None) };
        Timestamp::parse(&text)
            .map(Some)
            .ok_or_else(|| self.invalid(name, "expected an RFC 3339 date and time"))
    }

    /// Takes an optional object.
    pub fn object(&mut self, name: &str) -> Result<Option<Fields>, Invalid> {
        let at = self.at(name);
        self.take(name).map(|value| Self::new(value, at)).transpose()
    }

    /// Takes an optional array of at most `max` items; absent and null are `None`.
    pub fn array(&mut self, name: &str, max: usize) -> Result<Option<Vec<Value>>, Invalid> {
        let at = self.at(name);
        self.take(name).map(|value| array(value, &at, max)).transpose()
    }

    /// Takes an optional array and decodes each item with its own path.
    pub fn list<T>(
        &mut self,
        name: &str,
        max: usize,
        decode: impl Fn(Value, String) -> Result<T, Invalid>,
    ) -> Result<Option<Vec<T>>, Invalid> {
        let at = self.at(name);
        let Some(items) = self.array(name, max)? else { return Ok(None) };
        let decoded = items
            .into_iter()
            .enumerate()
            .map(|(index, item)| decode(item, join(&at, index)))
            .collect::<Result<Vec<T>, Invalid>>()?;
        Ok(Some(decoded))
    }

    /// Takes the required `type` string of a tagged union.
    pub fn tag(&mut self) -> Result<String, Invalid> {
        self.required_string("type")
    }

    /// The refusal of an unknown `type`.
    pub fn unknown_tag(&self, tag: &str, known: &[&str]) -> Invalid {
        self.invalid(
            "type",
            format!("unknown type `{}`; expected one of {}", clip(tag), list_of(known)),
        )
    }

    /// Refuses every field that was not taken.
    pub fn finish(self) -> Result<(), Invalid> {
        match self.map.keys().next() {
            None => Ok(()),
            Some(name) => Err(Invalid::new(
                join(&self.path, clip(name)),
                "unknown field: extra inputs are not permitted",
            )),
        }
    }
}

/// A string, or the refusal of anything else at `path`.
pub fn string(value: Value, path: &str) -> Result<String, Invalid> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(Invalid::new(path, format!("expected a string, got {}", kind(&other)))),
    }
}

/// An array of at most `max` items, or a refusal at `path`.
pub fn array(value: Value, path: &str, max: usize) -> Result<Vec<Value>, Invalid> {
    match value {
        Value::Array(items) if items.len() <= max => Ok(items),
        Value::Array(items) => {
            Err(Invalid::new(path, format!("at most {max} items are allowed, got {}", items.len())))
        }
        other => Err(Invalid::new(path, format!("expected an array, got {}", kind(&other)))),
    }
}

/// Checks a string's length in characters.
pub fn length(text: &str, path: &str, min: usize, max: usize) -> Result<(), Invalid> {
    let characters = text.chars().count();
    if characters < min {
        return Err(Invalid::new(path, format!("minimum string length is {min}")));
    }
    if characters > max {
        return Err(Invalid::new(path, format!("maximum string length is {max}")));
    }
    Ok(())
}

/// The refusal of a value that is not among the known ones.
pub fn one_of(path: &str, got: &str, known: &[&str]) -> Invalid {
    Invalid::new(path, format!("unknown value `{}`; expected one of {}", clip(got), list_of(known)))
}

/// Most pairs a metadata bag may hold.
pub const METADATA_PAIRS: usize = 16;

fn metadata_entry(key: &str, value: &str, path: &str) -> Result<(), Invalid> {
    let at = join(path, clip(key));
    if key.is_empty() || key.chars().count() > 64 {
        return Err(Invalid::new(at, "metadata keys have 1 to 64 characters")
            .with_error_code("invalid_metadata"));
    }
    length(value, &at, 0, 512).map_err(|invalid| invalid.with_error_code("invalid_metadata"))
}

fn metadata_size(bag: &BTreeMap<String, String>, path: &str) -> Result<(), Invalid> {
    if bag.len() > METADATA_PAIRS {
        let reason = format!("at most {METADATA_PAIRS} pairs are allowed, got {}", bag.len());
        return Err(Invalid::new(path, reason).with_error_code("invalid_metadata"));
    }
    Ok(())
}

impl Fields {
    /// Takes the metadata of a new resource.
    pub fn metadata(&mut self, name: &str) -> Result<BTreeMap<String, String>, Invalid> {
        let Some(fields) = self.object(name)? else { return Ok(BTreeMap::new()) };
        let path = fields.path;
        let mut bag = BTreeMap::new();
        for (key, value) in fields.map {
            let value = string(value, &join(&path, clip(&key)))?;
            metadata_entry(&key, &value, &path)?;
            bag.insert(key, value);
        }
        metadata_size(&bag, &path)?;
        Ok(bag)
    }

    /// Takes a metadata patch and applies it to `stored`: null deletes a key, and so does an empty string where `empty_deletes`. A null bag changes nothing.
    pub fn patch_metadata(
        &mut self,
        name: &str,
        stored: &BTreeMap<String, String>,
        empty_deletes: bool,
    ) -> Result<BTreeMap<String, String>, Invalid> {
        let mut bag = stored.clone();
        let Some(fields) = self.object(name)? else { return Ok(bag) };
        let path = fields.path;
        for (key, value) in fields.map {
            if value.is_null() || (empty_deletes && value == "") {
                bag.remove(&key);
                continue;
            }
            let value = string(value, &join(&path, clip(&key)))?;
            metadata_entry(&key, &value, &path)?;
            bag.insert(key, value);
        }
        metadata_size(&bag, &path)?;
        Ok(bag)
    }
}

fn clip(text: &str) -> String {
    let mut clipped: String = text.chars().take(80).collect();
    if clipped.len() < text.len() {
        clipped.push('…');
    }
    clipped
}

fn list_of(known: &[&str]) -> String {
    known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// The JSON name of a value's kind, for messages.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_left_is_named_with_its_path() {
        let mut fields =
            Fields::new(json!({"a": 1, "b": {"c": true}}), "events.0").expect("object");
        assert_eq!(fields.integer("a", 0), Ok(Some(1)));
        let error = fields.finish().expect_err("b is left");
        assert_eq!(error.to_string(), "events.0.b: unknown field: extra inputs are not permitted");
    }

    #[test]
    fn lengths_count_characters() {
        let mut fields = Fields::new(json!({"text": ""}), "").expect("object");
        let error = fields.required_text("text", 1, 5).expect_err("empty");
        assert_eq!(error.to_string(), "text: minimum string length is 1");
    }

    #[test]
    fn metadata_patches_merge() {
        let stored =
            BTreeMap::from([("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())]);
        let mut fields = Fields::new(json!({"m": {"a": null, "c": "3"}}), "").expect("object");
        let merged = fields.patch_metadata("m", &stored, false).expect("valid");
        assert_eq!(merged.keys().collect::<Vec<_>>(), ["b", "c"]);
    }
}
