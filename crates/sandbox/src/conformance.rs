//! What every provider must do, as a list over the seam: held to it are the local sandboxes and every engine there is. Only for tests: nothing here belongs in a server.
//!
//! What a provider says it cannot do is asked for all the same, and must be refused.

mod ready;

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use vaquero_types::{WorkspaceId, environment::Packages};

use crate::attacks::{Verdict, Watcher};
use crate::error::SandboxError;
use crate::seam::{
    Block, CallState, ComputeProvider, Fence, Kind, Limits, Networking, Outbound, Page, Piece,
    Provision, Reach, Sandbox, SandboxKey, SandboxSpec, ToolResult, Uplink,
};

/// How a provider is started again, as a server that was killed would.
pub type Start<'a> = &'a (dyn Fn(Option<Arc<dyn Uplink>>) -> Starting + Send + Sync);

/// A provider that starts.
pub type Starting =
    Pin<Box<dyn Future<Output = Result<Arc<dyn ComputeProvider>, SandboxError>> + Send>>;

/// What became of one demand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It holds.
    Holds,
    /// The provider says that it cannot, and refuses it.
    Refused(String),
    /// It does not hold.
    Fails(String),
}

/// One demand and what became of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Finding {
    /// In the words of the table in the documentation.
    pub demand: String,
    /// What became of it.
    pub outcome: Outcome,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?}", self.demand, self.outcome)
    }
}

