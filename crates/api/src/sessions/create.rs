//! `POST /v1/sessions`

use crate::{
    agents,
    app::{App, Sandboxes},
    body::{PathIds, Posted},
    change::Outcome,
    environments,
    reject::Result,
    sessions, vaults, work,
};
use axum::{extract::State, response::Response};
use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc};
use vaquero_core::admission;
use vaquero_store::{Expect, Write};
use vaquero_types::{
    AgentId, ApiError, EnvironmentId, Fields, Invalid, Patch, SessionId, ThreadId, VaultId,
    WorkspaceId,
    agent::{self, SessionAgent},
    environment::{Cloud, Config, Environment, Networking},
    event::ClientEvent,
    session::{SessionBody, TITLE_MAX},
};

/// Most vaults of a session.
const VAULTS_MAX: usize = 50;

/// A decoded request.
struct Draft {
    agent: Value,
    environment: EnvironmentId,
    title: Option<String>,
    metadata: BTreeMap<String, String>,
    vaults: Vec<VaultId>,
    initial_events: Vec<ClientEvent>,
}

pub(crate) async fn handler(
    State(app): State<App>,
    ids: PathIds,
    posted: Posted,
) -> Result<Response> {
    app.change(posted, ids, decide).await
}

fn decode(mut body: Fields) -> Result<Draft> {
    let draft = Draft {
        agent: body.required("agent")?,
        environment: EnvironmentId::from_wire(body.required_string("environment_id")?),
        title: body.text("title", 0, TITLE_MAX)?,
        metadata: body.metadata("metadata")?,
        vaults: body
            .list("vault_ids", VAULTS_MAX, |value, at| {
                vaquero_types::fields::string(value, &at).map(VaultId::from_wire)
            })?
            .unwrap_or_default(),
        initial_events: body
            .list("initial_events", 50, |value, at| {
                let event = ClientEvent::decode(value, at.clone())?;
                match event {
                    ClientEvent::Message { .. } => Ok(event),
                    ClientEvent::DefineOutcome => Err(Invalid::new(at, "outcomes are not available on this server yet")),
                    other => Err(Invalid::new(
                        at,
                        format!("`{}` cannot be an initial event; only `user.message` and `user.define_outcome` can", other.event_type()),
                    )),
                }
            })?
            .unwrap_or_default(),
    };
    unavailable(&mut body, "resources", "resources are")?;
    unavailable(&mut body, "budget", "budgets are")?;
    body.finish()?;
    Ok(draft)
}

/// Takes a field that may only be left empty.
fn unavailable(body: &mut Fields, name: &str, what: &str) -> Result<()> {
    match body.take(name) {
        None => Ok(()),
        Some(Value::Array(items)) if items.is_empty() => Ok(()),
        Some(_) => {
            Err(body.invalid(name, format!("{what} not available on this server yet")).into())
        }
    }
}

