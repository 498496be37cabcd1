//! Reading what a hand says, as hostile input: only the shapes of the protocol, no unknown fields, and
//! never more memory than a small multiple of the bytes read. It trusts no length, count or type.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use vaquero_hand::pack::Piece;
use vaquero_hand::protocol::{Block, Refusal, State, ToolResult};

/// Most blocks in one result.
const MAX_BLOCKS: usize = 256;
/// Most text in one result, in bytes: a hand spills anything over 100,000 characters to a file.
const MAX_TEXT: usize = 1 << 20;
/// Most base64 in one result: a 20 MiB PDF and some.
const MAX_DATA: usize = 32 << 20;
/// Longest message of a refusal that is passed on.
const MAX_MESSAGE: usize = 1000;
const IMAGES: [&str; 4] = ["image/png", "image/jpeg", "image/gif", "image/webp"];
const DOCUMENTS: [&str; 1] = ["application/pdf"];

/// A response whose id and shape are known and whose content is still text.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<'a> {
    id: u64,
    #[serde(borrow, default)]
    ok: Option<&'a RawValue>,
    #[serde(borrow, default)]
    err: Option<&'a RawValue>,
}

/// What a hand answered.
#[derive(Debug)]
pub(crate) enum Answer {
    Hello { version: u32, generation: u64 },
    Run(ToolResult),
    Status(State, Option<ToolResult>),
    Ack,
    Cancel,
    File { data_b64: String, eof: bool },
    Pages(Vec<Piece>),
    Bytes { data_b64: String },
    Put,
    Refused(Refusal),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields<'a> {
    #[serde(borrow)]
    op: Cow<'a, str>,
    version: Option<u32>,
    generation: Option<u64>,
    #[expect(dead_code, reason = "part of the shape; what a hand calls itself is of no use")]
    pid: Option<u32>,
    #[serde(borrow)]
    result: Option<RawResult<'a>>,
    state: Option<State>,
    data_b64: Option<String>,
    pages: Option<Vec<Piece>>,
    #[expect(dead_code, reason = "part of the shape; a hand's word on sizes is of no use")]
    size: Option<u64>,
    eof: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawResult<'a> {
    #[serde(borrow)]
    content: RawBlocks<'a>,
    is_error: bool,
}

/// A list of blocks that stops being read when it is too long.
struct RawBlocks<'a>(Vec<RawBlock<'a>>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBlock<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    text: Option<String>,
    #[serde(borrow)]
    media_type: Option<Cow<'a, str>>,
    data: Option<String>,
}

impl<'de: 'a, 'a> Deserialize<'de> for RawBlocks<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bounded;
        impl<'de> Visitor<'de> for Bounded {
            type Value = Vec<RawBlock<'de>>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {MAX_BLOCKS} blocks")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut blocks = Vec::new();
                while let Some(block) = seq.next_element()? {
                    if blocks.len() == MAX_BLOCKS {
                        return Err(de::Error::custom("too many blocks"));
                    }
                    blocks.push(block);
                }
                Ok(blocks)
            }
        }
        deserializer.deserialize_seq(Bounded).map(RawBlocks)
    }
}

/// Reads one frame: the id of the request it answers, and the answer.
pub(crate) fn read(frame: &[u8]) -> Result<(u64, Answer), String> {
    let wrong = |e: serde_json::Error| format!("not an answer: {e}");
    let envelope: Envelope<'_> = serde_json::from_slice(frame).map_err(wrong)?;
    let answer = match (envelope.ok, envelope.err) {
        (Some(ok), None) => answer(serde_json::from_str(ok.get()).map_err(wrong)?)?,
        (None, Some(err)) => {
            let mut refusal: Refusal = serde_json::from_str(err.get()).map_err(wrong)?;
            refusal.message = refusal.message.chars().take(MAX_MESSAGE).collect();
            Answer::Refused(refusal)
        }
        _ => return Err("neither a success nor a refusal".to_owned()),
    };
    Ok((envelope.id, answer))
}

fn answer(fields: Fields<'_>) -> Result<Answer, String> {
    let incomplete = || format!("an incomplete answer to {:.20}", fields.op);
    match &*fields.op {
        "hello" => match (fields.version, fields.generation) {
            (Some(version), Some(generation)) => Ok(Answer::Hello { version, generation }),
            _ => Err(incomplete()),
        },
        "run" => match fields.result {
            Some(result) => result.checked().map(Answer::Run),
            None => Err(incomplete()),
        },
        "status" => {
            let Some(state) = fields.state else { return Err(incomplete()) };
            let result = fields.result.map(RawResult::checked).transpose()?;
            Ok(Answer::Status(state, result))
        }
        "ack" => Ok(Answer::Ack),
        "cancel" => Ok(Answer::Cancel),
        "read_file" => match (fields.data_b64, fields.eof) {
            (Some(data_b64), Some(eof)) => Ok(Answer::File { data_b64, eof }),
            _ => Err(incomplete()),
        },
        "pack" => match fields.pages {
            Some(pages) if pages.iter().all(is_piece) => Ok(Answer::Pages(pages)),
            _ => Err(incomplete()),
        },
        "bytes" => match fields.data_b64 {
            Some(data_b64) => Ok(Answer::Bytes { data_b64 }),
            None => Err(incomplete()),
        },
        "put" => Ok(Answer::Put),
        _ => Err("an answer to something that was not asked".to_owned()),
    }
}

