//! Attacks that must fail in every sandbox, as a table over the seam, so that each provider is held to
//! the same list. Only for tests: nothing here belongs in a server.
//!
//! The numbers are those of the project's threat model. An attack that could not succeed anyway proves
//! nothing, so each shows first, where it can, that on the host the same thing works.

mod files;
mod host;
mod kernel;
mod network;
mod resources;
mod watcher;

pub use watcher::Watcher;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::error::SandboxError;
use crate::seam::{
    Block, ComputeProvider, Fence, Isolation, Limits, Outbound, Reach, Sandbox, SandboxKey,
    SandboxSpec,
};

type Running<'a> = Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>>;

/// One attack.
struct Attack {
    number: u8,
    name: &'static str,
    run: for<'a> fn(&'a Arena<'a>) -> Running<'a>,
}

/// Names an async function as an attack.
macro_rules! attack {
    ($number:literal, $name:literal, $function:path) => {
        $crate::attacks::Attack {
            number: $number,
            name: $name,
            run: |arena| Box::pin($function(arena)),
        }
    };
}
use attack;

/// How an attack went.
#[derive(Debug)]
pub struct Verdict {
    /// Its number in the threat model.
    pub number: u8,
    /// What it tries.
    pub name: &'static str,
    /// `Err` says how it succeeded, or why it proved nothing.
    pub outcome: Result<(), String>,
}

/// Runs every attack against a provider, one after the other.
pub async fn run_all(provider: &dyn ComputeProvider) -> Vec<Verdict> {
    run(provider, |_| true).await
}

/// Runs the attacks with these numbers.
pub async fn run(provider: &dyn ComputeProvider, which: impl Fn(u8) -> bool) -> Vec<Verdict> {
    let arena = Arena {
        provider,
        host_is_root: rustix::process::geteuid().is_root(),
        next: AtomicU64::new(1),
    };
    let mut verdicts = Vec::new();
    for table in
        [host::ATTACKS, files::ATTACKS, kernel::ATTACKS, network::ATTACKS, resources::ATTACKS]
    {
        for attack in table.iter().filter(|attack| which(attack.number) && arena.applies(attack)) {
            let limit = Duration::from_mins(3);
            let outcome = tokio::time::timeout(limit, (attack.run)(&arena)).await;
            let outcome = outcome.unwrap_or_else(|_| Err("it did not end".to_owned()));
            verdicts.push(Verdict { number: attack.number, name: attack.name, outcome });
        }
    }
    verdicts
}

/// What attacks are run with.
struct Arena<'a> {
    provider: &'a dyn ComputeProvider,
    host_is_root: bool,
    next: AtomicU64,
}

/// A sandbox under attack; the session is destroyed when the attack says so.
struct Target {
    sandbox: Arc<dyn Sandbox>,
    key: SandboxKey,
    next: AtomicU64,
}

/// What a tool said.
#[derive(Debug)]
struct Said {
    text: String,
    is_error: bool,
}

/// What is aimed at a kernel that is shared: one of the sandbox's own answers in its own way, and gives away nothing of the host's.
const AT_THE_SHARED_KERNEL: [&str; 11] = [
    "use PID 1's environ, mem and exe",
    "find a device of the host",
    "open the kernel's control files for writing",
    "meet another sandbox",
    "call through the i386 and x32 tables",
    "gain privileges by setuid",
    "change the way out or take its place",
    "fork without end",
    "leave ten thousand orphans",
    "ignore and stop signals",
    "send ten megabytes that nobody reads",
];

impl Arena<'_> {
    fn applies(&self, attack: &Attack) -> bool {
        let shared = self.provider.capabilities().isolation == Isolation::Namespaces;
        shared || !AT_THE_SHARED_KERNEL.contains(&attack.name)
    }

    /// Small limits, and no way out.
    fn spec() -> SandboxSpec {
        SandboxSpec {
            env: BTreeMap::from([("ALLOWED".to_owned(), "yes".to_owned())]),
            ..SandboxSpec::new(1, 1, LIMITS)
        }
    }

    /// A fresh sandbox with small limits.
    async fn target(&self) -> Result<Target, String> {
        self.target_like(Self::spec()).await
    }

    /// One whose way out is watched by a [`Watcher`].
    async fn target_with_network(&self) -> Result<Target, String> {
        let outbound = Outbound { reach: Reach::Limited(Vec::new()), vaults: None };
        self.target_like(SandboxSpec { outbound: Some(outbound), ..Self::spec() }).await
    }

    async fn target_like(&self, spec: SandboxSpec) -> Result<Target, String> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let key = SandboxKey::default_of(format!("attack-{}-{number}", std::process::id()));
        let sandbox = self.provider.ensure(&key, &spec).await.map_err(|e| e.to_string())?;
        Ok(Target { sandbox, key, next: AtomicU64::new(1) })
    }

    /// Removes a target.
    async fn destroy(&self, target: Target) -> Result<(), String> {
        self.provider.destroy(&target.key.session).await.map_err(|e| e.to_string())
    }

    /// A fresh sandbox, one script in it, and what it printed.
    async fn inside(&self, script: &str) -> Result<String, String> {
        let target = self.target().await?;
        let said = target.sh(script).await;
        self.destroy(target).await?;
        Ok(said?.text)
    }
}

/// Small, so that hitting them is quick.
const LIMITS: Limits = Limits {
    memory_bytes: 256 << 20,
    pids: 128,
    cpu_millis: 1000,
    tmp_bytes: 32 << 20,
    workspace_bytes: 1 << 30,
    io_bytes: 256 << 20,
};

const FENCE: Fence = Fence { epoch: 1, generation: 1 };

impl Target {
    /// Runs a tool.
    async fn tool(&self, tool: &str, input: Value) -> Result<Said, SandboxError> {
        self.tool_within(tool, input, None).await
    }

    async fn tool_within(
        &self,
        tool: &str,
        input: Value,
        timeout: Option<Duration>,
    ) -> Result<Said, SandboxError> {
        let id = format!("call_{}", self.next.fetch_add(1, Ordering::Relaxed));
        let result = self.sandbox.run(&id, FENCE, tool, &input, timeout).await?;
        self.sandbox.ack(&id, FENCE).await?;
        let texts = result.content.into_iter().map(|block| match block {
            Block::Text { text } => text,
            Block::Image { .. } | Block::Document { .. } => "(data)".to_owned(),
        });
        Ok(Said { text: texts.collect::<Vec<_>>().join("\n"), is_error: result.is_error })
    }

    /// Runs a shell command that the sandbox must survive.
    async fn sh(&self, command: &str) -> Result<Said, String> {
        self.tool("bash", json!({ "command": command })).await.map_err(|e| e.to_string())
    }

    /// Begins the shell anew, after a command that killed it.
    async fn restart_shell(&self) -> Result<(), String> {
        let said = self.tool("bash", json!({ "restart": true })).await;
        said.map(drop).map_err(|e| e.to_string())
    }
}

/// A Perl program as a shell command. Perl is in every Debian's base system and makes any system call.
fn perl(program: &str) -> String {
    format!("perl - <<'END_OF_PERL'\n{program}\nEND_OF_PERL\n")
}

/// The same on the host.
fn perl_on_host(program: &str) -> Result<String, String> {
    let output = Command::new("perl").arg("-e").arg(program).output().map_err(|e| e.to_string())?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// An error if `ok` does not hold.
fn check(ok: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if ok { Ok(()) } else { Err(otherwise()) }
}