type Held<'a> = Pin<Box<dyn Future<Output = Result<Outcome, String>> + Send + 'a>>;
type Demand = (&'static str, for<'a> fn(&'a Bench<'_>) -> Held<'a>);

/// Names an async function as a demand.
macro_rules! demand {
    ($name:literal, $function:path) => {
        ($name, |bench| Box::pin($function(bench)))
    };
}

const DEMANDS: &[Demand] = &[
    demand!("The six tools", tools),
    demand!("A shell that keeps its state", shell),
    demand!("Calls beside each other", beside),
    demand!("A call is stopped, with all it has started", cancel),
    demand!("A call that takes too long is ended", timeout),
    demand!("A call runs once, whoever asks for it again", once),
    demand!("Older leases and generations are refused", fences),
    demand!("The next server finds the sandbox, and the call that runs", reconnect),
    demand!("A sandbox that ends in the middle of a call says so, and its files stay", vanish),
    demand!("A sandbox is paused, and goes on with the next call", pause),
    demand!("Sandboxes are ready before they are wanted", ready::ready),
    demand!("A workspace is packed and unpacked elsewhere", pack),
    demand!("Networking is limited to what is allowed", networking),
    demand!("No way out at all", alone),
    demand!("An environment is set up once, for all its sessions", setup),
    demand!("An image of one's own", image),
    demand!("Variables of an environment", variables),
    demand!("Nothing stays of a session that is gone", reap),
    demand!("Sandboxes come and go and leave nothing", rounds),
];

/// Holds a provider to everything. With an `image`, one that has `marked` in `/etc/image-mark`; `rounds` are how often sandboxes come and go, unless `VAQUERO_TEST_ROUNDS` says another number.
pub async fn run(start: Start<'_>, image: Option<&str>, rounds: u32) -> Vec<Finding> {
    let mut findings = Vec::new();
    let next = AtomicU64::new(1);
    let asked = std::env::var("VAQUERO_TEST_ROUNDS").ok().and_then(|rounds| rounds.parse().ok());
    let rounds = asked.unwrap_or(rounds);
    let limit = Duration::from_mins(3).max(Duration::from_secs(5) * rounds);
    for (demand, hold) in DEMANDS {
        let watcher: Arc<dyn Uplink> = Arc::new(Watcher::default());
        let outcome = match start(Some(watcher)).await {
            Ok(provider) => {
                let bench = Bench { start, provider, image, rounds, next: &next };
                let held = tokio::time::timeout(limit, hold(&bench)).await;
                let held = held.unwrap_or_else(|_| Err("it did not end".to_owned()));
                bench.provider.shutdown(false).await;
                held.unwrap_or_else(Outcome::Fails)
            }
            Err(error) => Outcome::Fails(error.to_string()),
        };
        findings.push(Finding { demand: (*demand).to_owned(), outcome });
    }
    findings
}

/// Fails where anything does not hold.
pub fn all_hold(findings: &[Finding]) {
    let failed = |finding: &&Finding| finding.outcome != Outcome::Holds;
    let failed: Vec<_> = findings.iter().filter(failed).map(ToString::to_string).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// Keeps what was found, for the table in the documentation.
pub fn keep(provider: &str, findings: &[Finding]) {
    write(&format!("{provider}.json"), findings);
}

/// The same for attacks: how many were tried, and how many failed.
pub fn keep_attacks(provider: &str, verdicts: &[Verdict]) {
    let failed = verdicts.iter().filter(|verdict| verdict.outcome.is_ok()).count();
    write(&format!("{provider}.attacks.json"), &[verdicts.len(), failed]);
}

fn write<T: Serialize>(name: &str, found: &[T]) {
    let Some(dir) = std::env::var_os("VAQUERO_TEST_FINDINGS") else { return };
    let text = serde_json::to_string_pretty(found).expect("plain data");
    std::fs::write(std::path::Path::new(&dir).join(name), text).expect("the directory is there");
}

struct Bench<'a> {
    start: Start<'a>,
    provider: Arc<dyn ComputeProvider>,
    image: Option<&'a str>,
    rounds: u32,
    /// No two sessions have one name, whatever demand they are made for.
    next: &'a AtomicU64,
}

const FENCE: Fence = Fence { epoch: 1, generation: 1 };

/// A sandbox without anything.
pub fn spec() -> SandboxSpec {
    let limits = Limits { memory_bytes: 512 << 20, ..Limits::default() };
    SandboxSpec::new(1, 1, limits)
}

fn said(result: &ToolResult) -> String {
    let texts = result.content.iter().map(|block| match block {
        Block::Text { text } => text.as_str(),
        Block::Image { .. } | Block::Document { .. } => "(data)",
    });
    texts.collect::<Vec<_>>().join("\n")
}

fn check(ok: bool, otherwise: impl fmt::Debug) -> Result<(), String> {
    if ok { Ok(()) } else { Err(format!("{otherwise:?}")) }
}

#[expect(clippy::needless_pass_by_value, reason = "it is what an error is mapped by")]
fn told(error: SandboxError) -> String {
    error.to_string()
}

impl Bench<'_> {
    fn key(&self) -> SandboxKey {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        SandboxKey::default_of(format!("demand-{}-{number}", std::process::id()))
    }

    async fn fresh(&self) -> Result<(SandboxKey, Arc<dyn Sandbox>), String> {
        let key = self.key();
        let sandbox = self.provider.ensure(&key, &spec()).await.map_err(told)?;
        Ok((key, sandbox))
    }

    async fn call(
        &self,
        sandbox: &dyn Sandbox,
        tool: &str,
        input: Value,
    ) -> Result<ToolResult, String> {
        let id = format!("call_{}", self.next.fetch_add(1, Ordering::Relaxed));
        let fence = Fence { generation: sandbox.generation(), ..FENCE };
        sandbox.run(&id, fence, tool, &input, None).await.map_err(told)
    }

    async fn sh(&self, sandbox: &dyn Sandbox, command: &str) -> Result<String, String> {
        let result = self.call(sandbox, "bash", json!({ "command": command })).await?;
        check(!result.is_error, &result)?;
        Ok(said(&result).trim().to_owned())
    }
}

