//! The seam between the worker and whatever makes sandboxes: traits and the plain data they pass.
//! It must not know namespaces, containers or sockets; a provider's own words stay in the provider.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
pub use vaquero_hand::pack::{Entry, Kind, PART, Page, Piece};
pub use vaquero_hand::protocol::{Block, Fence, ToolResult};
use vaquero_types::environment::{DEFAULT_SANDBOX, Packages};
pub use vaquero_types::sandbox::Traffic;
use vaquero_types::sandbox::{files_of, owner_of};
use vaquero_types::{VaultId, WorkspaceId};

use crate::error::SandboxError;

/// Which sandbox: a session may hold several, each with a name of its own.
///
/// Both parts are 1–64 characters of `A–Z a–z 0–9 _ -`; a provider refuses anything else.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SandboxKey {
    /// The session that owns the workspace.
    pub session: String,
    /// The sandbox within the session; `default` unless the session asked for more than one.
    pub name: String,
}

impl SandboxKey {
    /// The one sandbox a session has unless it asks for more.
    pub fn default_of(session: impl Into<String>) -> Self {
        Self { session: session.into(), name: DEFAULT_SANDBOX.to_owned() }
    }

    /// The sandbox of that name. Each but the default has files of its own, as a session has, wherever it is.
    pub fn of(session: &str, name: &str) -> Self {
        Self::default_of(files_of(session, name))
    }

    /// The session that it is of, and its name there.
    pub fn owner(&self) -> (&str, &str) {
        owner_of(&self.session)
    }

    /// Refuses a key that could not safely name a directory and a cgroup.
    pub fn check(&self) -> Result<(), SandboxError> {
        check_part("session", &self.session)?;
        check_part("name", &self.name)
    }
}

impl fmt::Display for SandboxKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.session, self.name)
    }
}

/// Refuses a session id or sandbox name that could not safely name a directory and a cgroup.
pub(crate) fn check_part(what: &str, part: &str) -> Result<(), SandboxError> {
    let ok = (1..=64).contains(&part.len())
        && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if ok {
        return Ok(());
    }
    Err(SandboxError::Invalid(format!(
        "sandbox {what} must be 1 to 64 characters of A-Z a-z 0-9 _ -"
    )))
}

/// What one sandbox may use. Zero never means "unlimited": every field is a number above zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory of all its processes together, page cache and tmpfs included, in bytes.
    pub memory_bytes: u64,
    /// Processes and threads at the same time, its PID 1 included.
    pub pids: u32,
    /// CPU time per second of wall time, in thousandths of one core.
    pub cpu_millis: u32,
    /// Size of `/tmp`, in bytes (it is memory, and counts as such). `/dev/shm` may take a quarter of it.
    pub tmp_bytes: u64,
    /// Size of the session's files together, in bytes, and a file or directory for each 16 KiB of it. How firmly is the provider's [`Quota`].
    pub workspace_bytes: u64,
    /// Bytes a second it may read from each disk, and write to it.
    pub io_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: 2 << 30,
            pids: 512,
            cpu_millis: 2000,
            tmp_bytes: 512 << 20,
            workspace_bytes: 10 << 30,
            io_bytes: 256 << 20,
        }
    }
}

/// How to make a sandbox that does not exist yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxSpec {
    /// The durable sandbox generation this sandbox is to be; it is never reused.
    pub generation: u64,
    /// The lease epoch of the worker that asks.
    pub epoch: u64,
    /// What it may use.
    pub limits: Limits,
    /// Variables for the processes in it, on top of `PATH`, `HOME`, `LANG` and `TERM`. Never secrets.
    pub env: BTreeMap<String, String>,
    /// What it may reach; `None` for nothing but its own loopback.
    pub outbound: Option<Outbound>,
    /// What has to be installed before anything runs in it.
    pub provision: Option<Arc<Provision>>,
    /// The files of the workspace come from elsewhere: a new one begins empty.
    pub restored: bool,
    /// The image its root file system comes from, where the provider makes sandboxes of images; its default if none is named.
    pub image: Option<String>,
    /// Which provider is to make it, where there are several; their default if none is named.
    pub provider: Option<String>,
    /// Variables of its commands that stand for secrets, put in the place of others of these names. Given to it when it is made or found again.
    pub stand_ins: BTreeMap<String, String>,
    /// Its environment keeps some like it ready.
    pub pool: Option<WarmPool>,
}

