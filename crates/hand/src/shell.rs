//! The persistent shell: one bash whose directory, variables and jobs stay from call to call. Calls run one after another; one thread owns the shell.
//!
//! The shell reads each command from descriptor 9 and reports its status on descriptor 8 with the call's nonce; commands inherit neither, and a background process
//! that keeps the output open does not keep the call waiting.

use crate::{
    output::{Output, drain},
    processes::Processes,
    protocol::{INTERRUPTED, ToolResult},
    tools::Places,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    pipe::{PipeFlags, pipe_with},
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Write as _,
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    time::{Duration, Instant},
};

/// How long a command may run unless the call says otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(120);
/// How long it may run at most.
const LONGEST: Duration = Duration::from_secs(3_600);

/// A pipe takes so much without anybody reading: the shell has read all before it reports, so its pipe is empty between calls.
const AT_ONCE: usize = 4_096;

const LOOP: &str = r#"while IFS= read -r -d '' -u 9 VQ_NONCE && IFS= read -r -d '' -u 9 VQ_COMMAND; do
eval "$VQ_COMMAND" </dev/null 8>&- 9<&-
printf '%s %d\n' "$VQ_NONCE" "$?" >&8
done"#;

/// The way to the thread that owns the shell.
#[derive(Clone)]
pub(crate) struct Shell {
    jobs: Sender<Job>,
    wake: Arc<File>,
    cancelled: Arc<Mutex<Option<String>>>,
    current: Arc<Mutex<VecDeque<String>>>,
    variables: Arc<Mutex<BTreeMap<String, String>>>,
}

struct Job {
    call: String,
    command: Option<String>,
    restart: bool,
    timeout: Duration,
    reply: Sender<ToolResult>,
}

impl Shell {
    pub(crate) fn new(places: Places, processes: Processes) -> Self {
        let (jobs, inbox) = channel();
        let (woken, wake) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
            .expect("a process can have two more descriptors");
        let cancelled = Arc::new(Mutex::new(None));
        let current = Arc::new(Mutex::new(VecDeque::new()));
        let mut owner = Owner {
            places,
            processes,
            inbox,
            woken,
            cancelled: Arc::clone(&cancelled),
            state: State::NotStarted,
            nonce: 0,
            variables: Arc::default(),
            exported: BTreeMap::new(),
        };
        let variables = Arc::clone(&owner.variables);
        let queue = Arc::clone(&current);
        std::thread::Builder::new()
            .name("shell".to_owned())
            .spawn(move || owner.serve(&queue))
            .expect("the first threads of a process can be started");
        Self { jobs, wake: Arc::new(File::from(wake)), cancelled, current, variables }
    }

    /// Runs a call and waits for its result.
    pub(crate) fn run(&self, call: &str, input: &Value, upper: Option<Duration>) -> ToolResult {
        let job = match decode(call, input, upper) {
            Ok(job) => job,
            Err(message) => return ToolResult::error(format!("bash: {message}")),
        };
        let (reply, result) = channel();
        self.current.lock().unwrap_or_else(PoisonError::into_inner).push_back(call.to_owned());
        let sent = self.jobs.send(Job { reply, ..job });
        let _ = (&*self.wake).write(&[1]);
        if sent.is_err() {
            return ToolResult::error("bash: the shell's thread has ended");
        }
        result.recv().unwrap_or_else(|_| ToolResult::error("bash: the shell's thread has ended"))
    }

    /// Variables of every command from the next one on, beside those of the whole sandbox.
    pub(crate) fn set_variables(&self, variables: BTreeMap<String, String>) {
        *self.variables.lock().unwrap_or_else(PoisonError::into_inner) = variables;
    }

    /// Stops a call if it is the shell's; false if it is not.
    pub(crate) fn cancel(&self, call: &str) -> bool {
        let queue = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if !queue.iter().any(|queued| queued == call) {
            return false;
        }
        drop(queue);
        *self.cancelled.lock().unwrap_or_else(PoisonError::into_inner) = Some(call.to_owned());
        let _ = (&*self.wake).write(&[1]);
        true
    }
}

