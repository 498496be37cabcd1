//! Agents: a model, what it is told and what it may do, in immutable versions. Always stored and shown fully resolved.

mod multiagent;
mod parts;
mod schema;
mod tools;
mod web;

pub use multiagent::{Multiagent, MultiagentDraft, Roster, RosterEntry};
pub use parts::{
    Effort, ExecutionIdentity, McpServer, ModelConfig, Skill, Speed, decode_mcp_servers,
    decode_model, decode_skills,
};
pub use tools::{
    AgentToolset, CustomTool, McpToolset, PermissionPolicy, Tool, ToolConfig, ToolSetting,
    decode_tools,
};

use crate::{AgentId, Fields, Invalid, Patch, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Longest name, in characters.
pub const NAME_MAX: usize = 256;
/// Longest description, in characters.
pub const DESCRIPTION_MAX: usize = 2_048;
/// Longest system prompt, in characters.
pub const SYSTEM_MAX: usize = 100_000;

/// An agent, as stored and as shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Agent {
    /// Always `agent`.
    #[serde(rename = "type")]
    pub kind: AgentKind,
    /// Its id.
    pub id: AgentId,
    /// Counts its changes, from 1.
    pub version: u64,
    /// 1 to 256 characters.
    pub name: String,
    /// At most 2,048 characters.
    pub description: Option<String>,
    /// The model it runs on.
    pub model: ModelConfig,
    /// The system prompt, at most 100,000 characters.
    pub system: Option<String>,
    /// What it may call.
    pub tools: Vec<Tool>,
    /// The MCP servers its toolsets name.
    pub mcp_servers: Vec<McpServer>,
    /// Skills it may load.
    pub skills: Vec<Skill>,
    /// Whom it may work with.
    pub multiagent: Option<Multiagent>,
    /// As whom its runs act.
    pub execution_identity: ExecutionIdentity,
    /// At most 16 pairs.
    pub metadata: BTreeMap<String, String>,
    /// When its first version was made.
    pub created_at: Timestamp,
    /// When this version was made.
    pub updated_at: Timestamp,
    /// When it was archived.
    pub archived_at: Option<Timestamp>,
}

/// The constant `agent`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentKind {
    /// The constant.
    #[default]
    Agent,
}

/// An agent as a session froze it, overrides applied.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionAgent {
    /// Always `agent`.
    #[serde(rename = "type")]
    pub kind: AgentKind,
    /// The agent's id.
    pub id: AgentId,
    /// The version that was taken.
    pub version: u64,
    /// Its name.
    pub name: String,
    /// Its description.
    pub description: Option<String>,
    /// The effective model.
    pub model: ModelConfig,
    /// The effective system prompt.
    pub system: Option<String>,
    /// The effective tools.
    pub tools: Vec<Tool>,
    /// The effective MCP servers.
    pub mcp_servers: Vec<McpServer>,
    /// The effective skills.
    pub skills: Vec<Skill>,
    /// Whom it may work with.
    pub multiagent: Option<Multiagent>,
    /// As whom the session acts.
    pub execution_identity: ExecutionIdentity,
}

impl From<&Agent> for SessionAgent {
    fn from(agent: &Agent) -> Self {
        Self {
            kind: AgentKind::Agent,
            id: agent.id.clone(),
            version: agent.version,
            name: agent.name.clone(),
            description: agent.description.clone(),
            model: agent.model.clone(),
            system: agent.system.clone(),
            tools: agent.tools.clone(),
            mcp_servers: agent.mcp_servers.clone(),
            skills: agent.skills.clone(),
            multiagent: agent.multiagent.clone(),
            execution_identity: agent.execution_identity.clone(),
        }
    }
}

/// The body of a create request, decoded. `multiagent` still names agents that only the caller can look up.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentDraft {
    /// The name.
    pub name: String,
    /// The description.
    pub description: Option<String>,
    /// The model.
    pub model: ModelConfig,
    /// The system prompt.
    pub system: Option<String>,
    /// The tools.
    pub tools: Vec<Tool>,
    /// The MCP servers.
    pub mcp_servers: Vec<McpServer>,
    /// The skills.
    pub skills: Vec<Skill>,
    /// Whom it may work with.
    pub multiagent: Option<MultiagentDraft>,
    /// As whom its runs act.
    pub execution_identity: ExecutionIdentity,
    /// The metadata.
    pub metadata: BTreeMap<String, String>,
}

