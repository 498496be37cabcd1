//! The tools of an agent: the built-in toolset, MCP toolsets and custom tools, with their permission policies.

use super::{parts::decode_array, schema, web};
use crate::{
    Fields, Invalid, Patch,
    fields::{join, one_of},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeSet;

/// Most tools over all toolsets.
const TOOLS_MAX: usize = 256;

/// Whether a call may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum PermissionPolicy {
    /// Without asking.
    AlwaysAllow,
    /// Once a client confirms.
    AlwaysAsk,
    /// As the server judges each call.
    Auto,
}

impl PermissionPolicy {
    fn decode(value: Value, path: &str) -> Result<Self, Invalid> {
        let mut fields = Fields::new(value, path)?;
        let kind = fields.tag()?;
        let policy = match kind.as_str() {
            "always_allow" => Self::AlwaysAllow,
            "always_ask" => Self::AlwaysAsk,
            "auto" => Self::Auto,
            _ => return Err(fields.unknown_tag(&kind, &["always_allow", "always_ask", "auto"])),
        };
        fields.finish()?;
        Ok(policy)
    }
}

/// Whether a tool is there, and whether its calls may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolSetting {
    /// The model sees it.
    pub enabled: bool,
    /// Whether its calls may run.
    #[serde(rename = "permission_policy")]
    pub policy: PermissionPolicy,
}

impl ToolSetting {
    /// Takes `enabled` and `permission_policy` from an object, with these defaults.
    fn decode(fields: &mut Fields, default: Self) -> Result<Self, Invalid> {
        let enabled = fields.boolean("enabled")?.unwrap_or(default.enabled);
        let at = fields.at("permission_policy");
        let policy = match fields.take("permission_policy") {
            Some(value) => PermissionPolicy::decode(value, &at)?,
            None => default.policy,
        };
        Ok(Self { enabled, policy })
    }
}

/// One tool's configuration in the built-in toolset.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolConfig {
    /// The same as `name`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The tool.
    pub name: String,
    /// Whether it is there, and whether its calls may run.
    #[serde(flatten)]
    pub setting: ToolSetting,
    /// What only the web tools have.
    #[serde(flatten)]
    pub web: serde_json::Map<String, Value>,
}

/// The built-in toolset, `agent_toolset_20260401`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentToolset {
    /// What holds for tools that `configs` does not name.
    pub default_config: ToolSetting,
    /// Tools that differ.
    pub configs: Vec<ToolConfig>,
}

impl AgentToolset {
    /// Its tools.
    pub const NAMES: [&'static str; 8] =
        ["bash", "read", "write", "edit", "glob", "grep", "web_fetch", "web_search"];

    /// The effective setting of one of its tools.
    pub fn setting(&self, name: &str) -> ToolSetting {
        let config = self.configs.iter().find(|config| config.name == name);
        config.map_or(self.default_config, |config| config.setting)
    }

    /// The web tools that a config of their own switches on.
    pub fn explicitly_enabled_web_tools(&self) -> Vec<&str> {
        self.configs
            .iter()
            .filter(|config| config.name.starts_with("web_") && config.setting.enabled)
            .map(|config| config.name.as_str())
            .collect()
    }

    fn decode(fields: &mut Fields) -> Result<Self, Invalid> {
        let open = ToolSetting { enabled: true, policy: PermissionPolicy::AlwaysAllow };
        let default_config = decode_default(fields, open)?;
        let configs = fields
            .list("configs", Self::NAMES.len(), |value, at| {
                Self::config(value, at, default_config)
            })?
            .unwrap_or_default();
        unique(configs.iter().map(|config| config.name.as_str()), &fields.at("configs"))?;
        Ok(Self { default_config, configs })
    }

    fn config(value: Value, at: String, default: ToolSetting) -> Result<ToolConfig, Invalid> {
        let mut fields = Fields::new(value, at)?;
        let kind = fields.string("type")?;
        let name = match (fields.string("name")?, &kind) {
            (Some(name), _) => name,
            (None, Some(kind)) => kind.clone(),
            (None, None) => return Err(fields.invalid("name", "field required")),
        };
        if !Self::NAMES.contains(&name.as_str()) {
            return Err(one_of(&fields.at("name"), &name, &Self::NAMES));
        }
        if kind.is_some_and(|kind| kind != name) {
            return Err(fields.invalid("type", format!("must be `{name}`, as the name says")));
        }
        let setting = ToolSetting::decode(&mut fields, default)?;
        let web = match name.as_str() {
            "web_fetch" => web::fetch(&mut fields)?,
            "web_search" => web::search(&mut fields)?,
            _ => serde_json::Map::new(),
        };
        fields.finish()?;
        Ok(ToolConfig { kind: name.clone(), name, setting, web })
    }
}

/// One tool's configuration in an MCP toolset.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct McpToolConfig {
    /// The tool.
    pub name: String,
    /// Whether it is there, and whether its calls may run.
    #[serde(flatten)]
    pub setting: ToolSetting,
}

/// The tools of one MCP server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct McpToolset {
    /// The server, as `mcp_servers` names it.
    pub mcp_server_name: String,
    /// What holds for tools that `configs` does not name.
    pub default_config: ToolSetting,
    /// Tools that differ.
    pub configs: Vec<McpToolConfig>,
}