fn decode(call: &str, input: &Value, upper: Option<Duration>) -> Result<Job, String> {
    let command = match &input["command"] {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        _ => return Err("command must be a string".to_owned()),
    };
    let restart = match &input["restart"] {
        Value::Null => false,
        Value::Bool(flag) => *flag,
        _ => return Err("restart must be true or false".to_owned()),
    };
    let asked = match &input["timeout_ms"] {
        Value::Null => 0,
        value => value.as_u64().ok_or("timeout_ms must be a whole number of milliseconds")?,
    };
    if command.is_none() && !restart {
        return Err("command is required".to_owned());
    }
    if command.as_ref().is_some_and(|text| text.contains('\0')) {
        return Err("a command cannot hold NUL characters".to_owned());
    }
    let asked = if asked == 0 { DEFAULT_TIMEOUT } else { Duration::from_millis(asked) };
    let timeout = asked.min(LONGEST).min(upper.unwrap_or(LONGEST));
    let (reply, _) = channel();
    Ok(Job { call: call.to_owned(), command, restart, timeout, reply })
}

/// What gives a shell some variables instead of others.
fn exports(old: &BTreeMap<String, String>, new: &BTreeMap<String, String>) -> String {
    let gone = old.keys().filter(|name| !new.contains_key(*name));
    let gone = gone.map(|name| format!("unset -v {name}\n"));
    let quoted = |value: &str| value.replace('\'', r"'\''");
    let there = new.iter().map(|(name, value)| format!("export {name}='{}'\n", quoted(value)));
    gone.chain(there).collect()
}

enum State {
    NotStarted,
    Alive(Bash),
    /// Killed by a timeout or an interrupt: the model must know that its shell is gone.
    Killed,
}

struct Bash {
    pid: i32,
    /// Readable once the shell has exited: what it left behind may hold its pipes open.
    exit: OwnedFd,
    commands: File,
    status: OwnedFd,
    output: OwnedFd,
    /// What background jobs wrote between calls.
    between: Vec<u8>,
}

impl Bash {
    fn has_exited(&self) -> bool {
        let mut fds = [PollFd::new(&self.exit, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).is_ok_and(|count| count > 0)
    }
}

struct Owner {
    places: Places,
    processes: Processes,
    inbox: Receiver<Job>,
    woken: OwnedFd,
    cancelled: Arc<Mutex<Option<String>>>,
    state: State,
    nonce: u64,
    /// What the shell should have.
    variables: Arc<Mutex<BTreeMap<String, String>>>,
    /// And what it was given.
    exported: BTreeMap<String, String>,
}

/// How a command ended.
enum End {
    Status(i32),
    ShellGone,
    TimedOut,
    Cancelled,
}

impl Owner {
    fn serve(&mut self, queue: &Mutex<VecDeque<String>>) {
        // Made before the first call asks for it; a shell that cannot be made is tried again then, and the call says why.
        if let Ok(bash) = self.start() {
            self.state = State::Alive(bash);
        }
        loop {
            while let Ok(job) = self.inbox.try_recv() {
                let result = self.perform(&job);
                queue
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .retain(|call| *call != job.call);
                let _ = job.reply.send(result);
            }
            self.idle();
        }
    }

    /// Waits for the next call, and reads what background jobs write meanwhile.
    fn idle(&mut self) {
        let mut fds = vec![PollFd::new(&self.woken, PollFlags::IN)];
        if let State::Alive(bash) = &self.state {
            fds.push(PollFd::new(&bash.output, PollFlags::IN));
            fds.push(PollFd::new(&bash.exit, PollFlags::IN));
        }
        if poll(&mut fds, None).is_err() {
            return;
        }
        let ready = |index: usize| fds.get(index).is_some_and(|fd| !fd.revents().is_empty());
        let (output_ready, mut gone) = (ready(1), ready(2));
        drop(fds);
        drain_wake(&self.woken);
        if let (State::Alive(bash), true) = (&mut self.state, output_ready) {
            let mut chunk = [0; 16 << 10];
            match rustix::io::read(&bash.output, &mut chunk) {
                Ok(0) => gone = true,
                Ok(count) => {
                    bash.between.extend_from_slice(&chunk[..count]);
                    let excess = bash.between.len().saturating_sub(64 << 10);
                    bash.between.drain(..excess);
                }
                Err(_) => {}
            }
        }
        if gone {
            self.state = State::NotStarted;
        }
    }