impl AgentDraft {
    /// Decodes the body of `POST /v1/agents`.
    pub fn decode(mut body: Fields) -> Result<Self, Invalid> {
        let name = body.required_text("name", 1, NAME_MAX)?;
        let model = body.required("model")?;
        let draft = Self {
            name,
            description: body
                .text("description", 0, DESCRIPTION_MAX)?
                .filter(|text| !text.is_empty()),
            model: decode_model(model, "model", None)?,
            system: body.text("system", 0, SYSTEM_MAX)?.filter(|text| !text.is_empty()),
            tools: decode_tools(body.patch("tools"), "tools")?.unwrap_or_default(),
            mcp_servers: decode_mcp_servers(body.patch("mcp_servers"), "mcp_servers")?
                .unwrap_or_default(),
            skills: decode_skills(body.patch("skills"), "skills")?.unwrap_or_default(),
            multiagent: multiagent::decode(body.patch("multiagent"), "multiagent", None)?,
            execution_identity: ExecutionIdentity::decode(
                body.patch("execution_identity"),
                "execution_identity",
            )?
            .unwrap_or_default(),
            metadata: body.metadata("metadata")?,
        };
        body.finish()?;
        check(&draft.tools, &draft.mcp_servers, &draft.skills)?;
        Ok(draft)
    }

    /// Decodes the body of `POST /v1/agents/{agent_id}` against the stored agent: what the agent would be, and the version the caller expects, if it named one.
    pub fn decode_update(mut body: Fields, stored: &Agent) -> Result<(Self, Option<u64>), Invalid> {
        let version = body.integer("version", 1)?.and_then(|version| u64::try_from(version).ok());
        let name = match body.patch("name") {
            Patch::Absent => stored.name.clone(),
            Patch::Null => return Err(body.invalid("name", "cannot be cleared")),
            Patch::Set(value) => {
                let name = crate::fields::string(value, "name")?;
                crate::fields::length(&name, "name", 1, NAME_MAX)?;
                name
            }
        };
        let model = match body.patch("model") {
            Patch::Absent => stored.model.clone(),
            Patch::Null => return Err(body.invalid("model", "cannot be cleared")),
            Patch::Set(value) => decode_model(value, "model", Some(&stored.model))?,
        };
        let draft = Self {
            name,
            model,
            description: text(
                &mut body,
                "description",
                DESCRIPTION_MAX,
                stored.description.as_ref(),
            )?,
            system: text(&mut body, "system", SYSTEM_MAX, stored.system.as_ref())?,
            tools: decode_tools(body.patch("tools"), "tools")?
                .unwrap_or_else(|| stored.tools.clone()),
            mcp_servers: decode_mcp_servers(body.patch("mcp_servers"), "mcp_servers")?
                .unwrap_or_else(|| stored.mcp_servers.clone()),
            skills: decode_skills(body.patch("skills"), "skills")?
                .unwrap_or_else(|| stored.skills.clone()),
            multiagent: multiagent::decode(
                body.patch("multiagent"),
                "multiagent",
                stored.multiagent.as_ref(),
            )?,
            execution_identity: ExecutionIdentity::decode(
                body.patch("execution_identity"),
                "execution_identity",
            )?
            .unwrap_or_else(|| stored.execution_identity.clone()),
            metadata: body.patch_metadata("metadata", &stored.metadata, false)?,
        };
        body.finish()?;
        check(&draft.tools, &draft.mcp_servers, &draft.skills)?;
        Ok((draft, version))
    }
}

/// A clearable text of an update: omitted keeps, null or empty clears.
fn text(
    body: &mut Fields,
    name: &str,
    max: usize,
    stored: Option<&String>,
) -> Result<Option<String>, Invalid> {
    if !body.has(name) {
        return Ok(stored.cloned());
    }
    Ok(body.text(name, 0, max)?.filter(|text| !text.is_empty()))
}

/// The rules that span tools, MCP servers and skills.
pub fn check(tools: &[Tool], servers: &[McpServer], skills: &[Skill]) -> Result<(), Invalid> {
    let mut named = BTreeSet::new();
    for (index, tool) in tools.iter().enumerate() {
        if let Tool::McpToolset(toolset) = tool {
            let path = format!("tools.{index}.mcp_server_name");
            if !servers.iter().any(|server| server.name == toolset.mcp_server_name) {
                let reason =
                    format!("no MCP server named `{}` in mcp_servers", toolset.mcp_server_name);
                return Err(Invalid::new(path, reason));
            }
            if !named.insert(toolset.mcp_server_name.as_str()) {
                let reason =
                    format!("MCP server `{}` has an mcp_toolset already", toolset.mcp_server_name);
                return Err(Invalid::new(path, reason));
            }
        }
    }
    for (index, server) in servers.iter().enumerate() {
        if !named.contains(server.name.as_str()) {
            let reason = format!(
                "MCP server `{}` is not referenced by any mcp_toolset in tools",
                server.name
            );
            return Err(Invalid::new(format!("mcp_servers.{index}.name"), reason));
        }
    }
    let reads = tools
        .iter()
        .any(|tool| matches!(tool, Tool::AgentToolset(toolset) if toolset.setting("read").enabled));
    if !skills.is_empty() && !reads {
        return Err(Invalid::new(
            "skills",
            "skills need the `read` tool of agent_toolset_20260401 to be enabled",
        ));
    }
    Ok(())
}
