//! `read`: text raw, images and PDF documents as blocks.

use super::{Places, Said, open_regular, path, reason};
use crate::protocol::{Block, ToolResult};
use base64::Engine as _;
use serde_json::Value;
use std::{
    io::{BufRead, BufReader, Read},
    path::Path,
};

/// Most bytes of text in one answer.
const TEXT_MAX: usize = 256 << 10;
/// Most bytes of an image, as base64.
const IMAGE_MAX: usize = 5 << 20;
/// Most bytes of a PDF document.
const PDF_MAX: usize = 20 << 20;

pub(super) fn run(places: &Places, input: &Value) -> Said {
    let path = path(places, input, "file_path")?;
    let range = range(input)?;
    let extension =
        path.extension().and_then(|text| text.to_str()).unwrap_or_default().to_lowercase();
    let media_type = match extension.as_str() {
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "pdf" => "application/pdf",
        _ => return text(&path, range),
    };
    if range.is_some() {
        return Err(format!("view_range is not supported for {media_type} files"));
    }
    binary(&path, media_type)
}

fn range(input: &Value) -> Result<Option<(u64, Option<u64>)>, String> {
    let wrong = || "view_range must be two whole numbers, first and last line".to_owned();
    let range = match &input["view_range"] {
        Value::Null => return Ok(None),
        Value::Array(range) => range,
        _ => return Err(wrong()),
    };
    let [start, end] = &range[..] else { return Err(wrong()) };
    let (start, end) = (start.as_i64().ok_or_else(wrong)?, end.as_i64().ok_or_else(wrong)?);
    let start = u64::try_from(start).unwrap_or(0).max(1);
    let end = u64::try_from(end).ok().filter(|end| *end > 0);
    if end.is_some_and(|end| end < start) {
        return Err(format!("view_range: the last line lies before the first, {start}"));
    }
    Ok(Some((start, end)))
}

fn binary(path: &Path, media_type: &str) -> Said {
    let file = open_regular(path).map_err(|error| reason(path, &error))?;
    let is_pdf = media_type == "application/pdf";
    let limit = if is_pdf { PDF_MAX } else { IMAGE_MAX / 4 * 3 };
    let mut data = Vec::new();
    file.take(limit as u64 + 1).read_to_end(&mut data).map_err(|error| reason(path, &error))?;
    if data.len() > limit {
        return Err(format!("{} is larger than {limit} bytes", path.display()));
    }
    let data = base64::engine::general_purpose::STANDARD.encode(data);
    let media_type = media_type.to_owned();
    let block = if is_pdf {
        Block::Document { media_type, data }
    } else {
        Block::Image { media_type, data }
    };
    Ok(ToolResult { content: vec![block], is_error: false })
}

fn text(path: &Path, range: Option<(u64, Option<u64>)>) -> Said {
    let file = open_regular(path).map_err(|error| reason(path, &error))?;
    let size = file.metadata().map_err(|error| reason(path, &error))?.len();
    let mut bytes = Vec::new();
    match range {
        None => {
            if size > TEXT_MAX as u64 {
                return Err(format!(
                    "{} is {size} bytes, exceeds {TEXT_MAX}-byte limit. Use the view_range parameter to read specific line ranges, e.g. view_range: [1, 500].",
                    path.display()
                ));
            }
            file.take(TEXT_MAX as u64 + 1)
                .read_to_end(&mut bytes)
                .map_err(|error| reason(path, &error))?;
        }
        Some((start, end)) => {
            let mut lines = BufReader::with_capacity(64 << 10, file);
            let mut number = 1;
            while end.is_none_or(|end| number <= end) {
                let wanted = number >= start;
                let count = line(&mut lines, wanted.then_some(&mut bytes))
                    .map_err(|error| reason(path, &error))?;
                if count == 0 {
                    break;
                }
                if bytes.len() > TEXT_MAX {
                    return Err(format!(
                        "the selected lines of {} exceed the {TEXT_MAX}-byte limit; choose a smaller view_range",
                        path.display()
                    ));
                }
                number += 1;
            }
            if bytes.is_empty() && start > 1 && number <= start {
                return Err(format!(
                    "{} has {} lines; view_range starts after its end",
                    path.display(),
                    number - 1
                ));
            }
        }
    }
    let text = String::from_utf8(bytes)
        .map_err(|_| format!("{} is not valid UTF-8 text", path.display()))?;
    Ok(ToolResult::text(text))
}

/// Reads one line, keeping it if wanted; gives up keeping past the limit so that a file without line ends costs no memory.
fn line(lines: &mut impl BufRead, mut keep: Option<&mut Vec<u8>>) -> std::io::Result<usize> {
    let mut count = 0;
    loop {
        let chunk = lines.fill_buf()?;
        if chunk.is_empty() {
            return Ok(count);
        }
        let end = chunk.iter().position(|byte| *byte == b'\n').map(|index| index + 1);
        let used = end.unwrap_or(chunk.len());
        if let Some(keep) = &mut keep
            && keep.len() <= TEXT_MAX
        {
            keep.extend_from_slice(&chunk[..used]);
        }
        lines.consume(used);
        count += used;
        if end.is_some() {
            return Ok(count);
        }
    }
}