async fn decide(app: App, posted: Arc<Posted>, _ids: PathIds) -> Result<Outcome> {
    let draft = decode(posted.fields()?)?;
    let (app, workspace) = (&app, &posted.caller.workspace);
    let mut writes = Vec::new();
    let agent = effective_agent(app, workspace, draft.agent, &mut writes).await?;
    sessions::refuse_unavailable(
        &agent.tools,
        !agent.mcp_servers.is_empty(),
        !agent.skills.is_empty(),
        agent.multiagent.as_ref(),
    )?;
    let id = draft.environment.as_str();
    let (document, environment) = environments::find(app, workspace, id).await?;
    let sandboxes = &app.parts.settings.sandboxes;
    check_environment(&environment, sandboxes, !draft.vaults.is_empty())?;
    writes.push(Write::CheckDocument {
        workspace: workspace.clone(),
        kind: environments::KIND.to_owned(),
        id: document.id,
        expect: Expect::Revision(document.revision),
    });
    let now = app.now();
    for vault in &draft.vaults {
        let (document, _) = vaults::find_open(app, workspace, vault.as_str()).await?;
        writes.push(Write::CheckDocument {
            workspace: workspace.clone(),
            kind: vaults::KIND.to_owned(),
            id: document.id,
            expect: Expect::Revision(document.revision),
        });
    }
    let body = SessionBody {
        agent,
        title: draft.title,
        metadata: draft.metadata,
        vault_ids: draft.vaults,
        self_hosted: environment.config == Config::SelfHosted,
        sandboxes: match environment.config {
            Config::Cloud(cloud) => cloud.sandboxes,
            Config::SelfHosted => Vec::new(),
        },
    };
    let (id, primary) = (SessionId::new(app.new_id()), ThreadId::new(app.new_id()));
    let (mut row, thread) = sessions::fresh(workspace, draft.environment, &body, id, primary, now);
    writes.push(Write::CreateSession { row: row.clone(), thread });
    if !draft.initial_events.is_empty() {
        let standing = sessions::standing(&row, &body);
        let events = &draft.initial_events;
        let admitted =
            admission::admit(&standing, events, &BTreeMap::new(), now, app.parts.ids.as_ref())?;
        let (status, activity) = (admitted.status, admitted.activity);
        writes.push(sessions::append(&row, admitted));
        writes.extend(work::wanted(app, &row, &body).await?);
        row.status = status.unwrap_or(row.status);
        row.activity = activity.unwrap_or(row.activity);
    }
    Ok(Outcome::new(writes, sessions::show(&row, &body, now)))
}

pub(super) fn check_environment(
    environment: &Environment,
    sandboxes: &Sandboxes,
    has_vaults: bool,
) -> Result<()> {
    let id = &environment.id;
    if environment.archived_at.is_some() {
        let error = ApiError::invalid(format!("environment_id: environment `{id}` is archived"));
        return Err(error.with_error_code("environment_archived").into());
    }
    // What runs on workers is their operator's business.
    let Config::Cloud(cloud) = &environment.config else { return Ok(()) };
    check_sandbox(
        id,
        cloud,
        (cloud.provider.as_deref(), cloud.image.as_deref()),
        sandboxes,
        has_vaults,
    )?;
    let mut named = cloud.sandboxes.iter().filter_map(|named| cloud.sandbox(&named.name));
    named.try_for_each(|wanted| check_sandbox(id, cloud, wanted, sandboxes, has_vaults))
}

/// Refuses what sandboxes of the wanted provider and image cannot keep.
fn check_sandbox(
    id: &EnvironmentId,
    cloud: &Cloud,
    (provider, image): (Option<&str>, Option<&str>),
    sandboxes: &Sandboxes,
    has_vaults: bool,
) -> Result<()> {
    let refuse = |message: String| -> Result<()> { Err(ApiError::invalid(message).into()) };
    let provider = match sandboxes.of(provider) {
        Ok(provider) => provider,
        Err(names) => {
            let wanted = provider.unwrap_or("a provider");
            return refuse(format!(
                "environment_id: environment `{id}` wants sandboxes of `{wanted}`, and this server has {names}; name one of them in its `config.provider`, or have the server started with `--sandbox` and both"
            ));
        }
    };
    if let Some(image) = image {
        match &provider.images {
            Some(allowed) if allowed.allow(image) => {}
            Some(_) => {
                return refuse(format!(
                    "environment_id: environment `{id}` names the image `{image}`, which is none that this server's operator allows (`--sandbox-images`); name another in its `config.image`"
                ));
            }
            None => {
                return refuse(format!(
                    "environment_id: environment `{id}` names the image `{image}`, and sandboxes of `{}` are not made of images; name a provider that does in its `config.provider`, or take `config.image` away",
                    provider.name
                ));
            }
        }
    }
    if cloud.warm_pool.is_some() && !provider.keeps_ready {
        return refuse(format!(
            "environment_id: environment `{id}` has a warm pool, and sandboxes of `{}` cannot be made before they are wanted; take `config.warm_pool` away, or name another provider in its `config.provider`",
            provider.name
        ));
    }
    let installs = !cloud.packages.is_empty() || !cloud.setup.is_empty();
    if installs && !provider.installs && provider.isolated {
        return refuse(format!(
            "environment_id: environment `{id}` has packages or setup commands, and sandboxes of `{}` are not set up by the server; name another provider in its `config.provider`, or have the image bring the packages",
            provider.name
        ));
    }
    if provider.isolated {
        return Ok(());
    }
    if installs && !provider.installs {
        return refuse(format!(
            "environment_id: sandbox required: environment `{id}` has packages or setup commands, which would change the host this server runs on; its operator can start it with `--sandbox local`, or allow this with `host_packages_ok`"
        ));
    }
    if let Networking::Limited { .. } = cloud.networking {
        return refuse(format!(
            "environment_id: sandbox required: environment `{id}` limits networking, which this server cannot do for commands on its host; its operator can start it with `--sandbox local`"
        ));
    }
    if has_vaults {
        return refuse(
            "vault_ids: sandbox required: nothing keeps secrets from commands on this server's host; its operator can start it with `--sandbox local`".to_owned(),
        );
    }
    Ok(())
}

