//! Content blocks of client events: what a message or a tool result may hold.

use crate::{
    Fields, Invalid,
    fields::{Patch, join, one_of},
};
use base64::Engine as _;
use serde_json::{Value, json};

/// Most blocks in one event.
const BLOCKS_MAX: usize = 1_000;

/// Where blocks stand decides which kinds are allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// `user.message`.
    Message,
    /// A tool's result.
    Result,
    /// `system.message`.
    System,
}

/// Decodes an array of blocks, with at least `min`; each comes back as responses show it, nullable fields in place.
pub fn decode_blocks(
    fields: &mut Fields,
    name: &str,
    place: Place,
    min: usize,
) -> Result<Option<Vec<Value>>, Invalid> {
    let at = fields.at(name);
    let blocks = fields.list(name, BLOCKS_MAX, |value, at| block(value, at, place))?;
    if let Some(blocks) = &blocks
        && blocks.len() < min
    {
        return Err(Invalid::new(at, "at least one content block is required"));
    }
    Ok(blocks)
}

fn block(value: Value, at: String, place: Place) -> Result<Value, Invalid> {
    let known: &[&str] = match place {
        Place::Message => &["text", "image", "document"],
        Place::Result => &["text", "image", "document", "search_result"],
        Place::System => &["text"],
    };
    let mut fields = Fields::new(value, at)?;
    let kind = fields.tag()?;
    if kind == "redacted" {
        return Err(fields.invalid("type", "redacted blocks cannot be sent"));
    }
    if !known.contains(&kind.as_str()) {
        return Err(fields.unknown_tag(&kind, known));
    }
    let block = match kind.as_str() {
        "text" => text(&mut fields)?,
        "image" => json!({ "type": "image", "source": image(&mut fields)? }),
        "document" => json!({
            "type": "document",
            "source": document(&mut fields)?,
            "title": fields.text("title", 0, 1_000)?,
            "context": fields.text("context", 0, 100_000)?,
        }),
        _ => search_result(&mut fields)?,
    };
    fields.finish()?;
    Ok(block)
}

fn text(fields: &mut Fields) -> Result<Value, Invalid> {
    Ok(json!({ "type": "text", "text": fields.required_text("text", 1, usize::MAX)? }))
}

fn source(fields: &mut Fields) -> Result<Fields, Invalid> {
    let at = fields.at("source");
    Fields::new(fields.required("source")?, at)
}

fn image(fields: &mut Fields) -> Result<Value, Invalid> {
    let mut source = source(fields)?;
    let kind = source.tag()?;
    let value = match kind.as_str() {
        "base64" => {
            let known = ["image/jpeg", "image/png", "image/gif", "image/webp"];
            base64(&mut source, &known)?
        }
        "url" => url(&mut source)?,
        "file" => return Err(no_files(&source)),
        _ => return Err(source.unknown_tag(&kind, &["base64", "url", "file"])),
    };
    source.finish()?;
    Ok(value)
}

fn document(fields: &mut Fields) -> Result<Value, Invalid> {
    let mut source = source(fields)?;
    let kind = source.tag()?;
    let value = match kind.as_str() {
        "base64" => base64(&mut source, &["application/pdf"])?,
        "text" => {
            let media_type = source.required_string("media_type")?;
            if media_type != "text/plain" {
                return Err(one_of(&source.at("media_type"), &media_type, &["text/plain"]));
            }
            let data = source.required_text("data", 1, usize::MAX)?;
            json!({ "type": "text", "media_type": media_type, "data": data })
        }
        "url" => url(&mut source)?,
        "file" => return Err(no_files(&source)),
        _ => return Err(source.unknown_tag(&kind, &["base64", "text", "url", "file"])),
    };
    source.finish()?;
    Ok(value)
}

fn no_files(source: &Fields) -> Invalid {
    source.invalid(
        "type",
        "files are not available on this server yet; send the data as base64 or text",
    )
}

fn base64(source: &mut Fields, media_types: &[&str]) -> Result<Value, Invalid> {
    let media_type = source.required_string("media_type")?;
    if !media_types.contains(&media_type.as_str()) {
        return Err(one_of(&source.at("media_type"), &media_type, media_types));
    }
    let data = source.required_text("data", 1, usize::MAX)?;
    if base64::engine::general_purpose::STANDARD.decode(&data).is_err() {
        return Err(source.invalid("data", "is not valid base64"));
    }
    Ok(json!({ "type": "base64", "media_type": media_type, "data": data }))
}

fn url(source: &mut Fields) -> Result<Value, Invalid> {
    let url = source.required_text("url", 1, 8_192)?;
    if !(url.starts_with("https://") || url.starts_with("http://")) {
        return Err(source.invalid("url", "expected an http or https URL"));
    }
    Ok(json!({ "type": "url", "url": url }))
}

fn search_result(fields: &mut Fields) -> Result<Value, Invalid> {
    let source = fields.required_text("source", 1, 8_192)?;
    let title = fields.required_text("title", 1, 8_192)?;
    let at = fields.at("content");
    let content = match fields.patch("content") {
        Patch::Set(value) => crate::fields::array(value, &at, BLOCKS_MAX)?,
        Patch::Absent | Patch::Null => return Err(Invalid::new(at, "field required")),
    };
    let content = content
        .into_iter()
        .enumerate()
        .map(|(index, value)| block(value, join(&at, index), Place::System))
        .collect::<Result<Vec<Value>, Invalid>>()?;
    let enabled = match fields.object("citations")? {
        None => false,
        Some(mut citations) => {
            let enabled = citations.boolean("enabled")?.unwrap_or(false);
            citations.finish()?;
            enabled
        }
    };
    Ok(json!({
        "type": "search_result", "source": source, "title": title, "content": content,
        "citations": { "enabled": enabled },
    }))
}
