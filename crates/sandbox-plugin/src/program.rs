//! The plug-in's process: started when it is first asked, and again when it has ended; answers are matched to questions by their numbers.

use std::collections::HashMap;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;
use vaquero_sandbox::SandboxError;

use crate::protocol::{Answer, Ask, Question};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_mins(2);
/// The longest line.
const LINE: u64 = 4 << 20;

/// How the names of variables begin that are the server's own.
const SECRET: [&str; 3] = ["VAQUERO_", "ANTHROPIC_", "AWS_"];

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Answer>>>>;

#[derive(Debug)]
pub(crate) struct Program {
    command: Vec<String>,
    running: tokio::sync::Mutex<Option<Running>>,
    next: AtomicU64,
    tasks: TaskTracker,
}

#[derive(Debug)]
struct Running {
    /// It ends with the value.
    _child: Child,
    input: ChildStdin,
    waiting: Waiting,
}

impl Program {
    pub(crate) fn new(command: Vec<String>) -> Self {
        let (running, next) = (tokio::sync::Mutex::new(None), AtomicU64::new(1));
        Self { command, running, next, tasks: TaskTracker::new() }
    }

    fn start(&self) -> Result<Running, SandboxError> {
        let wrong = |what: String| {
            SandboxError::unavailable(what, "name a program that can be run with --sandbox-plugin")
        };
        let [program, arguments @ ..] = self.command.as_slice() else {
            return Err(wrong("no plug-in is named".to_owned()));
        };
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        // A plug-in that passes its own variables on must not give the server's secrets away.
        for (name, _) in std::env::vars_os() {
            let known = name.to_string_lossy();
            if SECRET.iter().any(|prefix| known.starts_with(prefix)) {
                command.env_remove(name);
            }
        }
        let mut child = command
            .spawn()
            .map_err(|error| wrong(format!("the plug-in {program} cannot be started: {error}")))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(wrong("the plug-in has no standard streams".to_owned()));
        };
        let waiting = Waiting::default();
        self.tasks.spawn(read(output, Arc::clone(&waiting)));
        Ok(Running { _child: child, input, waiting })
    }

    /// Asks, and waits for the answer.
    pub(crate) async fn ask<T: DeserializeOwned>(&self, ask: Ask) -> Result<T, SandboxError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut line = serde_json::to_vec(&Question { id, ask })
            .map_err(|error| SandboxError::Invalid(error.to_string()))?;
        line.push(b'\n');
        let answered = self.send(id, &line).await?;
        let ended = || SandboxError::gone("the plug-in has ended");
        let answer = tokio::time::timeout(PATIENCE, answered).await;
        let answer = answer.map_err(|_| SandboxError::gone("the plug-in does not answer"))?;
        let Answer { ok, error, .. } = answer.map_err(|_| ended())?;
        if let Some(error) = error {
            return Err(SandboxError::unavailable(error, "see what the plug-in has written"));
        }
        serde_json::from_value(ok.unwrap_or_default()).map_err(|error| {
            SandboxError::unavailable(
                format!("the plug-in's answer is another than was asked for: {error}"),
                "see docs/providers.md for what it should say",
            )
        })
    }

    async fn send(&self, id: u64, line: &[u8]) -> Result<oneshot::Receiver<Answer>, SandboxError> {
        let mut running = self.running.lock().await;
        for _ in 0..2 {
            // Taken out until the line is whole: if nobody waits for that any more, the program ends, and the next one is sent no half of a line.
            let mut program = match running.take() {
                Some(program) => program,
                None => self.start()?,
            };
            let (answer, answered) = oneshot::channel();
            locked(&program.waiting).insert(id, answer);
            // One that has ended is started again, once.
            if program.input.write_all(line).await.is_ok() {
                *running = Some(program);
                return Ok(answered);
            }
        }
        Err(SandboxError::gone("the plug-in ends as soon as it has started"))
    }
}

fn locked(waiting: &Waiting) -> std::sync::MutexGuard<'_, HashMap<u64, oneshot::Sender<Answer>>> {
    // Only a plain map is behind this lock, and no code panics while it holds it.
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hands answers to whoever asked, until there are no more.
async fn read(output: ChildStdout, waiting: Waiting) {
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = (&mut output).take(LINE).read_until(b'\n', &mut line).await;
        if !matches!(read, Ok(1..)) {
            break;
        }
        match serde_json::from_slice::<Answer>(&line) {
            Ok(answer) => {
                if let Some(asked) = locked(&waiting).remove(&answer.id) {
                    // Whoever gave up waiting does not need it.
                    drop(asked.send(answer));
                }
            }
            Err(error) => {
                let said = String::from_utf8_lossy(&line);
                tracing::warn!(%error, said = said.trim(), "a plug-in's line is no answer");
            }
        }
    }
    // Whoever still waits learns that no answer comes.
    locked(&waiting).clear();
}
