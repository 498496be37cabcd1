//! One living sandbox: the seam's calls as requests to its hand.
//! A hand that breaks the protocol is reported to the provider, which ends it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio_util::sync::DropGuard;
use vaquero_hand::pack::Piece;
use vaquero_hand::protocol::{Fence, Op, State, ToolResult, VERSION};

use super::quota::Room;
use crate::answer::Answer;
use crate::connection::Connection;
use crate::error::SandboxError;
use crate::seam::{CallState, Meter, Sandbox, SandboxSpec, Traffic};

/// How long anything but a run may take; a sandbox at its CPU limit is slow, not dead.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long packing may take: every large file that changed is read.
const PACK_TIMEOUT: Duration = Duration::from_mins(5);
/// One read of a file.
const CHUNK: u64 = 4 << 20;

/// A sandbox and the connection to it.
#[derive(Debug)]
pub(crate) struct HandSandbox {
    pub(crate) provider: &'static str,
    pub(crate) generation: u64,
    /// What its session's files may take.
    pub(super) room: Room,
    pub(crate) connection: Arc<Connection>,
    pub(crate) call_ceiling: Duration,
    /// Its way out, if it has one.
    pub(super) way_out: Option<WayOut>,
}

/// A way out that is served for as long as this lives.
#[derive(Debug)]
pub(super) struct WayOut {
    pub(super) meter: Arc<dyn Meter>,
    pub(super) _until: DropGuard,
}

impl HandSandbox {
    /// Makes sure that the other end is a hand of the right version and generation.
    pub(crate) async fn greet(&self, spec: &SandboxSpec) -> Result<(), SandboxError> {
        let fence = Fence { epoch: spec.epoch, generation: self.generation };
        let hello = Op::Hello { variables: spec.stand_ins.clone() };
        let hello = self.connection.ask(fence, hello, CONTROL_TIMEOUT).await?;
        if let Answer::Hello { version: VERSION, generation } = hello
            && generation == self.generation
        {
            return Ok(());
        }
        Err(self.connection.mismatch("hello"))
    }

    async fn bytes(&self, fence: Fence, op: Op, asked: &str) -> Result<Vec<u8>, SandboxError> {
        if let Answer::Bytes { data_b64 } = self.connection.ask(fence, op, PACK_TIMEOUT).await?
            && let Ok(bytes) = STANDARD.decode(data_b64)
        {
            return Ok(bytes);
        }
        Err(self.connection.mismatch(asked))
    }

    async fn put(&self, fence: Fence, op: Op, asked: &str) -> Result<(), SandboxError> {
        let answer = self.connection.ask(fence, op, PACK_TIMEOUT).await?;
        if matches!(answer, Answer::Put) { Ok(()) } else { Err(self.connection.mismatch(asked)) }
    }

    async fn control(&self, fence: Fence, op: Op) -> Result<Answer, SandboxError> {
        self.connection.ask(fence, op, CONTROL_TIMEOUT).await
    }
}

#[async_trait]
impl Sandbox for HandSandbox {
    fn provider(&self) -> &'static str {
        self.provider
    }

    fn generation(&self) -> u64 {
        self.generation
    }

    fn traffic(&self) -> Traffic {
        self.way_out.as_ref().map(|way_out| way_out.meter.so_far()).unwrap_or_default()
    }

    async fn run(
        &self,
        call_id: &str,
        fence: Fence,
        tool: &str,
        input: &serde_json::Value,
        timeout: Option<Duration>,
    ) -> Result<ToolResult, SandboxError> {
        let timeout_ms = timeout.map(|t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX));
        let op = Op::Run {
            call_id: call_id.to_owned(),
            tool: tool.to_owned(),
            input: input.clone(),
            timeout_ms,
        };
        let Answer::Run(result) = self.connection.ask(fence, op, self.call_ceiling).await? else {
            return Err(self.connection.mismatch("run"));
        };
        Ok(result)
    }

    async fn status(&self, call_id: &str, fence: Fence) -> Result<CallState, SandboxError> {
        let answer = self.control(fence, Op::Status { call_id: call_id.to_owned() }).await?;
        let Answer::Status(state, result) = answer else {
            return Err(self.connection.mismatch("status"));
        };
        match (state, result) {
            (State::Unknown, None) => Ok(CallState::Unknown),
            (State::Running, None) => Ok(CallState::Running),
            (State::Finished, Some(result)) => Ok(CallState::Finished(result)),
            (State::Finished, None) => Err(SandboxError::Acked),
            (State::Unknown | State::Running, Some(_)) => Err(self.connection.mismatch("status")),
        }
    }

    async fn ack(&self, call_id: &str, fence: Fence) -> Result<(), SandboxError> {
        let answer = self.control(fence, Op::Ack { call_id: call_id.to_owned() }).await?;
        if matches!(answer, Answer::Ack) { Ok(()) } else { Err(self.connection.mismatch("ack")) }
    }

    async fn cancel(&self, call_id: &str, fence: Fence) -> Result<(), SandboxError> {
        let answer = self.control(fence, Op::Cancel { call_id: call_id.to_owned() }).await?;
        if matches!(answer, Answer::Cancel) {
            Ok(())
        } else {
            Err(self.connection.mismatch("cancel"))
        }
    }

    async fn pack(&self, fence: Fence) -> Result<Vec<Piece>, SandboxError> {
        let answer = self.connection.ask(fence, Op::Pack {}, PACK_TIMEOUT).await?;
        let Answer::Pages(pages) = answer else { return Err(self.connection.mismatch("pack")) };
        Ok(pages)
    }

    async fn page(&self, index: usize, fence: Fence) -> Result<Vec<u8>, SandboxError> {
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        self.bytes(fence, Op::Page { index }, "page").await
    }

    async fn part(&self, path: &[u8], offset: u64, fence: Fence) -> Result<Vec<u8>, SandboxError> {
        self.bytes(fence, Op::Part { path_b64: STANDARD.encode(path), offset }, "part").await
    }

    async fn put_part(
        &self,
        path: &[u8],
        first: bool,
        bytes: &[u8],
        fence: Fence,
    ) -> Result<(), SandboxError> {
        let (path_b64, data_b64) = (STANDARD.encode(path), STANDARD.encode(bytes));
        self.put(fence, Op::PutPart { path_b64, first, data_b64 }, "put_part").await
    }

    async fn unpack(&self, page: &[u8], fence: Fence) -> Result<(), SandboxError> {
        self.put(fence, Op::Unpack { data_b64: STANDARD.encode(page) }, "unpack").await
    }

    async fn read_file(
        &self,
        path: &str,
        max_bytes: u64,
        fence: Fence,
    ) -> Result<Vec<u8>, SandboxError> {
        let mut bytes: Vec<u8> = Vec::new();
        loop {
            let offset = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            let limit = max_bytes.saturating_sub(offset).min(CHUNK);
            if limit == 0 {
                return Ok(bytes);
            }
            let op = Op::ReadFile { path: path.to_owned(), offset, limit };
            let Answer::File { data_b64, eof } = self.control(fence, op).await? else {
                return Err(self.connection.mismatch("read_file"));
            };
            let Ok(chunk) = STANDARD.decode(data_b64) else {
                return Err(self.connection.mismatch("read_file"));
            };
            let size = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
            if size > limit || (size == 0 && !eof) {
                return Err(self.connection.mismatch("read_file"));
            }
            bytes.extend(chunk);
            if eof {
                return Ok(bytes);
            }
        }
    }
}