impl SandboxSpec {
    /// One with nothing in it and no way out.
    pub fn new(generation: u64, epoch: u64, limits: Limits) -> Self {
        Self {
            generation,
            epoch,
            limits,
            env: BTreeMap::new(),
            outbound: None,
            provision: None,
            restored: false,
            image: None,
            provider: None,
            stand_ins: BTreeMap::new(),
            pool: None,
        }
    }
}

/// Sandboxes that an environment wants ready for its new sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WarmPool {
    /// Which.
    pub name: String,
    /// How many.
    pub size: u32,
    /// After how long one that nobody wanted is replaced.
    pub max_age: Duration,
}

/// A warm pool as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolState {
    /// Which.
    pub name: String,
    /// How many are wanted.
    pub size: u32,
    /// How many are ready.
    pub ready: usize,
    /// The age of the oldest of them.
    pub oldest: Option<Duration>,
    /// How many sessions were given one.
    pub given: u64,
    /// For how many sessions none was ready.
    pub made_anew: u64,
}

/// What is installed in a sandbox before anything runs in it. Made once for all sandboxes that ask for the same, without any secret, reaching what they reach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Provision {
    /// Whose it is: nobody else's sandboxes get it.
    pub workspace: WorkspaceId,
    /// By manager.
    pub packages: Packages,
    /// Commands that follow, in order.
    pub setup: Vec<String>,
    /// Variables of these commands.
    pub env: BTreeMap<String, String>,
}

/// What a sandbox may reach, and with which secrets. Decided outside of it, by whoever serves its [`Sockets`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outbound {
    /// The hosts.
    pub reach: Reach,
    /// Where its secrets are, if it has the use of any.
    pub vaults: Option<Vaults>,
}

/// The vaults of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vaults {
    /// The workspace they are in.
    pub workspace: WorkspaceId,
    /// Which; the first that has a credential wins.
    pub ids: Vec<VaultId>,
}

/// An authority over certificates that a sandbox trusts: it lives as long as the sandbox, whatever server serves it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trust {
    /// What the sandbox trusts, in PEM.
    pub certificate: String,
    /// What the next server needs to go on with it. A secret.
    pub kept: String,
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Trust")
    }
}

/// Which hosts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reach {
    /// The public internet.
    Unrestricted,
    /// Only these hosts; each a name, an address, or `*.` and a domain.
    Limited(Vec<String>),
}

/// The sockets inside a sandbox at which everything it sends ends: whoever holds them is its network.
#[derive(Debug)]
pub struct Sockets {
    /// Clients here know that they speak to an HTTP proxy.
    pub proxy: TcpListener,
    /// Connections to any address; the kernel knows which (`SO_ORIGINAL_DST`).
    pub catch_all: TcpListener,
    /// Questions to any name server.
    pub names: UdpSocket,
}

impl From<[OwnedFd; 3]> for Sockets {
    /// In the order in which a sandbox hands them over.
    fn from([proxy, catch_all, names]: [OwnedFd; 3]) -> Self {
        Self { proxy: proxy.into(), catch_all: catch_all.into(), names: names.into() }
    }
}

/// A connection of a program in a sandbox.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// How what a sandbox sends arrives.
pub enum Arrivals {
    /// All of it, at sockets inside the sandbox.
    Sockets(Sockets),
    /// Only what programs say to the proxy that their variables name, each connection carried here by the sandbox's hand.
    Streams(mpsc::Receiver<Box<dyn Stream>>),
}

impl fmt::Debug for Arrivals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sockets(_) => "Sockets",
            Self::Streams(_) => "Streams",
        })
    }
}

/// Serves what sandboxes send.
pub trait Uplink: Send + Sync + fmt::Debug {
    /// A new authority, for a sandbox that has the use of secrets.
    fn authority(&self) -> io::Result<Trust>;

    /// Answers what arrives from a sandbox until it is `over`, and counts what passes. `kept` is of the authority it trusts, if it trusts one.
    fn serve(
        &self,
        key: &SandboxKey,
        outbound: &Outbound,
        kept: Option<&str>,
        arrivals: Arrivals,
        over: CancellationToken,
    ) -> io::Result<Arc<dyn Meter>>;
}

