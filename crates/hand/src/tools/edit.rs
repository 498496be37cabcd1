//! `edit`: text replaced in place.

use super::{Places, Said, open_regular, path, reason, text, write::replace};
use crate::protocol::ToolResult;
use serde_json::Value;
use std::io::Read;

/// Largest file that can be edited, in bytes.
const MAX: u64 = 256 << 10;

pub(super) fn run(places: &Places, input: &Value) -> Said {
    let path = path(places, input, "file_path")?;
    let (old, new) = (text(input, "old_string")?, text(input, "new_string")?);
    let replace_all = match &input["replace_all"] {
        Value::Null => false,
        Value::Bool(flag) => *flag,
        _ => return Err("replace_all must be true or false".to_owned()),
    };
    if old.is_empty() {
        return Err("old_string must not be empty".to_owned());
    }
    let file = open_regular(&path).map_err(|error| reason(&path, &error))?;
    let mut content = Vec::new();
    file.take(MAX + 1).read_to_end(&mut content).map_err(|error| reason(&path, &error))?;
    if content.len() as u64 > MAX {
        return Err(format!("{} exceeds the {MAX}-byte limit", path.display()));
    }
    let content = String::from_utf8(content)
        .map_err(|_| format!("{} is not valid UTF-8 text", path.display()))?;
    let count = content.matches(old).count();
    if count == 0 {
        return Err(format!("old_string not found in {}", path.display()));
    }
    if count > 1 && !replace_all {
        return Err(format!(
            "old_string appears {count} times in {} (must be unique)",
            path.display()
        ));
    }
    replace(&path, content.replace(old, new).as_bytes()).map_err(|error| reason(&path, &error))?;
    Ok(ToolResult::text(format!("edited {} ({count} replacement(s))", path.display())))
}
