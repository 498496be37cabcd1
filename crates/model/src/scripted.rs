//! A stand-in model for working offline and for tests: a server that speaks the Messages API and follows a script in the user's message. It is not a language
//! model and says so. What it answers depends on the request alone, so that a repeated request gets the same answer.

mod check;
mod reply;
mod script;

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::net::TcpListener;

/// How many requests are remembered for `/__requests`.
const REMEMBERED: usize = 50;

/// The models it claims to have.
pub const MODELS: [&str; 2] = ["scripted", "claude-scripted-stand-in"];

#[derive(Debug, Default)]
struct Memory {
    total: u64,
    recent: VecDeque<Value>,
    violations: Vec<String>,
    attempts: HashMap<u64, u32>,
    histories: HashMap<u64, Vec<Vec<u64>>>,
}

/// The stand-in.
#[derive(Clone, Debug, Default)]
pub struct Scripted {
    memory: Arc<Mutex<Memory>>,
    remember: bool,
}

impl Scripted {
    /// A stand-in that checks and remembers what it is sent.
    pub fn new() -> Self {
        Self { memory: Arc::default(), remember: true }
    }

    /// A stand-in for load: it answers and keeps nothing.
    pub fn forgetful() -> Self {
        Self { memory: Arc::default(), remember: false }
    }

    /// What was wrong with the requests so far.
    pub fn violations(&self) -> Vec<String> {
        self.memory().violations.clone()
    }

    /// How many model requests came.
    pub fn requests(&self) -> u64 {
        self.memory().total
    }

    /// Serves until the future is dropped.
    pub async fn serve(self, listener: TcpListener) -> std::io::Result<()> {
        axum::serve(listener, self.router()).await
    }

    /// Its routes.
    pub fn router(self) -> Router {
        Router::new()
            .route("/v1/messages", post(messages))
            .route("/v1/models", get(models))
            .route("/v1/models/{id}", get(model))
            .route("/__requests", get(requests))
            .route("/__violations", get(violations))
            .layer(axum::extract::DefaultBodyLimit::max(256 << 20))
            .with_state(self)
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn messages(State(scripted): State<Scripted>, Json(request): Json<Value>) -> Response {
    if scripted.remember {
        let mut memory = scripted.memory();
        memory.total += 1;
        if check::has_bad_image(&request["messages"]) {
            drop(memory);
            let message = "messages: Could not process image";
            return refuse(StatusCode::BAD_REQUEST, "invalid_request_error", message);
        }
        if let Some(violation) = check::violation(&request, &mut memory.histories) {
            memory.violations.push(violation.clone());
            drop(memory);
            return refuse(StatusCode::BAD_REQUEST, "invalid_request_error", &violation);
        }
        if memory.recent.len() == REMEMBERED {
            memory.recent.pop_front();
        }
        memory.recent.push_back(request.clone());
    } else {
        scripted.memory().total += 1;
    }
    let plan = script::plan(&request);
    if let Some(failure) = &plan.failure {
        let key = check::digest(&request);
        let mut memory = scripted.memory();
        let attempts = memory.attempts.entry(key).or_default();
        *attempts += 1;
        if *attempts <= failure.times {
            drop(memory);
            return fail(failure.status);
        }
    }
    let cut = plan.cut.is_some_and(|times| {
        let key = check::digest(&request) ^ 1;
        let mut memory = scripted.memory();
        let attempts = memory.attempts.entry(key).or_default();
        *attempts += 1;
        *attempts <= times
    });
    reply::respond(&request, plan, cut)
}

fn refuse(status: StatusCode, kind: &str, message: &str) -> Response {
    let body = json!({ "type": "error", "error": { "type": kind, "message": message } });
    (status, Json(body)).into_response()
}

fn fail(status: u16) -> Response {
    let kind = match status {
        400 => "invalid_request_error",
        401 => "authentication_error",
        402 => "billing_error",
        429 => "rate_limit_error",
        529 => "overloaded_error",
        _ => "api_error",
    };
    let code = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    refuse(code, kind, "the script asked for this failure")
}

fn info(id: &str) -> Value {
    json!({
        "type": "model", "id": id, "display_name": format!("{id} (scripted stand-in, not a language model)"),
        "created_at": "2026-01-01T00:00:00Z", "max_input_tokens": 200_000, "max_tokens": 64_000,
        "capabilities": null, "lifecycle": "active", "line": null,
    })
}

async fn models() -> Json<Value> {
    let data: Vec<Value> = MODELS.iter().map(|id| info(id)).collect();
    Json(json!({ "data": data, "has_more": false, "first_id": MODELS[0], "last_id": MODELS[1] }))
}

async fn model(axum::extract::Path(id): axum::extract::Path<String>) -> Response {
    if MODELS.contains(&id.as_str()) {
        Json(info(&id)).into_response()
    } else {
        refuse(StatusCode::NOT_FOUND, "not_found_error", "there is no such model")
    }
}

async fn requests(State(scripted): State<Scripted>) -> Json<Value> {
    let memory = scripted.memory();
    Json(json!({ "total": memory.total, "recent": memory.recent }))
}

async fn violations(State(scripted): State<Scripted>) -> Json<Value> {
    Json(json!(scripted.memory().violations))
}
