//! Whom an agent may work with. A draft names agents as the client wrote them; the caller looks them up and resolves the draft.

use crate::{AgentId, Fields, Invalid, Patch, fields::join};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A resolved configuration, in wire shape: every agent is pinned to a version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Multiagent(pub Value);

impl Multiagent {
    /// Pins every mention of an agent to a version: an agent that lists itself means the version that lists it.
    pub fn pin(&mut self, id: &AgentId, version: u64) {
        fn walk(value: &mut Value, id: &AgentId, version: u64) {
            match value {
                Value::Object(fields) => {
                    if fields.get("id").is_some_and(|found| found == id.as_str()) {
                        fields.insert("version".to_owned(), json!(version));
                    }
                    fields.values_mut().for_each(|value| walk(value, id, version));
                }
                Value::Array(items) => items.iter_mut().for_each(|item| walk(item, id, version)),
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
            }
        }
        walk(&mut self.0, id, version);
    }
}

/// One entry of a roster, as the client wrote it.
#[derive(Clone, Debug, PartialEq)]
pub enum RosterEntry {
    /// Another agent, at its newest version unless one is given.
    Agent {
        /// Where it stands in the body.
        path: String,
        /// The agent.
        id: AgentId,
        /// The version.
        version: Option<u64>,
    },
    /// The agent itself.
    Itself {
        /// Where it stands in the body.
        path: String,
    },
}

/// Who is on a roster.
pub type Roster = Vec<RosterEntry>;

/// A decoded configuration whose agents are not looked up yet.
#[derive(Clone, Debug, PartialEq)]
pub enum MultiagentDraft {
    /// Keep what is stored.
    Stored(Multiagent),
    /// `coordinator`.
    Coordinator {
        /// The agents it leads.
        agents: Roster,
        /// The model of its advisor.
        advisor: Option<String>,
    },
    /// `multiagent_20261001`.
    Toolkit {
        /// The resolved object, its rosters still empty or as stored.
        value: Value,
        /// A new roster of `subagents`.
        subagents: Option<Roster>,
        /// A new roster of `workflows`.
        workflows: Option<Roster>,
    },
}

impl MultiagentDraft {
    /// Every agent that has to be looked up.
    pub fn entries(&self) -> Vec<&RosterEntry> {
        match self {
            Self::Stored(_) => Vec::new(),
            Self::Coordinator { agents, .. } => agents.iter().collect(),
            Self::Toolkit { subagents, workflows, .. } => {
                subagents.iter().chain(workflows).flatten().collect()
            }
        }
    }

    /// The resolved configuration, given the pinned version of each entry in the order of [`entries`](Self::entries).
    pub fn resolve(self, pinned: &[(AgentId, u64)]) -> Result<Multiagent, Invalid> {
        let reference = |(id, version): &(AgentId, u64)| json!({ "type": "agent", "id": id, "version": version });
        match self {
            Self::Stored(stored) => Ok(stored),
            Self::Coordinator { agents, advisor } => {
                let mut list: Vec<Value> = pinned.iter().map(reference).collect();
                distinct(&agents, pinned)?;
                list.extend(advisor.map(|model| json!({ "type": "advisor", "model": model })));
                Ok(Multiagent(json!({ "type": "coordinator", "agents": list })))
            }
            Self::Toolkit { mut value, subagents, workflows } => {
                let mut rest = pinned;
                for (name, roster) in [("subagents", subagents), ("workflows", workflows)] {
                    let Some(roster) = roster else { continue };
                    let (own, others) = rest.split_at(roster.len());
                    rest = others;
                    distinct(&roster, own)?;
                    value[name]["predefined_agents"] = own.iter().map(reference).collect();
                }
                for name in ["subagents", "workflows"] {
                    let block = &value[name];
                    let nobody = block["predefined_agents"].as_array().is_none_or(Vec::is_empty);
                    if block["type"] == "enabled"
                        && block["inline_agents"]["type"] == "disabled"
                        && nobody
                    {
                        let reason = "with inline_agents disabled, predefined_agents must name at least one agent";
                        return Err(Invalid::new(join("multiagent", name), reason));
                    }
                }
                Ok(Multiagent(value))
            }
        }
    }
}

fn distinct(roster: &Roster, pinned: &[(AgentId, u64)]) -> Result<(), Invalid> {
    for (index, (id, _)) in pinned.iter().enumerate() {
        if pinned[..index].iter().any(|(earlier, _)| earlier == id) {
            let (RosterEntry::Agent { path, .. } | RosterEntry::Itself { path }) = &roster[index];
            return Err(Invalid::new(path.clone(), format!("agent `{id}` is listed twice")));
        }
    }
    Ok(())
}

/// Decodes `multiagent`. Null clears; a `multiagent_20261001` onto a stored one merges level by level.
pub(super) fn decode(
    patch: Patch<Value>,
    path: &str,
    stored: Option<&Multiagent>,
) -> Result<Option<MultiagentDraft>, Invalid> {
    let value = match patch {
        Patch::Absent => return Ok(stored.cloned().map(MultiagentDraft::Stored)),
        Patch::Null => return Ok(None),
        Patch::Set(value) => value,
    };
    let mut fields = Fields::new(value, path)?;
    let kind = fields.tag()?;
    let draft = match kind.as_str() {
        "coordinator" => coordinator(&mut fields)?,
        "multiagent_20261001" => {
            let stored = stored.filter(|stored| stored.0["type"] == "multiagent_20261001");
            toolkit(&mut fields, stored)?
        }
        _ => return Err(fields.unknown_tag(&kind, &["coordinator", "multiagent_20261001"])),
    };
    fields.finish()?;
    Ok(Some(draft))
}

