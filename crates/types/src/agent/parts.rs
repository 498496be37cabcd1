//! The smaller parts of an agent: model, MCP servers, skills, execution identity.

use crate::{
    Fields, Invalid, Patch,
    fields::{array, join, length, one_of},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeSet;

/// How hard the model thinks; on the wire `{"type":"high"}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Effort {
    /// Least.
    Low,
    /// Between.
    Medium,
    /// What models do unless told otherwise.
    #[default]
    High,
    /// More.
    Xhigh,
    /// Most.
    Max,
}

impl Effort {
    /// The wire's word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Xhigh => "xhigh",
            Self::Max => "max",
        }
    }

    fn decode(value: Value, path: &str) -> Result<Self, Invalid> {
        let (word, path) = match value {
            Value::String(word) => (word, path.to_owned()),
            value => {
                let mut fields = Fields::new(value, path)?;
                let word = fields.tag()?;
                fields.finish()?;
                (word, join(path, "type"))
            }
        };
        match word.as_str() {
            "low" => Ok(Self::Low),
            "medium" => Ok(Self::Medium),
            "high" => Ok(Self::High),
            "xhigh" => Ok(Self::Xhigh),
            "max" => Ok(Self::Max),
            other => Err(one_of(&path, other, &["low", "medium", "high", "xhigh", "max"])),
        }
    }
}

/// How fast the model answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Speed {
    /// As usual.
    #[default]
    Standard,
    /// Faster, at a higher price.
    Fast,
}

/// The model an agent runs on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// The model's id.
    pub id: String,
    /// How hard it thinks.
    pub effort: Effort,
    /// How fast it answers.
    pub speed: Speed,
    /// Where inference may happen.
    pub inference_geo: Option<String>,
}

/// Models known to have no fast variant, and those that cannot be pinned to a place, by the start of their ids. What is not listed is
/// left to the upstream.
const NEVER_FAST: &[&str] = &["claude-haiku-4", "claude-sonnet-4", "claude-opus-4-5", "claude-3"];
const NEVER_PINNED: &[&str] =
    &["claude-haiku-4-5", "claude-sonnet-4-5", "claude-opus-4-5", "claude-3"];

fn unless(never: &[&str], id: &str, path: &str, what: &str) -> Result<(), Invalid> {
    if never.iter().any(|prefix| id.starts_with(prefix)) {
        return Err(Invalid::new(path, format!("model `{id}` does not support {what}")));
    }
    Ok(())
}

/// Decodes a model: a string, or an object. On an update of the same model an omitted effort keeps the stored one.
pub fn decode_model(
    value: Value,
    path: &str,
    stored: Option<&ModelConfig>,
) -> Result<ModelConfig, Invalid> {
    let kept = |id: &str| stored.filter(|stored| stored.id == id).map(|stored| stored.effort);
    if let Value::String(id) = value {
        length(&id, path, 1, 256)?;
        let effort = kept(&id).unwrap_or_default();
        return Ok(ModelConfig { id, effort, speed: Speed::Standard, inference_geo: None });
    }
    let mut fields = Fields::new(value, path)?;
    let id = fields.required_text("id", 1, 256)?;
    let effort = match fields.take("effort") {
        Some(value) => Effort::decode(value, &fields.at("effort"))?,
        None => kept(&id).unwrap_or_default(),
    };
    let speed = match fields.string("speed")?.as_deref() {
        None | Some("standard") => Speed::Standard,
        Some("fast") => {
            unless(NEVER_FAST, &id, &fields.at("speed"), "`fast`")?;
            Speed::Fast
        }
        Some(other) => return Err(one_of(&fields.at("speed"), other, &["standard", "fast"])),
    };
    let inference_geo = fields.text("inference_geo", 1, 64)?;
    if let Some(geo) = &inference_geo
        && !["us", "global"].contains(&geo.as_str())
    {
        return Err(one_of(&fields.at("inference_geo"), geo, &["us", "global"]));
    }
    if inference_geo.is_some() {
        unless(NEVER_PINNED, &id, &fields.at("inference_geo"), "`inference_geo`")?;
    }
    fields.finish()?;
    Ok(ModelConfig { id, effort, speed, inference_geo })
}