fn is_piece(piece: &Piece) -> bool {
    piece.sha256.len() == 64
        && piece.sha256.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

impl RawResult<'_> {
    fn checked(self) -> Result<ToolResult, String> {
        let (mut text_left, mut data_left) = (MAX_TEXT, MAX_DATA);
        let mut content = Vec::with_capacity(self.content.0.len());
        for block in self.content.0 {
            content.push(match (&*block.kind, block.text, block.media_type, block.data) {
                ("text", Some(text), None, None) => {
                    text_left = spend(text_left, text.len())?;
                    Block::Text { text }
                }
                ("image", None, Some(media_type), Some(data)) => {
                    data_left = spend(data_left, data.len())?;
                    let media_type = medium(&media_type, &IMAGES)?;
                    Block::Image { media_type, data: base64(data)? }
                }
                ("document", None, Some(media_type), Some(data)) => {
                    data_left = spend(data_left, data.len())?;
                    let media_type = medium(&media_type, &DOCUMENTS)?;
                    Block::Document { media_type, data: base64(data)? }
                }
                _ => return Err("a block of no known shape".to_owned()),
            });
        }
        Ok(ToolResult { content, is_error: self.is_error })
    }
}

fn spend(left: usize, size: usize) -> Result<usize, String> {
    left.checked_sub(size).ok_or_else(|| "a result larger than any tool makes".to_owned())
}

fn medium(given: &str, allowed: &[&str]) -> Result<String, String> {
    let found = allowed.iter().find(|a| **a == given);
    found.map(|a| (*a).to_owned()).ok_or_else(|| "a media type that no tool makes".to_owned())
}