    fn take_cancelled(&self, call: &str) -> bool {
        let mut cancelled = self.cancelled.lock().unwrap_or_else(PoisonError::into_inner);
        if cancelled.as_deref() == Some(call) {
            *cancelled = None;
            return true;
        }
        false
    }

    fn perform(&mut self, job: &Job) -> ToolResult {
        if self.take_cancelled(&job.call) {
            return ToolResult::error(INTERRUPTED);
        }
        if job.restart {
            self.processes.kill_all();
            self.state = State::NotStarted;
            if job.command.is_none() {
                return ToolResult::text("bash session restarted");
            }
        }
        if matches!(self.state, State::Killed) {
            return ToolResult::error("bash: bash session terminated; restart required");
        }
        if matches!(&self.state, State::Alive(bash) if bash.has_exited()) {
            self.state = State::NotStarted;
        }
        if let State::NotStarted = self.state {
            match self.start() {
                Ok(bash) => {
                    self.exported.clear();
                    self.state = State::Alive(bash);
                }
                Err(error) => {
                    return ToolResult::error(format!(
                        "bash: the shell cannot be started: {error}"
                    ));
                }
            }
        }
        let command = job.command.clone().unwrap_or_default();
        let mut output = Output::new(&self.places.spill, &job.call);
        let wanted = self.variables.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if wanted != self.exported {
            match self.command(&exports(&self.exported, &wanted), job, &mut output) {
                End::Status(_) => self.exported = wanted,
                end => return self.conclude(end, output, job),
            }
        }
        let end = self.command(&command, job, &mut output);
        self.conclude(end, output, job)
    }

    fn conclude(&mut self, end: End, output: Output, job: &Job) -> ToolResult {
        match end {
            End::Status(code) => {
                let text = output.finish();
                let text = if text.is_empty() { "(no output)".to_owned() } else { text };
                if code == 0 { ToolResult::text(text) } else { ToolResult::error(text) }
            }
            End::ShellGone => {
                let code = self.shell_exit();
                self.state = State::NotStarted;
                let mut text = output.finish();
                if !text.is_empty() && !text.ends_with('\n') {
                    text.push('\n');
                }
                let _ = write!(
                    text,
                    "[the shell exited with status {code}; the next call starts a fresh one in {}]",
                    self.places.workdir.display()
                );
                if code == 0 { ToolResult::text(text) } else { ToolResult::error(text) }
            }
            End::TimedOut => {
                self.processes.kill_all();
                self.state = State::Killed;
                let seconds = job.timeout.as_secs_f64();
                let text = format!(
                    "bash: bash command timed out after {seconds:.1}s\nEverything that ran in the sandbox was killed; call bash with restart set to true.\n{}",
                    output.finish()
                );
                ToolResult::error(text.trim_end())
            }
            End::Cancelled => {
                self.processes.kill_all();
                self.state = State::Killed;
                ToolResult::error(INTERRUPTED)
            }
        }
    }