impl McpToolset {
    fn decode(fields: &mut Fields) -> Result<Self, Invalid> {
        let mcp_server_name = fields.required_text("mcp_server_name", 1, 255)?;
        let asking = ToolSetting { enabled: true, policy: PermissionPolicy::AlwaysAsk };
        let default_config = decode_default(fields, asking)?;
        let configs = fields
            .list("configs", TOOLS_MAX, |value, at| {
                let mut fields = Fields::new(value, at)?;
                let name = fields.required_text("name", 1, 128)?;
                let setting = ToolSetting::decode(&mut fields, default_config)?;
                fields.finish()?;
                Ok(McpToolConfig { name, setting })
            })?
            .unwrap_or_default();
        unique(configs.iter().map(|config| config.name.as_str()), &fields.at("configs"))?;
        Ok(Self { mcp_server_name, default_config, configs })
    }
}

/// A tool that the client runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CustomTool {
    /// 1 to 128 letters, digits, `_` or `-`.
    pub name: String,
    /// What it does, for the model.
    pub description: String,
    /// JSON Schema of its input, an object.
    pub input_schema: Value,
}

impl CustomTool {
    fn decode(fields: &mut Fields) -> Result<Self, Invalid> {
        let name = fields.required_text("name", 1, 128)?;
        if !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-') {
            return Err(fields.invalid("name", "only letters, digits, `_` and `-` are allowed"));
        }
        if AgentToolset::NAMES.contains(&name.as_str()) {
            return Err(fields.invalid("name", format!("`{name}` is the name of a built-in tool")));
        }
        if name.starts_with("mcp__") {
            return Err(fields.invalid("name", "the prefix `mcp__` is reserved for MCP tools"));
        }
        let description = fields.required_text("description", 1, 100_000)?;
        let at = fields.at("input_schema");
        let input_schema = schema::decode(fields.required("input_schema")?, &at)?;
        Ok(Self { name, description, input_schema })
    }
}

/// One entry of `tools`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type")]
pub enum Tool {
    /// The built-in toolset.
    #[serde(rename = "agent_toolset_20260401")]
    AgentToolset(AgentToolset),
    /// The tools of an MCP server.
    #[serde(rename = "mcp_toolset")]
    McpToolset(McpToolset),
    /// A tool that the client runs.
    #[serde(rename = "custom")]
    Custom(CustomTool),
}

impl Tool {
    fn decode(value: Value, at: String) -> Result<Self, Invalid> {
        let mut fields = Fields::new(value, at)?;
        let kind = fields.tag()?;
        let tool = match kind.as_str() {
            "agent_toolset_20260401" => Self::AgentToolset(AgentToolset::decode(&mut fields)?),
            "mcp_toolset" => Self::McpToolset(McpToolset::decode(&mut fields)?),
            "custom" => Self::Custom(CustomTool::decode(&mut fields)?),
            _ => {
                let known = ["agent_toolset_20260401", "mcp_toolset", "custom"];
                return Err(fields.unknown_tag(&kind, &known));
            }
        };
        fields.finish()?;
        Ok(tool)
    }

    fn count(&self) -> usize {
        match self {
            Self::AgentToolset(_) => AgentToolset::NAMES.len(),
            Self::McpToolset(toolset) => toolset.configs.len(),
            Self::Custom(_) => 1,
        }
    }
}

/// Decodes `tools`: none if absent, empty if null.
pub fn decode_tools(patch: Patch<Value>, path: &str) -> Result<Option<Vec<Tool>>, Invalid> {
    let Some(tools) = decode_array(patch, path, TOOLS_MAX, Tool::decode)? else { return Ok(None) };
    let total: usize = tools.iter().map(Tool::count).sum();
    if total > TOOLS_MAX {
        let reason =
            format!("at most {TOOLS_MAX} tools over all toolsets are allowed, got {total}");
        return Err(Invalid::new(path, reason));
    }
    let mut customs = BTreeSet::new();
    let mut toolset_seen = false;
    for (index, tool) in tools.iter().enumerate() {
        let at = join(path, index);
        match tool {
            Tool::Custom(custom) if !customs.insert(custom.name.clone()) => {
                let reason = format!("another tool is named `{}`", custom.name);
                return Err(Invalid::new(join(&at, "name"), reason));
            }
            Tool::AgentToolset(_) if toolset_seen => {
                return Err(Invalid::new(at, "agent_toolset_20260401 may be given once"));
            }
            Tool::AgentToolset(_) => toolset_seen = true,
            Tool::Custom(_) | Tool::McpToolset(_) => {}
        }
    }
    for (index, tool) in tools.iter().enumerate() {
        if let Tool::AgentToolset(toolset) = tool {
            web::check_references(toolset, &customs, &join(path, index))?;
        }
    }
    Ok(Some(tools))
}

fn decode_default(fields: &mut Fields, default: ToolSetting) -> Result<ToolSetting, Invalid> {
    let Some(mut config) = fields.object("default_config")? else { return Ok(default) };
    let setting = ToolSetting::decode(&mut config, default)?;
    config.finish()?;
    Ok(setting)
}

fn unique<'a>(names: impl Iterator<Item = &'a str>, path: &str) -> Result<(), Invalid> {
    let mut seen = BTreeSet::new();
    for (index, name) in names.enumerate() {
        if !seen.insert(name) {
            let reason = format!("`{name}` is configured twice");
            return Err(Invalid::new(format!("{path}.{index}.name"), reason));
        }
    }
    Ok(())
}
