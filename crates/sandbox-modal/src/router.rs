//! What answers in one of Modal's sandboxes: programs, whose streams are read and written by offsets, so that nothing is lost or said twice when a connection breaks.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use prost::Message;
use tonic::{Code, Status, Streaming};
use vaquero_sandbox::SandboxError;
use vaquero_sandbox::remote::{Input, Pipe, unique};

use crate::control::Control;
use crate::messages::{
    Nothing, PIPE, TaskExec, TaskExecStartRequest, TaskExecStdinWriteRequest,
    TaskExecStdioReadRequest, TaskExecStdioReadResponse, TaskExecWaitResponse,
    TaskSnapshotFilesystemRequest, TaskSnapshotFilesystemResponse,
};
use crate::rpc::failed;

/// What is written at once.
const PIECE: usize = 1 << 20;
/// How often a stream is taken up again, and after how long.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(200);

macro_rules! method {
    ($name:literal) => {
        concat!("/modal.task_command_router.TaskCommandRouter/", $name)
    };
}

/// What answers in one sandbox.
#[derive(Clone, Debug)]
pub(crate) struct Router {
    control: Arc<Control>,
    sandbox: String,
    task: String,
}

impl Router {
    pub(crate) async fn of(control: &Arc<Control>, sandbox: &str) -> Result<Self, SandboxError> {
        let task = control.task(sandbox).await?;
        Ok(Self { control: Arc::clone(control), sandbox: sandbox.to_owned(), task })
    }

    async fn call<Q, A>(&self, path: &'static str, message: Q) -> Result<A, SandboxError>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        // What a program outlives is the word by which it is reached.
        self.control.access(&self.sandbox).await?.call(path, message).await
    }

    async fn start(&self, command: &[String]) -> Result<Program, SandboxError> {
        let name = unique();
        let request = TaskExecStartRequest {
            task_id: self.task.clone(),
            exec_id: name.clone(),
            command_args: command.to_vec(),
            stdout_config: PIPE,
        };
        self.call::<_, Nothing>(method!("TaskExecStart"), request).await?;
        Ok(Program { router: self.clone(), name, told: 0 })
    }

    /// Starts a program that is spoken to.
    pub(crate) async fn exec(&self, command: &[String]) -> Result<Pipe, SandboxError> {
        let program = self.start(command).await?;
        Ok(Pipe::of(program.said(), program))
    }

    /// Writes a file.
    pub(crate) async fn write(&self, path: &str, bytes: Bytes) -> Result<(), SandboxError> {
        let script = "mkdir -p \"$(dirname \"$0\")\" && cat >\"$0\"";
        let command = ["/bin/sh", "-c", script, path].map(str::to_owned);
        let mut program = self.start(&command).await?;
        for start in (0..bytes.len()).step_by(PIECE) {
            let piece = bytes.slice(start..bytes.len().min(start + PIECE));
            program.tell(piece, false).await?;
        }
        program.tell(Bytes::new(), true).await?;
        let request = TaskExec { task_id: self.task.clone(), exec_id: program.name };
        let ended: TaskExecWaitResponse = self.call(method!("TaskExecWait"), request).await?;
        if ended.code == Some(0) {
            return Ok(());
        }
        Err(SandboxError::unavailable(
            format!("{path} cannot be written in Modal's sandbox"),
            "the image needs /bin/sh, and room for it",
        ))
    }

    /// Keeps its files as an image.
    pub(crate) async fn snapshot(&self) -> Result<String, SandboxError> {
        let request =
            TaskSnapshotFilesystemRequest { task_id: self.task.clone(), snapshot_id: unique() };
        let made: TaskSnapshotFilesystemResponse =
            self.call(method!("TaskSnapshotFilesystem"), request).await?;
        Ok(made.image_id)
    }
}

/// A program in a sandbox.
struct Program {
    router: Router,
    name: String,
    told: u64,
}

impl Program {
    async fn tell(&mut self, data: Bytes, eof: bool) -> Result<(), SandboxError> {
        let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
        let request = TaskExecStdinWriteRequest {
            task_id: self.router.task.clone(),
            exec_id: self.name.clone(),
            offset: self.told,
            data,
            eof,
        };
        self.router.call::<_, Nothing>(method!("TaskExecStdinWrite"), request).await?;
        self.told += length;
        Ok(())
    }

    /// What it writes to its standard output, until it ends.
    fn said(&self) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
        let reading = Reading {
            router: self.router.clone(),
            name: self.name.clone(),
            offset: 0,
            open: None,
            tries: 0,
        };
        stream::unfold(reading, |mut reading| async move {
            let piece = reading.next().await?;
            Some((piece.map_err(|status| io::Error::other(failed(&status))), reading))
        })
    }
}

#[async_trait]
impl Input for Program {
    async fn send(&mut self, piece: Bytes) -> io::Result<()> {
        self.tell(piece, false).await.map_err(io::Error::other)
    }
}

struct Reading {
    router: Router,
    name: String,
    offset: u64,
    open: Option<Streaming<TaskExecStdioReadResponse>>,
    tries: u32,
}

impl Reading {
    async fn next(&mut self) -> Option<Result<Bytes, Status>> {
        loop {
            let heard = match &mut self.open {
                Some(open) => open.next().await.transpose(),
                None => match self.read().await {
                    Ok(open) => {
                        self.open = Some(open);
                        continue;
                    }
                    Err(status) => Err(status),
                },
            };
            match heard {
                Ok(Some(said)) if said.data.is_empty() => {}
                Ok(Some(said)) => {
                    self.tries = 0;
                    self.offset += u64::try_from(said.data.len()).unwrap_or(u64::MAX);
                    return Some(Ok(said.data));
                }
                Ok(None) => return None,
                // From where it broke off.
                Err(status) if self.tries < TRIES && is_passing(&status) => {
                    self.tries += 1;
                    self.open = None;
                    tokio::time::sleep(PAUSE * self.tries).await;
                }
                Err(status) => return Some(Err(status)),
            }
        }
    }

    async fn read(&self) -> Result<Streaming<TaskExecStdioReadResponse>, Status> {
        let request = TaskExecStdioReadRequest {
            task_id: self.router.task.clone(),
            exec_id: self.name.clone(),
            offset: self.offset,
        };
        let rpc = self.router.control.access(&self.router.sandbox).await;
        let rpc = rpc.map_err(|error| Status::unavailable(error.to_string()))?;
        rpc.stream(method!("TaskExecStdioRead"), request).await
    }
}

fn is_passing(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled)
}
