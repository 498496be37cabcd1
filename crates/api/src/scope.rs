//! What a key opens: a workspace, the queue and the sessions of one self-hosted environment, or one item of its queue with its session.

use crate::{
    app::App,
    reject::{Reject, Result},
};
use axum::http::Method;
use serde::{Deserialize, Serialize};
use vaquero_types::{ApiError, EnvironmentId, ErrorCode, SessionId, WorkId, WorkspaceId};

/// What a caller may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Everything in its workspace.
    Workspace,
    /// What the workers of an environment do.
    Environment(EnvironmentId),
    /// What the worker of one item does.
    Work(WorkToken),
}

/// Whose token it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WorkToken {
    pub(crate) workspace: WorkspaceId,
    pub(crate) environment: EnvironmentId,
    pub(crate) work: WorkId,
    pub(crate) session: SessionId,
}

impl WorkToken {
    /// An item has one token at a time.
    pub(crate) fn id_of(work: &WorkId) -> String {
        format!("token.{work}")
    }
}

/// For whom an endpoint is.
enum For {
    /// Clients.
    Clients,
    /// Workers, by their environment's key.
    Workers,
    /// Workers, by either of theirs.
    Worker,
    /// Clients, and workers by either of theirs.
    ClientsAndWorker,
    /// Clients, and workers by their environment's key.
    ClientsAndWorkers,
    /// Clients, and whoever serves the session.
    Session,
}

fn endpoint(method: &Method, route: &str) -> For {
    let Some(rest) = route.strip_prefix("/v1/environments/{environment_id}/work") else {
        let session = route.strip_prefix("/v1/sessions/{session_id}");
        return match (method.as_str(), session) {
            (
                "GET",
                Some(
                    ""
                    | "/events"
                    | "/events/stream"
                    | "/threads"
                    | "/threads/{thread_id}"
                    | "/threads/{thread_id}/events"
                    | "/threads/{thread_id}/stream",
                ),
            )
            | ("POST", Some("/events")) => For::Session,
            _ => For::Clients,
        };
    };
    match rest {
        "" | "/poll" | "/{work_id}/ack" => For::Workers,
        "/{work_id}/heartbeat" => For::Worker,
        "/{work_id}/stop" => For::ClientsAndWorker,
        "/stats" => For::ClientsAndWorkers,
        _ => For::Clients,
    }
}

/// Refuses what a key is not for.
pub(crate) async fn check(
    app: &App,
    scope: &Scope,
    workspace: &WorkspaceId,
    method: &Method,
    route: &str,
    path: &str,
) -> Result<()> {
    let part = |at: usize| path.split('/').nth(at).unwrap_or_default();
    let (first, second) = (part(3), part(5));
    let allowed = match (scope, endpoint(method, route)) {
        (Scope::Workspace, For::Workers | For::Worker) => {
            return refuse(
                "this is for an environment's workers: send the environment's key, which `vaquero key create --environment env_…` makes",
            );
        }
        (Scope::Workspace, _) => true,
        (
            Scope::Environment(own),
            For::Workers | For::Worker | For::ClientsAndWorker | For::ClientsAndWorkers,
        ) => own.as_str() == first,
        (Scope::Environment(own), For::Session) => {
            let row = app.parts.store.session(&SessionId::from_wire(first)).await?;
            let row = row.filter(|row| row.workspace == *workspace);
            // Also an id that is spelt in another way than it was given: what is checked is what is used.
            row.ok_or_else(|| ApiError::not_found("session", first))?.environment == *own
        }
        (Scope::Work(token), For::Worker | For::ClientsAndWorker) => {
            token.environment.as_str() == first && token.work.as_str() == second
        }
        (Scope::Work(token), For::Session) => token.session.as_str() == first,
        (Scope::Environment(_) | Scope::Work(_), _) => false,
    };
    if allowed {
        return Ok(());
    }
    refuse(match scope {
        Scope::Environment(_) => {
            "this is the key of an environment's workers: it opens that environment's work queue and the events of its sessions, nothing else"
        }
        _ => {
            "this is the token of one item of work: it opens that item and the events of its session, nothing else"
        }
    })
}

fn refuse(message: &str) -> Result<()> {
    Err(Reject(ApiError::new(ErrorCode::Permission, message)))
}
