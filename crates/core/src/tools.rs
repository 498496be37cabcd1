//! The built-in tools as the model sees them, and the verdict on each call: who runs it, and whether it may run.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use vaquero_types::{
    agent::{AgentToolset, PermissionPolicy, SessionAgent, Tool},
    environment::{DEFAULT_SANDBOX, NamedSandbox},
};

/// A tool as a model request names it.
#[derive(Clone, Debug, PartialEq)]
pub struct Definition {
    /// Its name.
    pub name: String,
    /// What it does, for the model.
    pub description: String,
    /// JSON Schema of its input.
    pub input_schema: Value,
}

/// The verdict on a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Evaluation {
    /// Runs in the sandbox at once.
    Allow,
    /// Runs once a client confirms, because the policy says to ask.
    Ask,
    /// Runs once a client confirms, because nobody is there to judge it by the `auto` policy.
    AutoAsk,
    /// The client runs it.
    Custom,
    /// Does not run: the agent has no such tool, or it is switched off.
    Refused,
}

/// The built-in tools that run in a sandbox, in the order the model sees them.
pub const SANDBOX_TOOLS: [&str; 6] = ["bash", "read", "write", "edit", "glob", "grep"];

/// Before the name of a sandbox: the tool that runs commands there.
const EXECUTE: &str = "execute_";

/// The sandbox that a tool is for, and what the tool is called there.
pub fn place(name: &str) -> (&str, &str) {
    match name.strip_prefix(EXECUTE) {
        Some(sandbox) => (sandbox, "bash"),
        None => (DEFAULT_SANDBOX, name),
    }
}

/// Judges a call by the agent's configuration. `sandboxes` are those that the session has beside its default one.
pub fn evaluate(agent: &SessionAgent, sandboxes: &[NamedSandbox], name: &str) -> Evaluation {
    let (sandbox, inside) = place(name);
    let there = sandbox == DEFAULT_SANDBOX || sandboxes.iter().any(|it| it.name == sandbox);
    for tool in &agent.tools {
        match tool {
            Tool::Custom(custom) if custom.name == name => return Evaluation::Custom,
            Tool::AgentToolset(toolset) if there && SANDBOX_TOOLS.contains(&inside) => {
                let setting = toolset.setting(inside);
                if setting.enabled {
                    return match setting.policy {
                        PermissionPolicy::AlwaysAllow => Evaluation::Allow,
                        PermissionPolicy::AlwaysAsk => Evaluation::Ask,
                        PermissionPolicy::Auto => Evaluation::AutoAsk,
                    };
                }
            }
            Tool::Custom(_) | Tool::AgentToolset(_) | Tool::McpToolset(_) => {}
        }
    }
    Evaluation::Refused
}

/// Every tool the model may call, in a stable order.
pub fn definitions(agent: &SessionAgent, sandboxes: &[NamedSandbox]) -> Vec<Definition> {
    let mut definitions = Vec::new();
    for tool in &agent.tools {
        match tool {
            Tool::AgentToolset(toolset) => {
                definitions.extend(built_in(toolset));
                if toolset.setting("bash").enabled {
                    definitions.extend(sandboxes.iter().map(execute));
                }
            }
            Tool::Custom(custom) => definitions.push(Definition {
                name: custom.name.clone(),
                description: custom.description.clone(),
                input_schema: custom.input_schema.clone(),
            }),
            Tool::McpToolset(_) => {}
        }
    }
    definitions
}

/// Whether the agent can touch a sandbox at all.
pub fn has_sandbox(agent: &SessionAgent) -> bool {
    agent.tools.iter().any(|tool| {
        matches!(tool, Tool::AgentToolset(toolset) if SANDBOX_TOOLS.iter().any(|name| toolset.setting(name).enabled))
    })
}