/// Counts what goes over a sandbox's way out.
pub trait Meter: Send + Sync + fmt::Debug {
    /// What has gone so far.
    fn so_far(&self) -> Traffic;
}

/// Where nothing is counted any more.
impl Meter for Traffic {
    fn so_far(&self) -> Traffic {
        *self
    }
}

/// What became of a call.
#[derive(Clone, Debug, PartialEq)]
pub enum CallState {
    /// This generation has never heard of it: it was never started.
    Unknown,
    /// It runs.
    Running,
    /// It is over, and this is its result.
    Finished(ToolResult),
}

/// What stands between a sandbox and the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// Namespaces, seccomp, no new privileges; the kernel is shared.
    Namespaces,
    /// A kernel of its own.
    Kernel,
    /// It is a machine elsewhere, walled off by those who run it.
    Elsewhere,
    /// Nothing: tools run as the server's user on the host.
    None,
}

/// The kernel's mechanism behind the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitsBy {
    /// A delegated cgroup v2 subtree.
    V2,
    /// The v1 hierarchies for memory, pids and cpu.
    V1,
}

/// How firmly [`Limits`] hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitsState {
    /// By cgroups, for the sandbox as a whole.
    Enforced(LimitsBy),
    /// By rlimits per process, the namespace's own `pid_max` and the sizes of its tmpfs.
    Degraded,
    /// By the size of the machine that it has for itself.
    Machine,
}

/// How firmly the size of a session's files is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quota {
    /// They are on a disk of their own: past its size, nothing can be written.
    Hard,
    /// No single file may grow past the size; a sandbox whose files are larger together is ended.
    Soft,
}

/// What a sandbox can reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Networking {
    /// Its own loopback and nothing else.
    None,
    /// What the policy of its session allows, and only through its [`Uplink`].
    Controlled,
    /// The same, for programs that use the proxy their variables name; others reach nothing.
    Proxied,
    /// Whatever the host reaches: only without isolation.
    Host,
}

/// What a provider can do, proved by its canary at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// The provider's name as the operator writes it.
    pub name: &'static str,
    /// What stands between a sandbox and the host.
    pub isolation: Isolation,
    /// User ids inside are others outside, and no two sandboxes share any.
    pub own_ids: bool,
    /// How firmly limits hold.
    pub limits: LimitsState,
    /// How firmly the size of files holds.
    pub quota: Quota,
    /// What a sandbox can reach.
    pub networking: Networking,
    /// The files of a sandbox that has ended stay here; otherwise only a checkpoint brings them back.
    pub keeps_files: bool,
    /// Sandboxes can be made before anybody wants them.
    pub keeps_ready: bool,
}

/// Makes sandboxes and keeps their workspaces.
#[async_trait]
pub trait ComputeProvider: Send + Sync {
    /// What this provider can do here.
    fn capabilities(&self) -> Capabilities;

    /// What it can do for a sandbox like this.
    fn capabilities_for(&self, _spec: &SandboxSpec) -> Result<Capabilities, SandboxError> {
        Ok(self.capabilities())
    }

    /// Refuses what its sandboxes can never do, so that a session that wants it never begins.
    fn check(&self, spec: &SandboxSpec) -> Result<(), SandboxError>;

    /// Begins with what a sandbox like this will need, so that it waits less for it: what is to be installed, or a sandbox that is ready for whoever comes first.
    fn prepare(&self, spec: &SandboxSpec);

    /// The warm pools that are wanted from now on, each as what a new session's sandbox would be; those not named are given up. Filled in the background.
    fn keep_warm(&self, _pools: Vec<SandboxSpec>) {}

    /// The warm pools that are kept.
    fn pools(&self) -> Vec<PoolState> {
        Vec::new()
    }

    /// The sandbox of that key and generation: attached to if it lives, else made fresh around the
    /// session's workspace. An older generation is stopped first; a newer one is [`SandboxError::StaleFence`].
    async fn ensure(
        &self,
        key: &SandboxKey,
        spec: &SandboxSpec,
    ) -> Result<Arc<dyn Sandbox>, SandboxError>;

