//! Who is calling: the key of a request, the workspace it opens, and the headers every caller may send.

use crate::{
    app::App,
    keys,
    reject::{Reject, Result},
    scope::{self, Scope},
};
use axum::{
    extract::{FromRequestParts, MatchedPath, Request, State},
    http::{HeaderMap, Method, request::Parts},
    middleware::Next,
    response::Response,
};
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use subtle::ConstantTimeEq;
use vaquero_types::{ApiError, ApiKeyId, ErrorCode, Timestamp, WorkspaceId};

/// An authenticated caller.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// The key's id.
    pub(crate) key: ApiKeyId,
    /// The workspace it opens.
    pub(crate) workspace: WorkspaceId,
    /// How much of it.
    pub(crate) scope: Scope,
}

/// Travels with the response so that the edge can name the workspace.
#[derive(Clone, Debug)]
pub(crate) struct CallerWorkspace(pub(crate) WorkspaceId);

/// Keys that were looked up a moment ago. Revoking one here clears it; one that another process revoked is trusted no longer than [`KeyCache::TRUST`].
#[derive(Debug, Default)]
pub(crate) struct KeyCache {
    known: Mutex<HashMap<String, (Caller, Timestamp)>>,
}

impl KeyCache {
    /// Most keys kept.
    const MOST: usize = 10_000;
    const TRUST: Duration = Duration::from_secs(5);

    fn get(&self, hash: &str, now: Timestamp) -> Option<Caller> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (caller, until) = known.get(hash)?;
        (now < *until).then(|| caller.clone())
    }

    fn put(&self, hash: String, caller: Caller, now: Timestamp) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= Self::MOST {
            known.clear();
        }
        known.insert(hash, (caller, now.plus(Self::TRUST)));
    }

    pub(crate) fn clear(&self) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl FromRequestParts<App> for Caller {
    type Rejection = Reject;

    async fn from_request_parts(parts: &mut Parts, _app: &App) -> Result<Self> {
        parts.extensions.get::<Self>().cloned().ok_or_else(unauthenticated)
    }
}

/// Lets only known keys through, within their rate.
pub(crate) async fn require(
    State(app): State<App>,
    mut request: Request,
    next: Next,
) -> std::result::Result<Response, Reject> {
    let caller = authenticate(&app, request.headers()).await?;
    let workspace = CallerWorkspace(caller.workspace.clone());
    let mut checked = check_headers(request.headers(), &caller).and_then(|()| {
        let creates = request.method() == Method::POST;
        app.limiter.admit(&caller, creates, app.now()).map_err(Reject)
    });
    if checked.is_ok() {
        let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
        let (method, path) = (request.method(), request.uri().path());
        checked = scope::check(&app, &caller.scope, &caller.workspace, method, route, path).await;
    }
    let mut response = match checked {
        Ok(()) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(reject) => axum::response::IntoResponse::into_response(reject),
    };
    response.extensions_mut().insert(workspace);
    Ok(response)
}

fn unauthenticated() -> Reject {
    Reject(ApiError::new(
        ErrorCode::Authentication,
        "Authentication failed: send a valid API key as `Authorization: Bearer …` or `x-api-key`",
    ))
}

fn presented(headers: &HeaderMap) -> Result<String> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let bearer = text("authorization").map(|value| {
        let (scheme, key) = value.split_once(' ').unwrap_or((value, ""));
        if scheme.eq_ignore_ascii_case("bearer") { key.trim() } else { "" }
    });
    match (bearer, text("x-api-key")) {
        (Some(bearer), Some(key)) => {
            if bool::from(bearer.as_bytes().ct_eq(key.as_bytes())) && !key.is_empty() {
                return Ok(key.to_owned());
            }
            Err(Reject(ApiError::new(
                ErrorCode::Authentication,
                "`authorization` and `x-api-key` carry different keys; send one of them",
            )))
        }
        (Some(key), None) | (None, Some(key)) if !key.is_empty() => Ok(key.to_owned()),
        _ => Err(unauthenticated()),
    }
}

async fn authenticate(app: &App, headers: &HeaderMap) -> Result<Caller> {
    let presented = presented(headers)?;
    let hash = keys::hash(&presented);
    if let Some(caller) = app.keys.get(&hash, app.now()) {
        return Ok(caller);
    }
    let store = app.parts.store.as_ref();
    let caller = if let Some(token) = keys::find_token(store, &presented).await? {
        let (key, workspace) = (ApiKeyId::from_wire(token.work.as_str()), token.workspace.clone());
        Caller { key, workspace, scope: Scope::Work(token) }
    } else {
        let key = keys::find(store, &hash).await?.ok_or_else(unauthenticated)?;
        let scope = key.environment.map_or(Scope::Workspace, Scope::Environment);
        Caller { key: key.id, workspace: key.workspace, scope }
    };
    app.keys.put(hash, caller.clone(), app.now());
    Ok(caller)
}

fn check_headers(headers: &HeaderMap, caller: &Caller) -> Result<()> {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    match text("anthropic-version") {
        None | Some("2023-06-01" | "2026-10-21") => {}
        Some(other) => {
            let message = format!(
                "anthropic-version: `{other}` is not a valid version; this server speaks `2026-10-21` and `2023-06-01`"
            );
            return Err(ApiError::invalid(message).into());
        }
    }
    match text("anthropic-workspace-id") {
        Some(workspace) if workspace != caller.workspace.as_str() => Err(Reject(ApiError::new(
            ErrorCode::Permission,
            format!(
                "this API key belongs to workspace `{}`, not to the one in `anthropic-workspace-id`",
                caller.workspace
            ),
        ))),
        _ => Ok(()),
    }
}