/// The system prompt of a session: the agent's own, then what it needs to know about where its tools run.
pub fn system_prompt(agent: &SessionAgent, self_hosted: bool) -> Option<String> {
    const SANDBOX: &str = "Your tools run in a Linux sandbox of this session. Its working directory is /workspace; files there stay for the whole session, \
while running programs may not outlive a turn. Write files meant for the user to /mnt/session/outputs.";
    const WORKER: &str = "Your tools run on a machine of the user's own, in a working directory to which relative paths belong. Files there stay for the whole session, \
while running programs may not outlive a turn.";
    let place = if self_hosted { WORKER } else { SANDBOX };
    match (agent.system.as_deref().filter(|text| !text.is_empty()), has_sandbox(agent)) {
        (Some(own), true) => Some(format!("{own}\n\n{place}")),
        (Some(own), false) => Some(own.to_owned()),
        (None, true) => Some(place.to_owned()),
        (None, false) => None,
    }
}

/// The tool of another sandbox.
fn execute(sandbox: &NamedSandbox) -> Definition {
    let what = sandbox.description.as_deref().unwrap_or_default();
    let name = &sandbox.name;
    let description = format!(
        "Runs a command in the sandbox `{name}`, which is another machine with a /workspace of its own, apart from that of all other tools. {what} {}",
        description("bash")
    );
    Definition {
        name: format!("{EXECUTE}{name}"),
        description: description.replace("  ", " "),
        input_schema: input_schema("bash"),
    }
}

fn built_in(toolset: &AgentToolset) -> impl Iterator<Item = Definition> + '_ {
    SANDBOX_TOOLS.into_iter().filter(|name| toolset.setting(name).enabled).map(|name| Definition {
        name: name.to_owned(),
        description: description(name).to_owned(),
        input_schema: input_schema(name),
    })
}

fn description(name: &str) -> &'static str {
    match name {
        "bash" => {
            "Runs a command in a persistent bash shell: the working directory, variables and background jobs stay from call to call. \
Calls run one after another; stdout and stderr come back together. A command that exceeds its timeout is killed together with everything else that runs in the sandbox; \
then call once with restart set to true."
        }
        "read" => {
            "Reads a file: text as it is, images and PDF documents as such. For a large text file give view_range, the first and last line wanted \
(counted from 1; -1 means to the end)."
        }
        "write" => "Writes a file, replacing what was there; directories above it are made.",
        "edit" => {
            "Replaces text in a file. old_string must match exactly and occur once, unless replace_all is true."
        }
        "glob" => {
            "Finds files by a pattern such as **/*.rs, newest first. Relative to path, or to the working directory."
        }
        _ => {
            "Searches file contents by a regular expression and shows path, line number and line of each match. Searches path, or the working directory."
        }
    }
}

fn input_schema(name: &str) -> Value {
    let text = |description: &str| json!({ "type": "string", "description": description });
    let object = |properties: Value, required: Value| json!({ "type": "object", "properties": properties, "required": required });
    match name {
        "bash" => object(
            json!({
                "command": text("The command to run."),
                "restart": { "type": "boolean", "description": "Starts a fresh shell; no command is needed." },
                "timeout_ms": { "type": "integer", "minimum": 0, "description": "Milliseconds before the command is killed; 120000 if left out." },
            }),
            json!([]),
        ),
        "read" => object(
            json!({
                "file_path": text("The file."),
                "view_range": { "type": "array", "items": { "type": "integer" }, "minItems": 2, "maxItems": 2, "description": "First and last line." },
            }),
            json!(["file_path"]),
        ),
        "write" => object(
            json!({ "file_path": text("The file."), "content": text("All of its new content.") }),
            json!(["file_path", "content"]),
        ),
        "edit" => object(
            json!({
                "file_path": text("The file."),
                "old_string": text("The text to replace."),
                "new_string": text("What takes its place."),
                "replace_all": { "type": "boolean", "description": "Replace every occurrence." },
            }),
            json!(["file_path", "old_string", "new_string"]),
        ),
        _ => object(
            json!({ "pattern": text("The pattern."), "path": text("Where to look.") }),
            json!(["pattern"]),
        ),
    }
}