/// An MCP server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct McpServer {
    /// Always `url`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Unique within the agent, 1 to 255 characters.
    pub name: String,
    /// Its address, at most 2,048 characters.
    pub url: String,
}

/// Decodes `mcp_servers`: none if absent, empty if null.
pub fn decode_mcp_servers(
    patch: Patch<Value>,
    path: &str,
) -> Result<Option<Vec<McpServer>>, Invalid> {
    decode_array(patch, path, 20, |value, at| {
        let mut fields = Fields::new(value, at)?;
        let kind = fields.tag()?;
        if kind != "url" {
            return Err(fields.unknown_tag(&kind, &["url"]));
        }
        let name = fields.required_text("name", 1, 255)?;
        let url = fields.required_text("url", 1, 2_048)?;
        if !(url.starts_with("https://") || url.starts_with("http://")) {
            return Err(fields.invalid("url", "expected an http or https URL"));
        }
        fields.finish()?;
        Ok(McpServer { kind, name, url })
    })
    .and_then(|servers| {
        let Some(servers) = servers else { return Ok(None) };
        let mut names = BTreeSet::new();
        for (index, server) in servers.iter().enumerate() {
            if !names.insert(server.name.as_str()) {
                let reason = format!("another MCP server is named `{}`", server.name);
                return Err(Invalid::new(format!("{path}.{index}.name"), reason));
            }
        }
        Ok(Some(servers))
    })
}

/// A skill the agent may load.
#[expect(clippy::struct_field_names, reason = "the wire names its fields")]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Skill {
    /// `anthropic` or `custom`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The skill.
    pub skill_id: String,
    /// Its version, or `latest`.
    pub version: String,
}

/// Decodes `skills`: none if absent, empty if null.
pub fn decode_skills(patch: Patch<Value>, path: &str) -> Result<Option<Vec<Skill>>, Invalid> {
    decode_array(patch, path, 500, |value, at| {
        let mut fields = Fields::new(value, at)?;
        let kind = fields.tag()?;
        if !["anthropic", "custom"].contains(&kind.as_str()) {
            return Err(fields.unknown_tag(&kind, &["anthropic", "custom"]));
        }
        let skill_id = fields.required_text("skill_id", 1, 256)?;
        let version = fields.text("version", 1, 256)?.unwrap_or_else(|| "latest".to_owned());
        fields.finish()?;
        Ok(Skill { kind, skill_id, version })
    })
}

/// As whom an agent's runs act.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ExecutionIdentity {
    /// Nobody in particular.
    #[default]
    ServiceAccount,
    /// A role the customer named.
    AwsRole {
        /// Its name, at most 2,048 characters.
        role_arn: String,
    },
}

impl ExecutionIdentity {
    pub(super) fn decode(patch: Patch<Value>, path: &str) -> Result<Option<Self>, Invalid> {
        let value = match patch {
            Patch::Absent => return Ok(None),
            Patch::Null => return Ok(Some(Self::ServiceAccount)),
            Patch::Set(value) => value,
        };
        let mut fields = Fields::new(value, path)?;
        let kind = fields.tag()?;
        let identity = match kind.as_str() {
            "service_account" => Self::ServiceAccount,
            "aws_role" => Self::AwsRole { role_arn: fields.required_text("role_arn", 1, 2_048)? },
            _ => return Err(fields.unknown_tag(&kind, &["service_account", "aws_role"])),
        };
        fields.finish()?;
        Ok(Some(identity))
    }
}

/// Decodes an array that null clears.
pub(super) fn decode_array<T>(
    patch: Patch<Value>,
    path: &str,
    max: usize,
    decode: impl Fn(Value, String) -> Result<T, Invalid>,
) -> Result<Option<Vec<T>>, Invalid> {
    let value = match patch {
        Patch::Absent => return Ok(None),
        Patch::Null => return Ok(Some(Vec::new())),
        Patch::Set(value) => value,
    };
    let items = array(value, path, max)?;
    let decoded =
        items.into_iter().enumerate().map(|(index, item)| decode(item, join(path, index)));
    decoded.collect::<Result<Vec<T>, Invalid>>().map(Some)
}
