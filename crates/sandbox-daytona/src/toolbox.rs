//! The toolbox in each of Daytona's sandboxes: programs and files. A program that is spoken to is a command of a session of its own; what it says comes over a WebSocket, each line with a
//! label of three bytes that says where it was written to.

use std::io;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use reqwest::multipart::{Form, Part};
use reqwest::{Method, RequestBuilder};
use serde::Deserialize;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::header::AUTHORIZATION;
use tokio_util::task::TaskTracker;
use vaquero_sandbox::SandboxError;
use vaquero_sandbox::remote::http::{Http, secret};
use vaquero_sandbox::remote::{Input, Pipe, unique};

/// Of what a label is made. Text has neither.
const OUT: u8 = 1;
const ERR: u8 = 2;
/// Seconds that a script may take.
const SCRIPT: u64 = 120;

pub(crate) struct Toolbox {
    http: Http,
    base: String,
    key: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Started {
    cmd_id: String,
}

#[derive(Deserialize)]
struct Executed {
    #[serde(default)]
    result: String,
}

impl Toolbox {
    pub(crate) fn new(http: Http, base: String, key: String) -> Self {
        Self { http, base, key }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.client().request(method, format!("{}{path}", self.base))
    }

    /// Writes a file.
    pub(crate) async fn write(&self, path: &str, bytes: Bytes) -> Result<(), SandboxError> {
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let part = Part::stream_with_length(bytes, length).file_name("file");
        let form = Form::new().text("files[0].path", path.to_owned()).part("files[0].file", part);
        let request = self.request(Method::POST, "/files/bulk-upload").multipart(form);
        self.http.send_once(request).await.map(drop)
    }

    /// Runs a program to its end.
    pub(crate) async fn run(&self, command: &[String]) -> Result<String, SandboxError> {
        let body = json!({ "command": quoted(command)?, "timeout": SCRIPT });
        let request = self.request(Method::POST, "/process/execute").json(&body);
        let answer = self.http.send_once(request).await?;
        let done: Executed = self.http.read(answer).await?;
        Ok(done.result)
    }

    /// Starts a program that is spoken to.
    pub(crate) async fn start(self, command: &[String]) -> Result<Pipe, SandboxError> {
        let name = format!("vaquero-{}", unique());
        let body = json!({ "sessionId": name });
        let request = self.request(Method::POST, "/process/session").json(&body);
        self.http.send_once(request).await?;
        let session = Session { toolbox: self, path: format!("/process/session/{name}") };
        let body = json!({
            "command": quoted(command)?, "runAsync": true, "suppressInputEcho": true,
        });
        let request = session.request(Method::POST, "/exec").json(&body);
        let answer = session.toolbox.http.send_once(request).await?;
        let started: Started = session.toolbox.http.read(answer).await?;
        let command = format!("/command/{}", started.cmd_id);
        let said = session.follow(&command).await?;
        Ok(Pipe::of(said, Told { session, command }))
    }
}

/// A session of the toolbox's, ended with the value.
struct Session {
    toolbox: Toolbox,
    path: String,
}

impl Session {
    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.toolbox.request(method, &format!("{}{path}", self.path))
    }

    /// What a command writes to its standard output.
    async fn follow(
        &self,
        command: &str,
    ) -> Result<impl Stream<Item = io::Result<Bytes>> + Send + use<>, SandboxError> {
        let failed = |error| SandboxError::gone(format!("Daytona's toolbox: {error}"));
        // `http` becomes `ws`, and `https` becomes `wss`.
        let base = self.toolbox.base.replacen("http", "ws", 1);
        let url = format!("{base}{}{command}/logs?follow=true", self.path);
        let mut request = url.into_client_request().map_err(failed)?;
        request.headers_mut().insert(AUTHORIZATION, secret(&self.toolbox.key)?);
        let (socket, _) = tokio_tungstenite::connect_async(request).await.map_err(failed)?;
        let said =
            stream::unfold((socket, Demux::default()), |(mut socket, mut demux)| async move {
                loop {
                    let piece = match socket.next().await? {
                        Ok(Message::Binary(piece)) => piece,
                        Ok(Message::Text(piece)) => piece.into(),
                        Ok(Message::Close(_)) => return None,
                        Ok(_) => continue,
                        Err(error) => return Some((Err(io::Error::other(error)), (socket, demux))),
                    };
                    let piece = demux.output(&piece);
                    if !piece.is_empty() {
                        return Some((Ok(piece), (socket, demux)));
                    }
                }
            });
        Ok(said)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let http = self.toolbox.http.clone();
        let request = self.request(Method::DELETE, "");
        // A sandbox that is gone has no session either.
        drop(TaskTracker::new().spawn(async move { drop(http.send_once(request).await) }));
    }
}

/// What a program is told.
struct Told {
    session: Session,
    command: String,
}

#[async_trait]
impl Input for Told {
    async fn send(&mut self, piece: Bytes) -> io::Result<()> {
        let body = json!({ "data": String::from_utf8_lossy(&piece) });
        let request = self.session.request(Method::POST, &format!("{}/input", self.command));
        let sent = self.session.toolbox.http.send_once(request.json(&body)).await;
        sent.map(drop).map_err(io::Error::other)
    }
}

/// Takes labels away, and what was written to standard error.
#[derive(Default)]
struct Demux {
    errors: bool,
}

impl Demux {
    fn output(&mut self, piece: &[u8]) -> Bytes {
        let kept = piece.iter().copied().filter(|byte| {
            match *byte {
                OUT => self.errors = false,
                ERR => self.errors = true,
                _ => return !self.errors,
            }
            false
        });
        kept.collect()
    }
}

/// A command line of these words.
fn quoted(words: &[String]) -> Result<String, SandboxError> {
    shlex::try_join(words.iter().map(String::as_str)).map_err(|error| {
        SandboxError::Invalid(format!("a command line cannot be written: {error}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_taken_away_wherever_they_are_cut() {
        let all = b"\x01\x01\x01one\n\x02\x02\x02bad\n\x01\x01\x01two\n";
        for cut in 0..all.len() {
            let mut demux = Demux::default();
            let kept = [demux.output(&all[..cut]), demux.output(&all[cut..])].concat();
            assert_eq!(kept, b"one\ntwo\n");
        }
    }
}