/// The agent a session freezes: the newest version, a pinned one, or one with overrides.
async fn effective_agent(
    app: &App,
    workspace: &WorkspaceId,
    value: Value,
    writes: &mut Vec<Write>,
) -> Result<SessionAgent> {
    if let Value::String(id) = value {
        return base_agent(app, workspace, &id, None, writes).await;
    }
    let mut fields = Fields::new(value, "agent")?;
    let kind = fields.tag()?;
    let id = fields.required_string("id")?;
    let version = fields.integer("version", 1)?.and_then(|version| u64::try_from(version).ok());
    if kind != "agent" && kind != "agent_with_overrides" {
        return Err(fields.unknown_tag(&kind, &["agent", "agent_with_overrides"]).into());
    }
    let mut agent = base_agent(app, workspace, &id, version, writes).await?;
    if kind == "agent_with_overrides" {
        apply_overrides(&mut fields, &mut agent)?;
    }
    fields.finish()?;
    Ok(agent)
}

async fn base_agent(
    app: &App,
    workspace: &WorkspaceId,
    id: &str,
    version: Option<u64>,
    writes: &mut Vec<Write>,
) -> Result<SessionAgent> {
    let id = AgentId::from_wire(id);
    let (document, newest) = agents::find(app, workspace, id.as_str()).await?;
    if newest.archived_at.is_some() {
        return Err(ApiError::invalid(format!("agent: agent `{id}` is archived")).into());
    }
    writes.push(Write::CheckDocument {
        workspace: workspace.clone(),
        kind: agents::KIND.to_owned(),
        id: document.id,
        expect: Expect::Revision(document.revision),
    });
    match version {
        Some(version) if version != newest.version => {
            let pinned = agents::find_version(app, workspace, id.as_str(), version).await?;
            Ok(SessionAgent::from(&pinned))
        }
        _ => Ok(SessionAgent::from(&newest)),
    }
}

fn apply_overrides(fields: &mut Fields, agent: &mut SessionAgent) -> Result<()> {
    match fields.patch("model") {
        Patch::Absent => {}
        Patch::Null => {
            let refusal = fields
                .invalid("model", "a session needs a model; omit the field to keep the agent's");
            return Err(refusal.with_error_code("agent_model_required").into());
        }
        Patch::Set(value) => agent.model = agent::decode_model(value, &fields.at("model"), None)?,
    }
    if fields.has("system") {
        agent.system = fields.text("system", 0, agent::SYSTEM_MAX)?.filter(|text| !text.is_empty());
    }
    if let Some(tools) = agent::decode_tools(fields.patch("tools"), &fields.at("tools"))? {
        agent.tools = tools;
    }
    let at = fields.at("mcp_servers");
    if let Some(servers) = agent::decode_mcp_servers(fields.patch("mcp_servers"), &at)? {
        agent.mcp_servers = servers;
    }
    if let Some(skills) = agent::decode_skills(fields.patch("skills"), &fields.at("skills"))? {
        agent.skills = skills;
    }
    agent::check(&agent.tools, &agent.mcp_servers, &agent.skills).map_err(|invalid| {
        let path = fields.at(&invalid.path);
        Invalid { path, ..invalid }
    })?;
    Ok(())
}
