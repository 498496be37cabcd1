//! How a handler changes something: it decides, the commit checks, and a repeated request gets the first one's answer.

use crate::{
    app::App,
    body::{PathIds, Posted},
    reject::{Reject, Result},
};
use axum::{
    Json,
    http::{HeaderValue, StatusCode},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use vaquero_store::{Answer, AnswerKey, CommitError, Write};
use vaquero_types::{ApiError, ErrorCode, EventId, SessionId};

/// How long answers are kept.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// How often a decision is made anew when others change the same thing.
pub(crate) const ATTEMPTS: usize = 32;

/// What a handler decided.
pub(crate) struct Outcome {
    /// What must happen, all or nothing.
    pub(crate) writes: Vec<Write>,
    /// What the client is told once it has.
    pub(crate) reply: Reply,
    /// What the client is told if a unique key is taken.
    pub(crate) duplicate: Option<ApiError>,
}

/// What a client is told.
pub(crate) enum Reply {
    /// This body.
    Body(Value),
    /// These events, as they were accepted.
    Events(SessionId, Vec<EventId>),
}

impl Outcome {
    pub(crate) fn new(writes: Vec<Write>, body: Value) -> Self {
        Self { writes, reply: Reply::Body(body), duplicate: None }
    }
}

/// Requests under way by idempotency key: a twin waits for the first.
#[derive(Debug, Default)]
pub(crate) struct Twins {
    locks: Mutex<HashMap<AnswerKey, Arc<tokio::sync::Mutex<()>>>>,
}

impl Twins {
    fn lock_of(&self, key: &AnswerKey) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(locks.entry(key.clone()).or_default())
    }
}

impl App {
    /// Decides, commits and answers. `decide` runs again whenever what it read has changed before the commit.
    pub(crate) async fn change<F, Fut>(
        &self,
        posted: Posted,
        ids: PathIds,
        decide: F,
    ) -> Result<Response>
    where
        F: Fn(Self, Arc<Posted>, PathIds) -> Fut + Send + Sync,
        Fut: Future<Output = Result<Outcome>> + Send,
    {
        let posted = Arc::new(posted);
        let Some(key) = &posted.idempotency_key else {
            return self.attempt(&posted, &ids, None, &decide).await;
        };
        let key = AnswerKey {
            workspace: posted.caller.workspace.clone(),
            operation: posted.operation.clone(),
            key: key.clone(),
        };
        let lock = self.twins.lock_of(&key);
        let _first = lock.lock().await;
        self.attempt(&posted, &ids, Some(key), &decide).await
    }

    async fn attempt<F, Fut>(
        &self,
        posted: &Arc<Posted>,
        ids: &PathIds,
        key: Option<AnswerKey>,
        decide: &F,
    ) -> Result<Response>
    where
        F: Fn(Self, Arc<Posted>, PathIds) -> Fut + Send + Sync,
        Fut: Future<Output = Result<Outcome>> + Send,
    {
        for _ in 0..ATTEMPTS {
            if let Some(key) = &key
                && let Some(answer) = self.parts.store.answer(key, self.now(), KEPT).await?
            {
                return self.replay(posted, answer).await;
            }
            let outcome = match decide(self.clone(), Arc::clone(posted), ids.clone()).await {
                Ok(outcome) => outcome,
                Err(reject) => return Err(self.keep_refusal(posted, key, reject).await),
            };
            let Outcome { mut writes, reply, duplicate } = outcome;
            if let Some(key) = &key {
                writes.push(answer_write(key, posted, &reply));
            }
            if writes.is_empty() {
                return self.show(reply).await;
            }
            match self.parts.store.commit(writes, self.now()).await {
                Ok(_) => return self.show(reply).await,
                Err(
                    CommitError::Changed
                    | CommitError::NotFound
                    | CommitError::Answered
                    | CommitError::Grown,
                ) => {}
                Err(CommitError::Duplicate { key: taken }) => {
                    let error = duplicate.unwrap_or_else(|| {
                        ApiError::new(ErrorCode::Conflict, format!("`{taken}` exists already"))
                    });
                    return Err(self.keep_refusal(posted, key, Reject(error)).await);
                }
                Err(error) => return Err(error.into()),
            }
        }
        let message = "the resource is being changed by others too quickly; try again";
        Err(ApiError::new(ErrorCode::Overloaded, message).into())
    }