async fn tools(bench: &Bench<'_>) -> Result<Outcome, String> {
    let (_, sandbox) = bench.fresh().await?;
    let all = [
        ("write", json!({ "file_path": "/workspace/a/b.txt", "content": "one\ntwo\n" }), ""),
        ("read", json!({ "file_path": "/workspace/a/b.txt" }), "two"),
        (
            "edit",
            json!({ "file_path": "/workspace/a/b.txt", "old_string": "two", "new_string": "three" }),
            "",
        ),
        ("grep", json!({ "pattern": "thr.e" }), "three"),
        ("glob", json!({ "pattern": "**/*.txt" }), "b.txt"),
        ("bash", json!({ "command": "cat a/b.txt; pwd" }), "one\nthree\n/workspace"),
    ];
    for (tool, input, expected) in all {
        let result = bench.call(sandbox.as_ref(), tool, input).await?;
        check(!result.is_error && said(&result).contains(expected), (tool, &result))?;
    }
    let result = bench.call(sandbox.as_ref(), "read", json!({ "file_path": "/nowhere" })).await?;
    check(result.is_error, &result)?;
    let bytes = sandbox.read_file("/workspace/a/b.txt", 1 << 20, FENCE).await.map_err(told)?;
    check(bytes == b"one\nthree\n", &bytes)?;
    Ok(Outcome::Holds)
}

async fn shell(bench: &Bench<'_>) -> Result<Outcome, String> {
    let (_, sandbox) = bench.fresh().await?;
    bench.sh(sandbox.as_ref(), "cd /tmp; x=5; f() { echo $x-$1; }").await?;
    let found = bench.sh(sandbox.as_ref(), "f 6; pwd").await?;
    check(found == "5-6\n/tmp", &found)?;
    let long = bench.sh(sandbox.as_ref(), "head -c 300000 /dev/zero | tr '\\0' x").await?;
    check(long.len() > 10_000, long.len())?;
    Ok(Outcome::Holds)
}

async fn beside(bench: &Bench<'_>) -> Result<Outcome, String> {
    let (_, sandbox) = bench.fresh().await?;
    let waits = json!({ "command": "until [ -e /tmp/go ]; do sleep 0.05; done; echo went" });
    let long = bench.call(sandbox.as_ref(), "bash", waits);
    let short =
        bench.call(sandbox.as_ref(), "write", json!({ "file_path": "/tmp/go", "content": "" }));
    let (long, short) = tokio::join!(long, short);
    check(!short?.is_error, "the file tool failed")?;
    let long = long?;
    check(said(&long).trim() == "went", &long)?;
    Ok(Outcome::Holds)
}