    fn shell_exit(&self) -> i32 {
        let State::Alive(bash) = &self.state else { return -1 };
        let deadline = deadline_in(Duration::from_secs(2));
        while !passed(deadline) {
            if let Some(code) = self.processes.exit_code(bash.pid) {
                return code;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        -1
    }

    fn start(&self) -> io::Result<Bash> {
        let (command_end, commands) = pipe_with(PipeFlags::CLOEXEC)?;
        let (status, status_end) = pipe_with(PipeFlags::CLOEXEC)?;
        let (output, output_end) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&output, true)?;
        rustix::io::ioctl_fionbio(&status, true)?;
        let mut bash = Command::new("/bin/bash");
        bash.args(["--noprofile", "--norc", "-c", LOOP, "bash"])
            .current_dir(&self.places.workdir)
            .env("PS1", "")
            .env("PS2", "")
            .env("TERM", "dumb")
            .stdin(Stdio::null())
            .stdout(Stdio::from(output_end.try_clone()?))
            .stderr(Stdio::from(output_end));
        let (reading, writing) = (command_end.as_raw_fd(), status_end.as_raw_fd());
        #[expect(unsafe_code, reason = "the shell's two private descriptors need fixed numbers")]
        // SAFETY: between fork and exec only dup2 and setsid are called, which are async-signal-safe; both descriptors stay open until spawn returns.
        unsafe {
            bash.pre_exec(move || {
                if libc::dup2(reading, 109) < 0
                    || libc::dup2(writing, 108) < 0
                    || libc::dup2(109, 9) < 0
                    || libc::dup2(108, 8) < 0
                {
                    return Err(io::Error::last_os_error());
                }
                libc::close(109);
                libc::close(108);
                libc::setsid();
                Ok(())
            });
        }
        let child = bash.spawn()?;
        self.processes.started();
        let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        let exit = self.processes.end_of(pid)?;
        let exit = exit.ok_or_else(|| io::Error::other("it ended at once"))?;
        Ok(Bash { pid, exit, commands: File::from(commands), status, output, between: Vec::new() })
    }

    fn command(&mut self, command: &str, job: &Job, output: &mut Output) -> End {
        self.nonce += 1;
        let nonce = format!("{}-{}", self.nonce, random());
        let deadline = deadline_in(job.timeout);
        let State::Alive(bash) = &mut self.state else { return End::ShellGone };
        output.push(&std::mem::take(&mut bash.between));
        let message = format!("{nonce}\0{command}\0");
        let Ok(mut commands) = bash.commands.try_clone() else { return End::ShellGone };
        if message.len() <= AT_ONCE {
            if commands.write_all(message.as_bytes()).is_err() {
                return End::ShellGone;
            }
            return self.follow(&nonce, deadline, job, output);
        }
        // The shell reads byte by byte; a long command must not keep this thread from reading output.
        let sender = std::thread::spawn(move || commands.write_all(message.as_bytes()).is_ok());
        let end = self.follow(&nonce, deadline, job, output);
        if let End::Status(_) | End::ShellGone = end {
            drop(sender.join());
        }
        end
    }

    /// Collects output until the command's status comes, the shell goes, time runs out or the call is cancelled.
    fn follow(&self, nonce: &str, deadline: Instant, job: &Job, output: &mut Output) -> End {
        let State::Alive(bash) = &self.state else { return End::ShellGone };
        let mut report = String::new();
        let mut output_open = true;
        loop {
            let now = deadline.saturating_duration_since(now());
            if now.is_zero() {
                return End::TimedOut;
            }
            let mut fds = vec![
                PollFd::new(&self.woken, PollFlags::IN),
                PollFd::new(&bash.status, PollFlags::IN),
                PollFd::new(&bash.exit, PollFlags::IN),
            ];
            if output_open {
                fds.push(PollFd::new(&bash.output, PollFlags::IN));
            }
            let wait = Timespec {
                tv_sec: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: now.subsec_nanos().into(),
            };
            if poll(&mut fds, Some(&wait)).is_err() {
                continue;
            }
            let ready = |index: usize| fds.get(index).is_some_and(|fd| !fd.revents().is_empty());
            let (woken, reported, exited, wrote) = (ready(0), ready(1), ready(2), ready(3));
            drop(fds);
            if wrote {
                output_open = drain(&bash.output, output);
            }
            if woken {
                drain_wake(&self.woken);
                if self.take_cancelled(&job.call) {
                    return End::Cancelled;
                }
            }
            if reported {
                let mut chunk = [0; 256];
                match rustix::io::read(&bash.status, &mut chunk) {
                    Ok(0) => {
                        drain(&bash.output, output);
                        return End::ShellGone;
                    }
                    Ok(count) => report.push_str(&String::from_utf8_lossy(&chunk[..count])),
                    Err(_) => {}
                }
                let code =
                    report.lines().find_map(|line| line.strip_prefix(nonce)?.trim().parse().ok());
                if let (Some(code), true) = (code, report.ends_with('\n')) {
                    drain(&bash.output, output);
                    return End::Status(code);
                }
                if report.len() > 64 << 10 {
                    report.clear();
                }
            } else if exited {
                drain(&bash.output, output);
                return End::ShellGone;
            }
        }
    }
}

fn drain_wake(woken: &OwnedFd) {
    let mut bytes = [0; 64];
    while matches!(rustix::io::read(woken, &mut bytes), Ok(count) if count > 0) {}
}

fn now() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "a command's timeout is real time")]
    Instant::now()
}

fn deadline_in(time: Duration) -> Instant {
    now() + time
}

fn passed(deadline: Instant) -> bool {
    now() >= deadline
}

fn random() -> String {
    let mut bytes = [0; 16];
    let read = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    let _ = read;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
