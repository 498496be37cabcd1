//! The table of all routes.

use crate::{
    agents, app::App, auth, credentials, edge, environments, events, health, models,
    reject::Reject, sessions, stop_all, threads, vaults, work,
};
use axum::{
    Router,
    extract::{MatchedPath, Request},
    middleware::from_fn_with_state,
    routing::{get, post},
};
use vaquero_types::{ApiError, ErrorCode};

/// Every endpoint of the API: method, path, the SDK's name for it.
pub const TABLE: &[(&str, &str, &str)] = &[
    ("POST", "/v1/agents", "agents.create"),
    ("GET", "/v1/agents", "agents.list"),
    ("GET", "/v1/agents/{agent_id}", "agents.retrieve"),
    ("POST", "/v1/agents/{agent_id}", "agents.update"),
    ("POST", "/v1/agents/{agent_id}/archive", "agents.archive"),
    ("GET", "/v1/agents/{agent_id}/versions", "agents.versions.list"),
    ("POST", "/v1/environments", "environments.create"),
    ("GET", "/v1/environments", "environments.list"),
    ("GET", "/v1/environments/{environment_id}", "environments.retrieve"),
    ("POST", "/v1/environments/{environment_id}", "environments.update"),
    ("DELETE", "/v1/environments/{environment_id}", "environments.delete"),
    ("POST", "/v1/environments/{environment_id}/archive", "environments.archive"),
    ("GET", "/v1/environments/{environment_id}/work", "environments.work.list"),
    ("GET", "/v1/environments/{environment_id}/work/poll", "environments.work.poll"),
    ("GET", "/v1/environments/{environment_id}/work/stats", "environments.work.stats"),
    ("GET", "/v1/environments/{environment_id}/work/{work_id}", "environments.work.retrieve"),
    ("POST", "/v1/environments/{environment_id}/work/{work_id}", "environments.work.update"),
    ("POST", "/v1/environments/{environment_id}/work/{work_id}/ack", "environments.work.ack"),
    (
        "POST",
        "/v1/environments/{environment_id}/work/{work_id}/heartbeat",
        "environments.work.heartbeat",
    ),
    ("POST", "/v1/environments/{environment_id}/work/{work_id}/stop", "environments.work.stop"),
    ("POST", "/v1/sessions", "sessions.create"),
    ("GET", "/v1/sessions", "sessions.list"),
    ("GET", "/v1/sessions/{session_id}", "sessions.retrieve"),
    ("POST", "/v1/sessions/{session_id}", "sessions.update"),
    ("DELETE", "/v1/sessions/{session_id}", "sessions.delete"),
    ("POST", "/v1/sessions/{session_id}/archive", "sessions.archive"),
    ("POST", "/v1/sessions/{session_id}/events", "sessions.events.send"),
    ("GET", "/v1/sessions/{session_id}/events", "sessions.events.list"),
    ("GET", "/v1/sessions/{session_id}/events/stream", "sessions.events.stream"),
    ("GET", "/v1/sessions/{session_id}/threads", "sessions.threads.list"),
    ("GET", "/v1/sessions/{session_id}/threads/{thread_id}", "sessions.threads.retrieve"),
    ("POST", "/v1/sessions/{session_id}/threads/{thread_id}/archive", "sessions.threads.archive"),
    ("GET", "/v1/sessions/{session_id}/threads/{thread_id}/events", "sessions.threads.events.list"),
    (
        "GET",
        "/v1/sessions/{session_id}/threads/{thread_id}/stream",
        "sessions.threads.events.stream",
    ),
    ("POST", "/v1/vaults", "vaults.create"),
    ("GET", "/v1/vaults", "vaults.list"),
    ("GET", "/v1/vaults/{vault_id}", "vaults.retrieve"),
    ("POST", "/v1/vaults/{vault_id}", "vaults.update"),
    ("DELETE", "/v1/vaults/{vault_id}", "vaults.delete"),
    ("POST", "/v1/vaults/{vault_id}/archive", "vaults.archive"),
    ("POST", "/v1/vaults/{vault_id}/credentials", "vaults.credentials.create"),
    ("GET", "/v1/vaults/{vault_id}/credentials", "vaults.credentials.list"),
    ("GET", "/v1/vaults/{vault_id}/credentials/{credential_id}", "vaults.credentials.retrieve"),
    ("POST", "/v1/vaults/{vault_id}/credentials/{credential_id}", "vaults.credentials.update"),
    ("DELETE", "/v1/vaults/{vault_id}/credentials/{credential_id}", "vaults.credentials.delete"),
    (
        "POST",
        "/v1/vaults/{vault_id}/credentials/{credential_id}/archive",
        "vaults.credentials.archive",
    ),
    (
        "POST",
        "/v1/vaults/{vault_id}/credentials/{credential_id}/mcp_oauth_validate",
        "vaults.credentials.mcp_oauth_validate",
    ),
    ("GET", "/v1/models", "models.list"),
    ("GET", "/v1/models/{model_id}", "models.retrieve"),
];

/// What is ours alone: method and path.
pub const EXTENSIONS: &[(&str, &str)] = &[
    ("POST", "/v1/sessions/stop_all"),
    ("POST", "/v1/sessions/{session_id}/fork"),
    ("GET", "/v1/sessions/{session_id}/sandbox"),
];