async fn cancel(bench: &Bench<'_>) -> Result<Outcome, String> {
    let (_, sandbox) = bench.fresh().await?;
    let input = json!({ "command": "setsid sleep 987 & touch /tmp/began; sleep 987" });
    let running = sandbox.run("long", FENCE, "bash", &input, None);
    let stop = async {
        // The first call makes the file, and only then there is something to stop.
        for _ in 0..600 {
            let there = bench.call(sandbox.as_ref(), "glob", json!({ "pattern": "/tmp/began" }));
            if there.await.is_ok_and(|result| said(&result).contains("began")) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        sandbox.cancel("long", FENCE).await
    };
    let (result, stopped) = tokio::join!(running, stop);
    stopped.map_err(told)?;
    let result = result.map_err(told)?;
    check(result.is_error, &result)?;
    bench.call(sandbox.as_ref(), "bash", json!({ "restart": true })).await?;
    let left = bench.sh(sandbox.as_ref(), "cat /proc/[0-9]*/cmdline | tr '\\0' ' '").await?;
    check(!left.contains("sleep 987"), &left)?;
    Ok(Outcome::Holds)
}

async fn timeout(bench: &Bench<'_>) -> Result<Outcome, String> {
    let (_, sandbox) = bench.fresh().await?;
    let input = json!({ "command": "echo before; sleep 986", "timeout_ms": 500 });
    let result = bench.call(sandbox.as_ref(), "bash", input).await?;
    let text = said(&result);
    check(result.is_error && text.contains("timed out") && text.contains("before"), &result)?;
    Ok(Outcome::Holds)
}

async fn once(bench: &Bench<'_>) -> Result<Outcome, String> {
    let (_, sandbox) = bench.fresh().await?;
    let input = json!({ "command": "echo ran >>/workspace/count; cat /workspace/count" });
    for _ in 0..2 {
        let result = sandbox.run("same", FENCE, "bash", &input, None).await.map_err(told)?;
        check(said(&result).trim() == "ran", &result)?;
    }
    let state = sandbox.status("same", FENCE).await.map_err(told)?;
    check(matches!(state, CallState::Finished(_)), &state)?;
    sandbox.ack("same", FENCE).await.map_err(told)?;
    let again = sandbox.run("same", FENCE, "bash", &input, None).await;
    check(matches!(again, Err(SandboxError::Acked)), &again)?;
    let other = sandbox.status("other", FENCE).await.map_err(told)?;
    check(other == CallState::Unknown, &other)?;
    Ok(Outcome::Holds)
}

async fn fences(bench: &Bench<'_>) -> Result<Outcome, String> {
    let (key, old) = bench.fresh().await?;
    let newer = Fence { epoch: 2, ..FENCE };
    old.status("x", newer).await.map_err(told)?;
    let stale = old.status("x", FENCE).await;
    check(matches!(stale, Err(SandboxError::StaleFence)), &stale)?;
    let second = SandboxSpec { generation: 2, epoch: 2, ..spec() };
    let fresh = bench.provider.ensure(&key, &second).await.map_err(told)?;
    check(fresh.generation() == 2, fresh.generation())?;
    let late = bench.provider.ensure(&key, &spec()).await.err();
    check(matches!(late, Some(SandboxError::StaleFence)), &late)?;
    let gone = bench.provider.attach(&key, &spec()).await.map_err(told)?;
    check(gone.is_none(), "an older generation lives")?;
    let dead = old.status("x", newer).await;
    check(dead.is_err(), &dead)?;
    Ok(Outcome::Holds)
}

async fn reconnect(bench: &Bench<'_>) -> Result<Outcome, String> {
    let (key, first) = bench.fresh().await?;
    let input = json!({ "command": "echo once >>/workspace/runs; until [ -e /tmp/go ]; do sleep 0.05; done; cat /workspace/runs" });
    let cut = tokio::time::timeout(
        Duration::from_secs(2),
        first.run("kept", FENCE, "bash", &input, None),
    );
    check(cut.await.is_err(), "the call did not wait")?;
    bench.provider.shutdown(true).await;
    let watcher: Arc<dyn Uplink> = Arc::new(Watcher::default());
    let next = (bench.start)(Some(watcher)).await.map_err(told)?;
    let living = next.living().await.map_err(told)?;
    check(living.contains(&(key.clone(), 1)), &living)?;
    let found = next.attach(&key, &spec()).await.map_err(told)?;
    let found = found.ok_or("the sandbox is gone")?;
    let state = found.status("kept", FENCE).await.map_err(told)?;
    check(state == CallState::Running, &state)?;
    let go = json!({ "file_path": "/tmp/go", "content": "" });
    let (went, result) = tokio::join!(
        bench.call(found.as_ref(), "write", go),
        found.run("kept", FENCE, "bash", &input, None)
    );
    went?;
    let result = result.map_err(told)?;
    next.shutdown(false).await;
    check(said(&result).trim() == "once", &result)?;
    Ok(Outcome::Holds)
}

async fn vanish(bench: &Bench<'_>) -> Result<Outcome, String> {
    let (key, sandbox) = bench.fresh().await?;
    bench.sh(sandbox.as_ref(), "echo kept >/workspace/kept; echo gone >/tmp/gone").await?;
    let input = json!({ "command": "sleep 985" });
    let end = async {
        tokio::task::yield_now().await;
        bench.provider.stop(&key).await
    };
    let (cut, stopped) = tokio::join!(sandbox.run("cut", FENCE, "bash", &input, None), end);
    stopped.map_err(told)?;
    check(matches!(cut, Err(SandboxError::Gone { .. })), &cut)?;
    let second = SandboxSpec { generation: 2, ..spec() };
    let fresh = bench.provider.ensure(&key, &second).await.map_err(told)?;
    let look = "cat kept 2>/dev/null; cat /tmp/gone 2>/dev/null; true";
    let found = bench.sh(fresh.as_ref(), look).await?;
    if !bench.provider.capabilities().keeps_files {
        check(!found.contains("kept") && !found.contains("gone"), &found)?;
        return Ok(Outcome::Refused("its files come back from checkpoints".to_owned()));
    }
    check(found == "kept", &found)?;
    Ok(Outcome::Holds)
}

async fn pause(bench: &Bench<'_>) -> Result<Outcome, String> {
    let (key, sandbox) = bench.fresh().await?;
    bench.sh(sandbox.as_ref(), "echo $$ >/tmp/shell; x=1").await?;
    if let Err(refused) = bench.provider.pause(&key).await {
        bench.sh(sandbox.as_ref(), "test $x = 1").await?;
        return Ok(Outcome::Refused(refused.to_string()));
    }
    let living = bench.provider.living().await.map_err(told)?;
    check(living.contains(&(key.clone(), 1)), &living)?;
    let again = bench.provider.ensure(&key, &spec()).await.map_err(told)?;
    let found =
        bench.sh(again.as_ref(), "echo $x; kill -0 $(cat /tmp/shell) && echo alive").await?;
    check(found == "1\nalive", &found)?;
    bench.provider.pause(&key).await.map_err(told)?;
    let second = SandboxSpec { generation: 2, ..spec() };
    let fresh = bench.provider.ensure(&key, &second).await.map_err(told)?;
    let found = bench.sh(fresh.as_ref(), "echo $x; cat /tmp/shell 2>/dev/null; true").await?;
    check(!found.contains('1'), &found)?;
    Ok(Outcome::Holds)
}

async fn pack(bench: &Bench<'_>) -> Result<Outcome, String> {
    let (_, from) = bench.fresh().await?;
    let make = "mkdir d; echo text >d/f; chmod 750 d/f; ln -s f d/l; head -c 3000000 /dev/urandom >big; sha256sum big | cut -c1-64";
    let hash = bench.sh(from.as_ref(), make).await?;
    let (_, to) = bench.fresh().await?;
    let pieces = from.pack(FENCE).await.map_err(told)?;
    let mut moved = 0;
    for (index, _) in pieces.iter().enumerate() {
        let page = from.page(index, FENCE).await.map_err(told)?;
        let listed: Page = serde_json::from_slice(&page).map_err(|e| e.to_string())?;
        for entry in listed.entries {
            let Kind::Parts { parts } = &entry.kind else { continue };
            let (path, mut offset) = (entry.path.as_bytes(), 0);
            for piece in parts {
                let part = from.part(path, offset, FENCE).await.map_err(told)?;
                check(Piece::of(&part) == *piece, "a part is another one")?;
                to.put_part(path, offset == 0, &part, FENCE).await.map_err(told)?;
                offset += piece.length;
                moved += 1;
            }
        }
        to.unpack(&page, FENCE).await.map_err(told)?;
    }
    check(moved > 0, "no large file was listed")?;
    let found =
        bench.sh(to.as_ref(), "cat d/l; find d/f -perm 750; sha256sum big | cut -c1-64").await?;
    check(found == format!("text\nd/f\n{hash}"), &found)?;
    Ok(Outcome::Holds)
}

const REACH: &str = "for p in 'HTTP/1.1 x' ; do (exec 3<>/dev/tcp/127.0.0.1/3128; timeout 5 head -1 <&3) 2>/dev/null; done; \
    (exec 3<>/dev/tcp/93.184.216.34/80; timeout 5 head -1 <&3) 2>/dev/null; echo end";

/// More connections at once than anybody carries: those too many fail, and nothing else does.
const MANY: &str =
    "for n in $(seq 600); do exec {c}<>/dev/tcp/127.0.0.1/3128; done 2>/dev/null; echo end";

async fn networking(bench: &Bench<'_>) -> Result<Outcome, String> {
    let outbound = Outbound { reach: Reach::Limited(vec!["example.com".to_owned()]), vaults: None };
    let limited = SandboxSpec { outbound: Some(outbound), ..spec() };
    let key = bench.key();
    let kind = bench.provider.capabilities().networking;
    if matches!(kind, Networking::None | Networking::Host) {
        let refused = bench.provider.ensure(&key, &limited).await.err();
        return match refused {
            Some(error) => Ok(Outcome::Refused(error.to_string())),
            None => Err("it makes a sandbox whose networking it cannot limit".to_owned()),
        };
    }
    let sandbox = bench.provider.ensure(&key, &limited).await.map_err(told)?;
    let found = bench.sh(sandbox.as_ref(), REACH).await?;
    let caught: &[&str] = match kind {
        Networking::Controlled => &["caught 127.0.0.1:3128", "caught 93.184.216.34:80", "end"],
        Networking::Proxied | Networking::None | Networking::Host => &["caught the proxy", "end"],
    };
    check(found.lines().eq(caught.iter().copied()), &found)?;
    let found = bench.sh(sandbox.as_ref(), MANY).await?;
    check(found == "end", &found)?;
    Ok(Outcome::Holds)
}

async fn alone(bench: &Bench<'_>) -> Result<Outcome, String> {
    let (_, sandbox) = bench.fresh().await?;
    let found = bench.sh(sandbox.as_ref(), REACH).await?;
    check(found == "end", &found)?;
    Ok(Outcome::Holds)
}

async fn setup(bench: &Bench<'_>) -> Result<Outcome, String> {
    let provision = Provision {
        workspace: WorkspaceId::from_wire("wrkspc_1"),
        packages: Packages::default(),
        setup: vec![
            "mkdir -p /usr/local/lib; echo installed >/usr/local/lib/installed; echo begun >/workspace/begun".to_owned(),
            "date +%s%N >>/usr/local/lib/installed".to_owned(),
        ],
        env: BTreeMap::new(),
    };
    let wanted = SandboxSpec { provision: Some(Arc::new(provision)), ..spec() };
    if let Err(refused) = bench.provider.check(&wanted) {
        let made = bench.provider.ensure(&bench.key(), &wanted).await;
        check(made.is_err(), "it is refused and made all the same")?;
        return Ok(Outcome::Refused(refused.to_string()));
    }
    let mut found = Vec::new();
    for _ in 0..2 {
        let made = bench.provider.ensure(&bench.key(), &wanted).await;
        let sandbox = match made {
            Err(SandboxError::Provision(why)) if why.contains("sandbox required") => {
                return Ok(Outcome::Refused(why));
            }
            other => other.map_err(told)?,
        };
        let look = "cat /usr/local/lib/installed /workspace/begun; (echo x >/usr/local/lib/mine) 2>/dev/null && echo writable; true";
        found.push(bench.sh(sandbox.as_ref(), look).await?);
    }
    let made_once = found[0] == found[1];
    let right = found[0].starts_with("installed\n") && found[0].ends_with("\nbegun");
    check(made_once && right, &found)?;
    Ok(Outcome::Holds)
}

async fn image(bench: &Bench<'_>) -> Result<Outcome, String> {
    let name = bench.image.unwrap_or("an-image:latest");
    let wanted = SandboxSpec { image: Some(name.to_owned()), ..spec() };
    let checked = bench.provider.check(&wanted);
    let made = bench.provider.ensure(&bench.key(), &wanted).await;
    match (checked, made) {
        (Err(_), Err(error)) if bench.image.is_none() => Ok(Outcome::Refused(error.to_string())),
        (Ok(()), Ok(sandbox)) if bench.image.is_some() => {
            let found = bench.sh(sandbox.as_ref(), "cat /etc/image-mark").await?;
            check(found == "marked", &found)?;
            let nowhere = SandboxSpec { image: Some("no-such/image:1".to_owned()), ..spec() };
            let missing = bench.provider.ensure(&bench.key(), &nowhere).await.err();
            let clear = missing.as_ref().is_some_and(|e| e.to_string().contains("no-such/image"));
            check(clear, &missing)?;
            Ok(Outcome::Holds)
        }
        (checked, made) => Err(format!("{checked:?}, then {:?}", made.err())),
    }
}

async fn variables(bench: &Bench<'_>) -> Result<Outcome, String> {
    let env = BTreeMap::from([("GREETING".to_owned(), "hello 'you'\nthere".to_owned())]);
    let stand_ins = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    let first = stand_ins(&[("TOKEN", "it's"), ("OLD", "1")]);
    let wanted = SandboxSpec { env, stand_ins: first, ..spec() };
    let key = bench.key();
    let sandbox = bench.provider.ensure(&key, &wanted).await.map_err(told)?;
    let found = bench.sh(sandbox.as_ref(), "echo \"$GREETING\"; echo $HOME").await?;
    check(found.starts_with("hello 'you'\nthere\n/"), &found)?;
    let show = "echo $TOKEN $OLD $NEW; bash -c 'echo $TOKEN'";
    let found = bench.sh(sandbox.as_ref(), show).await?;
    check(found == "it's 1\nit's", &found)?;
    let again = json!({ "restart": true, "command": show });
    let found = said(&bench.call(sandbox.as_ref(), "bash", again).await?);
    check(found.trim() == "it's 1\nit's", &found)?;
    // The next server may know of others.
    bench.provider.shutdown(true).await;
    let watcher: Arc<dyn Uplink> = Arc::new(Watcher::default());
    let next = (bench.start)(Some(watcher)).await.map_err(told)?;
    let second = stand_ins(&[("TOKEN", "other"), ("NEW", "2")]);
    let wanted = SandboxSpec { stand_ins: second, ..wanted };
    let found = next.attach(&key, &wanted).await.map_err(told)?.ok_or("it is gone")?;
    let found = bench.sh(found.as_ref(), show).await?;
    check(found == "other 2\nother", &found)?;
    next.shutdown(false).await;
    Ok(Outcome::Holds)
}

async fn reap(bench: &Bench<'_>) -> Result<Outcome, String> {
    let (key, sandbox) = bench.fresh().await?;
    bench.sh(sandbox.as_ref(), "echo x >file").await?;
    let sessions = bench.provider.sessions().await.map_err(told)?;
    check(sessions.contains(&key.session), &sessions)?;
    check(bench.provider.has_workspace(&key.session).await, "there are no files")?;
    bench.provider.destroy(&key.session).await.map_err(told)?;
    let sessions = bench.provider.sessions().await.map_err(told)?;
    let living = bench.provider.living().await.map_err(told)?;
    check(!sessions.contains(&key.session), &sessions)?;
    check(living.iter().all(|(other, _)| *other != key), &living)?;
    check(!bench.provider.has_workspace(&key.session).await, "its files are there")?;
    let dead = sandbox.status("x", FENCE).await;
    check(dead.is_err(), &dead)?;
    bench.provider.destroy(&key.session).await.map_err(told)?;
    Ok(Outcome::Holds)
}

async fn rounds(bench: &Bench<'_>) -> Result<Outcome, String> {
    let before = bench.provider.sessions().await.map_err(told)?;
    let held = held_by_the_host();
    for _ in 0..bench.rounds {
        let (key, sandbox) = bench.fresh().await?;
        bench.sh(sandbox.as_ref(), "true").await?;
        bench.provider.destroy(&key.session).await.map_err(told)?;
    }
    let after = bench.provider.sessions().await.map_err(told)?;
    let living = bench.provider.living().await.map_err(told)?;
    check(before == after && living.is_empty(), (before, after, living))?;
    // The spares that are ready, and whatever else runs on this machine, take a few.
    let now = held_by_the_host();
    let leaked =
        held.iter().zip(&now).any(|(before, now)| *now > before + bench.rounds as usize / 2 + 50);
    check(!leaked, (held, now))?;
    Ok(Outcome::Holds)
}

/// Descriptors of this process, and mounts and loop devices of the machine.
fn held_by_the_host() -> [usize; 3] {
    let lines = |path: &str| std::fs::read_to_string(path).map_or(0, |text| text.lines().count());
    let entries = |path: &str| std::fs::read_dir(path).map_or(0, Iterator::count);
    let loops = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let backed = loops.filter(|block| block.path().join("loop/backing_file").exists()).count();
    [entries("/proc/self/fd"), lines("/proc/self/mountinfo"), backed]
}