    async fn show(&self, reply: Reply) -> Result<Response> {
        let body = match reply {
            Reply::Body(body) => body,
            Reply::Events(session, ids) => self.accepted_events(&session, &ids).await?,
        };
        Ok(Json(body).into_response())
    }

    /// The events as they were when they were accepted.
    async fn accepted_events(&self, session: &SessionId, ids: &[EventId]) -> Result<Value> {
        let mut data = Vec::with_capacity(ids.len());
        for id in ids {
            if let Some(record) = self.parts.store.event(session, id).await? {
                let event: Value = serde_json::from_str(&record.render()).unwrap_or_default();
                data.push(event);
            }
        }
        Ok(json!({ "data": data }))
    }

    async fn replay(&self, posted: &Posted, answer: Answer) -> Result<Response> {
        if answer.request_digest != posted.digest {
            return Err(Reject(ApiError::new(
                ErrorCode::Conflict,
                "this Idempotency-Key was used with a different request body; use a new key for a new request",
            )));
        }
        let mut response = if answer.status >= 400 {
            let refusal: KeptRefusal = serde_json::from_str(&answer.body).unwrap_or_default();
            Reject(refusal.into_error(answer.status)).into_response()
        } else if let Some((session, ids)) = answer.events {
            Json(self.accepted_events(&session, &ids).await?).into_response()
        } else {
            let body: Value = serde_json::from_str(&answer.body).unwrap_or_default();
            let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK);
            (status, Json(body)).into_response()
        };
        response.headers_mut().insert("idempotent-replayed", HeaderValue::from_static("true"));
        Ok(response)
    }

    /// A refusal that another attempt would get too is kept under the key.
    async fn keep_refusal(
        &self,
        posted: &Posted,
        key: Option<AnswerKey>,
        reject: Reject,
    ) -> Reject {
        let Some(key) = key else { return reject };
        if !matches!(
            reject.0.code,
            ErrorCode::InvalidRequest | ErrorCode::NotFound | ErrorCode::Conflict
        ) {
            return reject;
        }
        let body = serde_json::to_string(&KeptRefusal::from_error(&reject.0)).unwrap_or_default();
        let answer = Answer {
            request_digest: posted.digest.clone(),
            status: reject.0.code.status(),
            body,
            events: None,
        };
        let write = Write::PutAnswer { key, answer };
        match self.parts.store.commit(vec![write], self.now()).await {
            Ok(_) | Err(CommitError::Answered) => reject,
            Err(error) => error.into(),
        }
    }
}

fn answer_write(key: &AnswerKey, posted: &Posted, reply: &Reply) -> Write {
    let (body, events) = match reply {
        Reply::Body(body) => (body.to_string(), None),
        Reply::Events(session, ids) => (String::new(), Some((session.clone(), ids.clone()))),
    };
    let answer = Answer { request_digest: posted.digest.clone(), status: 200, body, events };
    Write::PutAnswer { key: key.clone(), answer }
}

/// A refusal as it is kept: without the request id, which each repetition has its own of.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
struct KeptRefusal {
    message: String,
    error_code: Option<String>,
}

impl KeptRefusal {
    fn from_error(error: &ApiError) -> Self {
        Self { message: error.message.clone(), error_code: error.error_code.map(str::to_owned) }
    }

    fn into_error(self, status: u16) -> ApiError {
        let code = match status {
            404 => ErrorCode::NotFound,
            409 => ErrorCode::Conflict,
            _ => ErrorCode::InvalidRequest,
        };
        let error = ApiError::new(code, self.message);
        let known = |name: &&&str| self.error_code.as_deref() == Some(**name);
        match ApiError::CODES.iter().find(known) {
            Some(error_code) => error.with_error_code(error_code),
            None => error,
        }
    }
}