/// The application's router.
pub fn router(app: App) -> Router {
    let session = "/v1/sessions/{session_id}";
    let thread = "/v1/sessions/{session_id}/threads/{thread_id}";
    let queue = "/v1/environments/{environment_id}/work";
    let item = "/v1/environments/{environment_id}/work/{work_id}";
    let vault = "/v1/vaults/{vault_id}";
    let credential = "/v1/vaults/{vault_id}/credentials/{credential_id}";
    let api = Router::new()
        .route("/v1/agents", post(agents::create::handler).get(agents::list::handler))
        .route(
            "/v1/agents/{agent_id}",
            get(agents::retrieve::handler).post(agents::update::handler),
        )
        .route("/v1/agents/{agent_id}/archive", post(agents::archive::handler))
        .route("/v1/agents/{agent_id}/versions", get(agents::versions::handler))
        .route(
            "/v1/environments",
            post(environments::create::handler).get(environments::list::handler),
        )
        .route(
            "/v1/environments/{environment_id}",
            get(environments::retrieve::handler)
                .post(environments::update::handler)
                .delete(environments::delete::handler),
        )
        .route("/v1/environments/{environment_id}/archive", post(environments::archive::handler))
        .route(queue, get(work::list::handler))
        .route(&format!("{queue}/poll"), get(work::poll::handler))
        .route(&format!("{queue}/stats"), get(work::stats::handler))
        .route(item, get(work::retrieve::handler).post(work::update::handler))
        .route(&format!("{item}/ack"), post(work::ack::handler))
        .route(&format!("{item}/heartbeat"), post(work::heartbeat::handler))
        .route(&format!("{item}/stop"), post(work::stop::handler))
        .route("/v1/sessions", post(sessions::create::handler).get(sessions::list::handler))
        .route(
            session,
            get(sessions::retrieve::handler)
                .post(sessions::update::handler)
                .delete(sessions::delete::handler),
        )
        .route("/v1/sessions/stop_all", post(stop_all::handler))
        .route(&format!("{session}/archive"), post(sessions::archive::handler))
        .route(&format!("{session}/fork"), post(sessions::fork::handler))
        .route(&format!("{session}/sandbox"), get(sessions::sandbox::handler))
        .route(&format!("{session}/events"), post(events::send::handler).get(events::list::handler))
        .route(&format!("{session}/events/stream"), get(events::stream::handler))
        .route(&format!("{session}/threads"), get(threads::list::handler))
        .route(thread, get(threads::retrieve::handler))
        .route(&format!("{thread}/archive"), post(threads::archive::handler))
        .route(&format!("{thread}/events"), get(threads::events::handler))
        .route(&format!("{thread}/stream"), get(threads::stream::handler))
        .route("/v1/vaults", post(vaults::create::handler).get(vaults::list::handler))
        .route(
            vault,
            get(vaults::retrieve::handler)
                .post(vaults::update::handler)
                .delete(vaults::delete::handler),
        )
        .route(&format!("{vault}/archive"), post(vaults::archive::handler))
        .route(
            &format!("{vault}/credentials"),
            post(credentials::create::handler).get(credentials::list::handler),
        )
        .route(
            credential,
            get(credentials::retrieve::handler)
                .post(credentials::update::handler)
                .delete(credentials::delete::handler),
        )
        .route(&format!("{credential}/archive"), post(credentials::archive::handler))
        .route(&format!("{credential}/mcp_oauth_validate"), post(credentials::validate::handler))
        .route("/v1/models", get(models::list::handler))
        .route("/v1/models/{model_id}", get(models::retrieve::handler))
        .route_layer(from_fn_with_state(app.clone(), auth::require));
    let all = api.merge(probes()).route("/openapi.json", get(health::document));
    finish(all.fallback(edge::unknown_path), app)
}

/// What a server answers that runs turns and no API: probes alone.
pub fn worker_router(app: App) -> Router {
    finish(probes().fallback(edge::only_a_worker), app)
}

fn probes() -> Router<App> {
    Router::new().route("/health", get(health::health)).route("/metrics", get(health::metrics))
}

fn finish(router: Router<App>, app: App) -> Router {
    router
        .method_not_allowed_fallback(unknown_method)
        .layer(from_fn_with_state(app.clone(), edge::envelope))
        .with_state(app)
}

/// A method that its path does not take.
async fn unknown_method(path: Option<MatchedPath>, request: Request) -> Reject {
    let path = path.as_ref().map_or("", MatchedPath::as_str);
    let all = TABLE.iter().map(|(method, known, _)| (*method, *known));
    let all = all.chain(EXTENSIONS.iter().copied());
    let taken = all.filter(|(_, known)| *known == path).map(|(method, _)| method);
    let taken: Vec<&str> = taken.collect();
    let taken = if taken.is_empty() { "GET".to_owned() } else { taken.join(", ") };
    let message = format!("`{}` takes {taken}, not {}", request.uri().path(), request.method());
    Reject(ApiError::new(ErrorCode::MethodNotAllowed, message))
}
