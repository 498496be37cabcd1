//! One program with its arguments, and no shell between: how packages are installed. Not a tool of the model.

use crate::{
    output::{Output, drain},
    processes::Processes,
    protocol::ToolResult,
    tools::Places,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    pipe::{PipeFlags, pipe_with},
};
use serde::Deserialize;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    io,
    os::{fd::OwnedFd, unix::process::CommandExt},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// The name it goes by.
pub const EXEC: &str = "exec";

/// How a result begins if there is no such program.
pub const NO_SUCH_PROGRAM: &str = "exec: there is no program";

/// How long a program may run if nobody says.
const TIMEOUT: Duration = Duration::from_secs(3_600);
/// How often to look whether a program that has ended was reaped.
const REAPED: Duration = Duration::from_millis(2);
/// How many times at most.
const REAPED_WITHIN: u32 = 2_500;

#[derive(Deserialize)]
struct Input {
    argv: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
}

/// Runs a program to its end; what it says is the result, and a failure says its status first.
pub(crate) fn run(
    places: &Places,
    processes: &Processes,
    call: &str,
    input: &Value,
    upper: Option<Duration>,
) -> ToolResult {
    let Ok(Input { argv, env }) = Input::deserialize(input) else {
        return ToolResult::error("exec: argv must be a list of strings, and env their map");
    };
    let Some((program, arguments)) = argv.split_first() else {
        return ToolResult::error("exec: argv is empty");
    };
    let mut command = Command::new(program);
    command.args(arguments).envs(env).current_dir(&places.workdir);
    let started = start(&mut command, processes);
    let (pid, exit, said) = match started {
        Ok(started) => started,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return ToolResult::error(format!("{NO_SUCH_PROGRAM} `{program}`"));
        }
        Err(error) => {
            return ToolResult::error(format!("exec: `{program}` cannot be started: {error}"));
        }
    };
    let mut output = Output::new(&places.spill, call);
    let timeout = upper.unwrap_or(TIMEOUT);
    if !follow(exit.as_ref(), &said, timeout, &mut output) {
        processes.kill_all();
        let seconds = timeout.as_secs();
        return ToolResult::error(format!(
            "exec: `{program}` was stopped after {seconds} s\n{}",
            output.finish()
        ));
    }
    let mut status = processes.exit_code(pid);
    for _ in 0..REAPED_WITHIN {
        if status.is_some() {
            break;
        }
        std::thread::sleep(REAPED);
        status = processes.exit_code(pid);
    }
    match status.unwrap_or(-1) {
        0 => ToolResult::text(output.finish()),
        status => ToolResult::error(format!("exit status {status}\n{}", output.finish())),
    }
}

/// Its process id, what becomes readable when it ends (nothing if it has ended and was reaped), and what it says.
fn start(
    command: &mut Command,
    processes: &Processes,
) -> io::Result<(i32, Option<OwnedFd>, OwnedFd)> {
    let (said, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&said, true)?;
    command.stdin(Stdio::null()).stdout(Stdio::from(theirs.try_clone()?)).stderr(theirs);
    command.process_group(0);
    let child = command.spawn()?;
    processes.started();
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    // The command holds the other ends of the pipe, which would never end otherwise.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    Ok((pid, processes.end_of(pid)?, said))
}

/// Collects what a program says until it ends; false if it does not in time. What it leaves behind may hold the pipe open.
fn follow(exit: Option<&OwnedFd>, said: &OwnedFd, timeout: Duration, output: &mut Output) -> bool {
    let Some(exit) = exit else {
        drain(said, output);
        return true;
    };
    #[expect(clippy::disallowed_methods, reason = "a program's timeout is real time")]
    let now = Instant::now;
    let deadline = now() + timeout;
    let mut open = true;
    loop {
        let left = deadline.saturating_duration_since(now());
        if left.is_zero() {
            return false;
        }
        let mut fds = vec![PollFd::new(exit, PollFlags::IN)];
        if open {
            fds.push(PollFd::new(said, PollFlags::IN));
        }
        let Ok(wait) = Timespec::try_from(left) else { return false };
        if poll(&mut fds, Some(&wait)).is_err() {
            continue;
        }
        let ready = |index: usize| fds.get(index).is_some_and(|fd| !fd.revents().is_empty());
        let (ended, spoke) = (ready(0), ready(1));
        if spoke {
            open = drain(said, output);
        }
        if ended {
            drain(said, output);
            return true;
        }
    }
}
