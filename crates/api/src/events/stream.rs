//! `GET /v1/sessions/{session_id}/events/stream`: server-sent events. What is durable comes from the log and nowhere else; deltas are provisional.

mod frames;
mod previews;

use crate::{app::App, auth::Caller, body::PathIds, query::Query, reject::Result, sessions};
use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use previews::Previews;
use std::time::Duration;
use tokio::sync::{
    broadcast::{self, error::RecvError},
    mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use vaquero_store::{Delta, RecordKind, Seq, StoreError};
use vaquero_types::{ApiError, SessionId, ThreadId};

/// Most bytes read from the log at once.
const READ: usize = 256 << 10;
/// Writes that may wait for a slow client before the stream stops reading.
const BACKLOG: usize = 4;

pub(crate) async fn handler(
    State(app): State<App>,
    caller: Caller,
    ids: PathIds,
    headers: HeaderMap,
    query: Query,
) -> Result<Response> {
    let (row, _) = sessions::find(&app, &caller.workspace, ids.get("session_id")).await?;
    open(&app, row.id, None, &headers, query).await
}

/// Opens a stream. Its position is fixed here, before any header is sent.
pub(crate) async fn open(
    app: &App,
    session: SessionId,
    thread: Option<ThreadId>,
    headers: &HeaderMap,
    mut query: Query,
) -> Result<Response> {
    let wanted = query.many("event_deltas");
    query.finish()?;
    let previews = Previews::decode(&wanted)?;
    let deltas = previews.wanted().then(|| app.parts.live.subscribe(&session));
    let position = app.parts.store.position(&session).await?;
    let head = position.map_or(0, |position| position.seq);
    let seen = resume_from(headers, head)?.unwrap_or(head);
    let (frames, body) = mpsc::channel(BACKLOG);
    let stream = Stream { app: app.clone(), session, thread, seen, frames, deltas, previews };
    app.streams.spawn(stream.run());
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache, no-transform"),
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    Ok((headers, Body::from_stream(ReceiverStream::new(body))).into_response())
}

fn resume_from(headers: &HeaderMap, head: Seq) -> Result<Option<Seq>> {
    let Some(value) = headers.get("last-event-id") else { return Ok(None) };
    let text = value.to_str().unwrap_or_default();
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse::<Seq>() {
        Ok(seq) if seq <= head => Ok(Some(seq)),
        _ => {
            let message =
                "last-event-id: this is not the id of an event frame of this session's stream";
            Err(ApiError::invalid(message).into())
        }
    }
}

/// The client is gone, or the stream is over.
struct Ended;

struct Stream {
    app: App,
    session: SessionId,
    thread: Option<ThreadId>,
    seen: Seq,
    frames: mpsc::Sender<std::io::Result<Bytes>>,
    deltas: Option<broadcast::Receiver<Delta>>,
    previews: Previews,
}

impl Stream {
    async fn run(mut self) {
        metrics::gauge!("vaquero_streams_open").increment(1.0);
        drop(self.follow().await);
        metrics::gauge!("vaquero_streams_open").decrement(1.0);
    }

    async fn follow(&mut self) -> std::result::Result<(), Ended> {
        self.send(Bytes::from_static(b": connected\n\n")).await?;
        loop {
            self.catch_up().await?;
            self.wait().await?;
        }
    }

    async fn send(&self, frame: Bytes) -> std::result::Result<(), Ended> {
        let drain = &self.app.parts.drain;
        tokio::select! {
            biased;
            sent = self.frames.send(Ok(frame)) => sent.map_err(|_| Ended),
            () = drain.cancelled() => Err(Ended),
        }
    }

    /// Sends everything the log holds past the position.
    async fn catch_up(&mut self) -> std::result::Result<(), Ended> {
        loop {
            let read = self.app.parts.store.read(&self.session, self.seen, READ).await;
            let records = read.map_err(|error| self.broken(&error))?;
            if records.is_empty() {
                return Ok(());
            }
            let mut batch = Vec::new();
            let mut deleted = false;
            for record in records {
                self.seen = record.seq;
                if record.new.kind == RecordKind::Transcript
                    || self.thread.as_ref().is_some_and(|thread| *thread != record.new.thread)
                {
                    continue;
                }
                self.previews.durable(&record);
                frames::durable(&mut batch, &record);
                deleted |= record.new.event_type == "session.deleted";
            }
            if !batch.is_empty() {
                self.send(Bytes::from(batch)).await?;
            }
            if deleted {
                return Err(Ended);
            }
        }
    }

    fn broken(&self, error: &StoreError) -> Ended {
        tracing::error!(session = %self.session, %error, "a stream ends because the log cannot be read");
        Ended
    }

    /// Waits for the log to grow, passing on deltas and signs of life meanwhile.
    async fn wait(&mut self) -> std::result::Result<(), Ended> {
        let (app, session) = (self.app.clone(), self.session.clone());
        let grown = app.parts.store.wait_past(&session, self.seen);
        tokio::pin!(grown);
        let idle: Duration = app.parts.settings.keep_alive;
        loop {
            tokio::select! {
                biased;
                () = app.parts.drain.cancelled() => return Err(Ended),
                () = self.frames.closed() => return Err(Ended),
                delta = next(&mut self.deltas) => self.preview(delta).await?,
                grown = &mut grown => return grown.map_err(|error| self.broken(&error)),
                () = tokio::time::sleep(idle) => {
                    self.send(Bytes::from_static(b": keepalive\n\n")).await?;
                }
            }
        }
    }

    async fn preview(
        &mut self,
        delta: std::result::Result<Delta, RecvError>,
    ) -> std::result::Result<(), Ended> {
        match delta {
            Ok(delta) => {
                if let Some(frame) = self.previews.frame(&delta, self.thread.as_ref()) {
                    self.send(frame).await?;
                }
            }
            Err(RecvError::Lagged(_)) => self.previews.shed(),
            Err(RecvError::Closed) => {
                self.deltas = Some(self.app.parts.live.subscribe(&self.session));
                self.previews.shed();
            }
        }
        Ok(())
    }
}

async fn next(
    deltas: &mut Option<broadcast::Receiver<Delta>>,
) -> std::result::Result<Delta, RecvError> {
    match deltas {
        Some(deltas) => deltas.recv().await,
        None => std::future::pending().await,
    }
}