    /// The sandbox of that key if exactly the generation of `spec` still lives; `None` means it is gone for good. What it may reach is from now on what `spec` says.
    async fn attach(
        &self,
        key: &SandboxKey,
        spec: &SandboxSpec,
    ) -> Result<Option<Arc<dyn Sandbox>>, SandboxError>;

    /// Ends the sandbox with everything that runs in it. Its workspace stays. Returns when it is gone.
    async fn stop(&self, key: &SandboxKey) -> Result<(), SandboxError>;

    /// Keeps a sandbox from running until its next call, where that can be done: what runs in it goes on then. Refused while a call runs.
    async fn pause(&self, _key: &SandboxKey) -> Result<(), SandboxError> {
        Err(SandboxError::cannot_pause(self.capabilities().name))
    }

    /// Removes every trace of a session: its sandboxes and its workspace.
    async fn destroy(&self, session: &str) -> Result<(), SandboxError>;

    /// The sandboxes that live here, with their generations.
    async fn living(&self) -> Result<Vec<(SandboxKey, u64)>, SandboxError>;

    /// The sessions that have anything here: a sandbox or a workspace.
    async fn sessions(&self) -> Result<BTreeSet<String>, SandboxError>;

    /// Whether the session has files here.
    async fn has_workspace(&self, session: &str) -> bool;

    /// Lets go of the sandboxes. With `linger` they live on for the next server for a while; without
    /// it they are ended before this returns. Workspaces stay either way.
    async fn shutdown(&self, linger: bool);
}

/// One live sandbox. Every call is refused with [`SandboxError::StaleFence`] if a newer epoch has spoken.
#[async_trait]
pub trait Sandbox: Send + Sync {
    /// Whose sandbox it is, as the operator writes it.
    fn provider(&self) -> &'static str;

    /// The generation this sandbox was made for.
    fn generation(&self) -> u64;

    /// What went over its way out since this server speaks to it.
    fn traffic(&self) -> Traffic;

    /// Runs a tool and waits for its result. Idempotent by `call_id`: a call that runs is waited
    /// for, one that finished answers its kept result, and only an unknown one is started.
    async fn run(
        &self,
        call_id: &str,
        fence: Fence,
        tool: &str,
        input: &serde_json::Value,
        timeout: Option<Duration>,
    ) -> Result<ToolResult, SandboxError>;

    /// What became of a call.
    async fn status(&self, call_id: &str, fence: Fence) -> Result<CallState, SandboxError>;

    /// The result is durable at the server: the sandbox may forget it, and refuses to run it again.
    async fn ack(&self, call_id: &str, fence: Fence) -> Result<(), SandboxError>;

    /// Stops a running call together with everything else that runs in the sandbox.
    async fn cancel(&self, call_id: &str, fence: Fence) -> Result<(), SandboxError>;

    /// A snapshot of the workspace begins here: packs it as it is now and lists its pages, in order. [`Sandbox::page`] and [`Sandbox::part`] read it, [`Sandbox::put_part`] and
    /// [`Sandbox::unpack`] restore it, in any sandbox of any provider.
    async fn pack(&self, fence: Fence) -> Result<Vec<Piece>, SandboxError>;

    /// A page of the last packing. Its bytes are hostile, and other ones if its files have changed since.
    async fn page(&self, index: usize, fence: Fence) -> Result<Vec<u8>, SandboxError>;

    /// A part of a large file that a page lists.
    async fn part(&self, path: &[u8], offset: u64, fence: Fence) -> Result<Vec<u8>, SandboxError>;

    /// Writes the next part of a large file; the `first` one makes it.
    async fn put_part(
        &self,
        path: &[u8],
        first: bool,
        bytes: &[u8],
        fence: Fence,
    ) -> Result<(), SandboxError>;

    /// Makes the entries of a page, the parts of whose large files are there.
    async fn unpack(&self, page: &[u8], fence: Fence) -> Result<(), SandboxError>;

    /// Reads at most `max_bytes` from the start of a regular file as the sandbox sees it.
    async fn read_file(
        &self,
        path: &str,
        max_bytes: u64,
        fence: Fence,
    ) -> Result<Vec<u8>, SandboxError>;
}