fn coordinator(fields: &mut Fields) -> Result<MultiagentDraft, Invalid> {
    let at = fields.at("agents");
    let items = crate::fields::array(fields.required("agents")?, &at, 21)?;
    let mut agents = Vec::new();
    let mut advisor = None;
    for (index, item) in items.into_iter().enumerate() {
        let path = join(&at, index);
        if item["type"] == "advisor" {
            let mut entry = Fields::new(item, path.clone())?;
            entry.tag()?;
            let model = entry.required_text("model", 1, 256)?;
            entry.finish()?;
            if advisor.replace(model).is_some() {
                return Err(Invalid::new(path, "only one advisor is allowed"));
            }
        } else {
            agents.push(entry(item, path)?);
        }
    }
    if agents.is_empty() || agents.len() > 20 {
        return Err(Invalid::new(at, "a coordinator leads 1 to 20 agents"));
    }
    Ok(MultiagentDraft::Coordinator { agents, advisor })
}

fn entry(value: Value, path: String) -> Result<RosterEntry, Invalid> {
    if let Value::String(id) = value {
        return Ok(RosterEntry::Agent { path, id: AgentId::from_wire(id), version: None });
    }
    let mut fields = Fields::new(value, path.clone())?;
    let kind = fields.tag()?;
    let entry = match kind.as_str() {
        "agent" => RosterEntry::Agent {
            path,
            id: AgentId::from_wire(fields.required_string("id")?),
            version: fields.integer("version", 1)?.and_then(|version| u64::try_from(version).ok()),
        },
        "self" => RosterEntry::Itself { path },
        _ => return Err(fields.unknown_tag(&kind, &["agent", "self", "advisor"])),
    };
    fields.finish()?;
    Ok(entry)
}

fn toolkit(fields: &mut Fields, stored: Option<&Multiagent>) -> Result<MultiagentDraft, Invalid> {
    let before = stored.map_or(Value::Null, |stored| stored.0.clone());
    let advisor = match fields.patch("advisor") {
        Patch::Absent if !before["advisor"].is_null() => before["advisor"].clone(),
        Patch::Absent | Patch::Null => json!({ "type": "disabled" }),
        Patch::Set(value) => {
            let mut object = Fields::new(value, fields.at("advisor"))?;
            let kind = object.tag()?;
            let value = match kind.as_str() {
                "disabled" => json!({ "type": "disabled" }),
                "enabled" => {
                    json!({ "type": "enabled", "model": object.required_text("model", 1, 256)? })
                }
                _ => return Err(object.unknown_tag(&kind, &["enabled", "disabled"])),
            };
            object.finish()?;
            value
        }
    };
    let (subagents, subagents_roster) = block(fields, "subagents", &before["subagents"])?;
    let (workflows, workflows_roster) = block(fields, "workflows", &before["workflows"])?;
    Ok(MultiagentDraft::Toolkit {
        value: json!({
            "type": "multiagent_20261001",
            "advisor": advisor,
            "subagents": subagents,
            "workflows": workflows,
        }),
        subagents: subagents_roster,
        workflows: workflows_roster,
    })
}

fn block(
    fields: &mut Fields,
    name: &str,
    before: &Value,
) -> Result<(Value, Option<Roster>), Invalid> {
    let default = json!({ "type": "enabled", "inline_agents": { "type": "enabled" }, "predefined_agents": [] });
    let mut object = match fields.patch(name) {
        Patch::Absent if !before.is_null() => return Ok((before.clone(), None)),
        Patch::Absent | Patch::Null => return Ok((default, None)),
        Patch::Set(value) => Fields::new(value, fields.at(name))?,
    };
    let kind = object.tag()?;
    if kind == "disabled" {
        object.finish()?;
        return Ok((json!({ "type": "disabled" }), None));
    }
    if kind != "enabled" {
        return Err(object.unknown_tag(&kind, &["enabled", "disabled"]));
    }
    let mut value = if before["type"] == "enabled" { before.clone() } else { default };
    match object.patch("inline_agents") {
        Patch::Absent => {}
        Patch::Null => value["inline_agents"] = json!({ "type": "enabled" }),
        Patch::Set(inline) => {
            let mut inline = Fields::new(inline, object.at("inline_agents"))?;
            let kind = inline.tag()?;
            if kind != "enabled" && kind != "disabled" {
                return Err(inline.unknown_tag(&kind, &["enabled", "disabled"]));
            }
            inline.finish()?;
            value["inline_agents"] = json!({ "type": kind });
        }
    }
    let roster = match object.patch("predefined_agents") {
        Patch::Absent => None,
        Patch::Null => Some(Vec::new()),
        Patch::Set(list) => {
            let at = object.at("predefined_agents");
            let items = crate::fields::array(list, &at, 20)?.into_iter().enumerate();
            let entries = items.map(|(index, item)| entry(item, join(&at, index)));
            Some(entries.collect::<Result<Roster, Invalid>>()?)
        }
    };
    object.finish()?;
    Ok((value, roster))
}