fn base64(data: String) -> Result<String, String> {
    let plain = data.trim_end_matches('=');
    let ok = data.len() - plain.len() <= 2
        && data.len().is_multiple_of(4)
        && plain.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/');
    if ok { Ok(data) } else { Err("data that is not base64".to_owned()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::{Index, select};
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    use vaquero_hand::protocol::{Outcome, RefusalCode, Reply, Response};

    use super::*;

    fn frame(outcome: Outcome) -> Vec<u8> {
        serde_json::to_vec(&Response { id: 7, outcome }).unwrap()
    }

    #[test]
    fn honest_answers_are_understood() {
        let result = ToolResult {
            content: vec![
                Block::Text { text: "hi\n\u{1f600}".to_owned() },
                Block::Image { media_type: "image/png".to_owned(), data: "AAAA".to_owned() },
                Block::Document {
                    media_type: "application/pdf".to_owned(),
                    data: "AA==".to_owned(),
                },
            ],
            is_error: true,
        };
        let run = frame(Outcome::Ok(Reply::Run { result: result.clone() }));
        assert!(matches!(read(&run), Ok((7, Answer::Run(got))) if got == result));
        let status = Reply::Status { state: State::Finished, result: Some(result.clone()) };
        let status = frame(Outcome::Ok(status));
        let got = read(&status).unwrap().1;
        assert!(matches!(got, Answer::Status(State::Finished, Some(got)) if got == result));
        let hello = frame(Outcome::Ok(Reply::Hello { version: 1, generation: 9, pid: 1 }));
        assert!(matches!(read(&hello).unwrap().1, Answer::Hello { version: 1, generation: 9 }));
        assert!(matches!(read(&frame(Outcome::Ok(Reply::Ack {}))).unwrap().1, Answer::Ack));
        let file = Reply::ReadFile { data_b64: "AAAA".to_owned(), size: 3, eof: true };
        assert!(matches!(read(&frame(Outcome::Ok(file))).unwrap().1, Answer::File { .. }));
        let refusal = Refusal { code: RefusalCode::StaleFence, message: "x".repeat(5000) };
        let got = read(&frame(Outcome::Err(refusal))).unwrap().1;
        assert!(matches!(got, Answer::Refused(r) if r.message.len() == MAX_MESSAGE));
    }

    #[test]
    fn hostile_answers_are_refused() {
        let many = format!(
            r#"{{"id":1,"ok":{{"op":"run","result":{{"is_error":false,"content":[{}]}}}}}}"#,
            vec![r#"{"type":"text","text":""}"#; MAX_BLOCKS + 1].join(",")
        );
        let long = format!(
            r#"{{"id":1,"ok":{{"op":"run","result":{{"is_error":false,"content":[{{"type":"text","text":"{}"}}]}}}}}}"#,
            "x".repeat(MAX_TEXT + 1)
        );
        let deep = format!(r#"{{"id":1,"ok":{}1{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        for bad in [
            "",
            "null",
            "[]",
            r#"{"id":1}"#,
            r#"{"id":-1,"ok":{"op":"ack"}}"#,
            r#"{"id":1,"ok":{"op":"ack"},"err":{"code":"io","message":""}}"#,
            r#"{"id":1,"ok":{"op":"ack"},"extra":1}"#,
            r#"{"id":1,"ok":{"op":"ack","junk":[1,1,1]}}"#,
            r#"{"id":1,"ok":{"op":"write_file","size":1}}"#,
            r#"{"id":1,"ok":{"op":"run"}}"#,
            r#"{"id":1,"ok":{"op":"run","result":{"is_error":false,"content":[{"type":"tool_use"}]}}}"#,
            r#"{"id":1,"ok":{"op":"run","result":{"is_error":false,"content":[{"type":"text","text":"a","data":"AAAA"}]}}}"#,
            r#"{"id":1,"ok":{"op":"run","result":{"is_error":false,"content":[{"type":"image","media_type":"text/html","data":"AAAA"}]}}}"#,
            r#"{"id":1,"ok":{"op":"run","result":{"is_error":false,"content":[{"type":"image","media_type":"image/png","data":"<x>!"}]}}}"#,
            r#"{"id":1,"err":{"code":"no_such_code","message":""}}"#,
            &many,
            &long,
            &deep,
        ] {
            assert!(read(bad.as_bytes()).is_err(), "{bad:.80}");
        }
    }

    /// Answers with a few bytes changed.
    fn frames() -> impl Strategy<Value = Vec<u8>> {
        let result = r#"{"content":[{"type":"text","text":"hi"},{"type":"image","media_type":"image/png","data":"AAAA"}],"is_error":false}"#;
        let corpus = vec![
            format!(r#"{{"id":7,"ok":{{"op":"run","result":{result}}}}}"#),
            format!(r#"{{"id":7,"ok":{{"op":"status","state":"finished","result":{result}}}}}"#),
            r#"{"id":7,"ok":{"op":"hello","version":3,"generation":9,"pid":1}}"#.to_owned(),
            r#"{"id":7,"ok":{"op":"read_file","data_b64":"AAAA","size":3,"eof":true}}"#.to_owned(),
            r#"{"id":7,"ok":{"op":"pack","pages":[{"sha256":"00","length":3}]}}"#.to_owned(),
            r#"{"id":7,"err":{"code":"stale_fence","message":"no"}}"#.to_owned(),
        ];
        let edits = proptest::collection::vec((any::<Index>(), any::<u8>(), 0..4_u8), 0..8);
        (select(corpus), edits).prop_map(|(frame, edits)| {
            let mut bytes = frame.into_bytes();
            for (at, byte, how) in edits {
                let at = at.index(bytes.len().max(1)).min(bytes.len());
                match how {
                    0 => bytes.insert(at, byte),
                    1 if at < bytes.len() => bytes[at] = byte,
                    2 if at < bytes.len() => drop(bytes.remove(at)),
                    _ => bytes.extend_from_within(at..),
                }
            }
            bytes
        })
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "it goes on for as long as it is told")]
    fn frames_of_any_make_are_understood_or_refused() {
        let named = std::env::var("VAQUERO_TEST_FUZZ_SECONDS").ok();
        let seconds = named.and_then(|text| text.parse().ok()).unwrap_or(3);
        let until = std::time::Instant::now() + std::time::Duration::from_secs(seconds);
        let (strategy, mut runner) = (frames(), TestRunner::default());
        let (mut understood, mut refused) = (0, 0);
        while std::time::Instant::now() < until {
            let frame = strategy.new_tree(&mut runner).unwrap().current();
            match read(&frame) {
                Ok((_, Answer::Run(result) | Answer::Status(_, Some(result)))) => {
                    let text = |block: &Block| match block {
                        Block::Text { text } => text.len(),
                        Block::Image { data, .. } | Block::Document { data, .. } => data.len(),
                    };
                    let size: usize = result.content.iter().map(text).sum();
                    assert!(size <= frame.len(), "more than was said");
                    understood += 1;
                }
                Ok(_) => understood += 1,
                Err(_) => refused += 1,
            }
        }
        assert!(understood > 100 && refused > 100, "{understood} understood, {refused} refused");
    }
}
