//! The same turns on every provider of sandboxes and through every worker, side by side: until the model is asked, until a new session's first call has its result, and later ones.

use crate::{Args, instant::Instantly, machine::Times, sessions::Following};
use anyhow::Context;
use serde_json::{Value, json};
use std::{
    env,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use vaquero_testkit::{Client, Fake, Server};

const ELSEWHERE: [&str; 4] = ["e2b", "modal", "daytona", "kubernetes"];
/// How long pools may take to fill.
const FILLING: Duration = Duration::from_secs(60);

/// Who runs the calls.
enum Hands {
    /// Sandboxes of a provider, which keeps none ready.
    Provider(&'static str),
    /// A program that serves a self-hosted environment.
    Worker(Vec<String>),
}

/// What was found of one of them.
#[derive(Default)]
struct Found {
    first_token: Times,
    first_token_alone: Times,
    cold: Times,
    ready: Times,
    warm: Times,
    turn: Times,
    plain_turn: Times,
}

pub(crate) async fn measure(args: &Args) -> anyhow::Result<()> {
    println!(
        "| hands | model asked, with a sandbox wanted | and none | first call, sandbox made | from a warm pool | later calls | whole turn with one call | and with none |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for name in ["local", "docker", "gvisor", "plugin"].into_iter().chain(ELSEWHERE) {
        row(args, name, &Hands::Provider(name)).await?;
    }
    for (name, command) in workers(args)? {
        row(args, name, &Hands::Worker(command)).await?;
    }
    own_work(args)
}

async fn row(args: &Args, name: &str, hands: &Hands) -> anyhow::Result<()> {
    let mut model = Instantly::start().await?;
    let mut server = args.server(&model)?;
    let Some(_fakes) = equip(&mut server, hands)? else {
        println!("| {name} | not here |");
        return Ok(());
    };
    server.start().await?;
    let found = turns(args, &mut model, &server, hands).await?;
    server.terminate().await?;
    let Found { first_token, first_token_alone, cold, ready, warm, turn, plain_turn } = found;
    let cells = [first_token, first_token_alone, cold, ready, warm, turn, plain_turn];
    let cells = cells.map(|mut times| match times.0.len() {
        0 => "–".to_owned(),
        _ => format!("{:.1}", times.median().as_secs_f64() * 1e3),
    });
    println!("| {name} | {} |", cells.join(" | "));
    Ok(())
}

/// What the server needs for that, and what has to live as long; none where it is not to be had.
fn equip(server: &mut Server, hands: &Hands) -> anyhow::Result<Option<Vec<Fake>>> {
    let Hands::Provider(name) = *hands else { return Ok(Some(Vec::new())) };
    server.set("VAQUERO_SANDBOX", name);
    server.set("VAQUERO_SANDBOX_SPARES", "0");
    let docker = || env::var("VAQUERO_TEST_DOCKER").ok().filter(|host| host != "none");
    match name {
        "docker" | "gvisor" => {
            let Some(host) = docker() else { return Ok(None) };
            if name == "gvisor" && env::var_os("VAQUERO_TEST_DOCKER_RUNTIME").is_none() {
                return Ok(None);
            }
            server.set_docker(&host);
        }
        "plugin" => {
            let there = Command::new("bwrap").arg("--version").stdout(Stdio::null()).status();
            if !there.is_ok_and(|there| there.success()) {
                return Ok(None);
            }
            let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/examples/bubblewrap.py");
            server.set("VAQUERO_SANDBOX_PLUGIN", &format!("python3 {example}"));
            server.set("VAQUERO_SANDBOX_LIMITS", "degraded");
        }
        _ if ELSEWHERE.contains(&name) => {
            let Some(fake) = Fake::start(name) else { return Ok(None) };
            fake.equip(server)?;
            return Ok(Some(vec![fake]));
        }
        _ => {}
    }
    Ok(Some(Vec::new()))
}

async fn turns(
    args: &Args,
    model: &mut Instantly,
    server: &Server,
    hands: &Hands,
) -> anyhow::Result<Found> {
    let client = server.client();
    let environment = match hands {
        Hands::Provider(_) => environment(client, json!({ "type": "cloud" })).await?,
        Hands::Worker(..) => environment(client, json!({ "type": "self_hosted" })).await?,
    };
    let worker = match hands {
        Hands::Provider(_) => None,
        Hands::Worker(command) => Some(Worker::start(args, server, &environment, command)?),
    };
    let (tools, none) = (json!([{ "type": "agent_toolset_20260401" }]), json!([]));
    let (with_tools, without) = (agent(client, tools).await?, agent(client, none).await?);
    let mut found = Found::default();
    // The first of all finds nothing in any cache.
    for index in 0..=args.count(20) {
        let mut plain = Talk::begin(client, &without, &environment).await?;
        let quick = plain.turn(model, "#word").await?;
        plain.end(worker.as_ref()).await?;
        let mut talk = Talk::begin(client, &with_tools, &environment).await?;
        let said = talk.turn(model, "#bash").await?;
        if index > 0 {
            found.first_token_alone.0.push(quick.asked);
            found.first_token.0.push(said.asked);
            found.cold.0.extend(said.called);
        }
        if index == args.count(20) {
            for _ in 0..args.count(200) {
                let said = talk.turn(model, "#bash").await?;
                found.warm.0.extend(said.called);
                found.turn.0.push(said.all);
                found.plain_turn.0.push(talk.turn(model, "#word").await?.all);
            }
        }
        talk.end(worker.as_ref()).await?;
    }
    let pooled = match hands {
        Hands::Provider(name) if *name != "plugin" => true,
        Hands::Provider(_) | Hands::Worker(..) => false,
    };
    if pooled {
        let config = json!({ "type": "cloud", "warm_pool": {} });
        let environment = self::environment(client, config).await?;
        for _ in 0..args.count(20) {
            full(client, &environment).await?;
            let mut talk = Talk::begin(client, &with_tools, &environment).await?;
            found.ready.0.extend(talk.turn(model, "#bash").await?.called);
            talk.end(None).await?;
        }
    }
    Ok(found)
}

/// What one turn took.
struct Turn {
    /// From the message to the model's first request.
    asked: Duration,
    /// From the model's first request to its second, if there was one.
    called: Option<Duration>,
    /// From the message to the session's rest.
    all: Duration,
}

/// A session, and the stream of its events.
struct Talk {
    client: Client,
    session: String,
    stream: Following,
}

impl Talk {
    async fn begin(client: &Client, agent: &str, environment: &str) -> anyhow::Result<Self> {
        let body = json!({ "agent": agent, "environment_id": environment });
        let session = id(client.post("/v1/sessions", body).await?)?;
        let stream = Following::open(client, &session).await?;
        Ok(Self { client: client.clone(), session, stream })
    }

    async fn turn(&mut self, model: &mut Instantly, text: &str) -> anyhow::Result<Turn> {
        while model.arrivals.try_recv().is_ok() {}
        let started = Instant::now();
        self.client.say(&self.session, text).await?;
        let first = model.arrivals.recv().await.context("the model is asked")?;
        let mut second = None;
        if text == "#bash" {
            second = Some(model.arrivals.recv().await.context("the model is asked again")?);
        }
        // A session rests twice where its calls are a worker's.
        self.stream.until("span.model_request_end").await?;
        if second.is_some() {
            self.stream.until("span.model_request_end").await?;
        }
        self.stream.until("session.status_idle").await?;
        let called = second.map(|second| second - first);
        Ok(Turn { asked: first - started, called, all: started.elapsed() })
    }

    /// Ends the session; its worker asks for the next.
    async fn end(self, worker: Option<&Worker>) -> anyhow::Result<()> {
        self.client.delete(&format!("/v1/sessions/{}", self.session)).await?;
        match worker {
            Some(worker) => worker.leaves().await,
            None => Ok(()),
        }
    }
}

fn id(made: Value) -> anyhow::Result<String> {
    made["id"].as_str().map(str::to_owned).context("an id")
}

async fn agent(client: &Client, tools: Value) -> anyhow::Result<String> {
    let agent = json!({ "name": "load", "model": "instant", "tools": tools });
    id(client.post("/v1/agents", agent).await?)
}

async fn environment(client: &Client, config: Value) -> anyhow::Result<String> {
    let body = json!({ "name": config.to_string(), "config": config });
    id(client.post("/v1/environments", body).await?)
}

/// Waits until the environment's pool is full.
async fn full(client: &Client, environment: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + FILLING;
    let pool = format!("pool=\"{environment}\"");
    while Instant::now() < deadline {
        let full =
            client.metric("vaquero_sandbox_pool_ready", &[&pool]).await.as_deref() == Some("1");
        if full {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    anyhow::bail!("the pool of {environment} is not filled")
}

/// A worker of an environment, with all it has started.
struct Worker {
    /// Its items, and what it may see them with.
    queue: String,
    key: String,
    child: Child,
    _place: tempfile::TempDir,
}

impl Worker {
    fn start(
        args: &Args,
        server: &Server,
        environment: &str,
        command: &[String],
    ) -> anyhow::Result<Self> {
        let mut key = Command::new(std::path::absolute(&args.exe)?);
        key.args(["key", "create", "--environment", environment, "--data-dir"]);
        let said = key.arg(server.data().join("data")).output()?;
        let key = String::from_utf8(said.stdout)?.trim().to_owned();
        let place = tempfile::tempdir()?;
        let words = command.iter().map(|word| {
            word.replace("ENVIRONMENT", environment)
                .replace("KEY", &key)
                .replace("BASE", &server.client().base)
                .replace("PLACE", &place.path().display().to_string())
        });
        let words: Vec<String> = words.collect();
        let (program, arguments) = words.split_first().context("a program")?;
        let child = Command::new(program)
            .args(arguments)
            .env("VAQUERO_TEST_BASE_URL", &server.client().base)
            .env("ANTHROPIC_ENVIRONMENT_KEY", &key)
            .env("VAQUERO_LOG", "error")
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .current_dir(place.path())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("{program} cannot be started"))?;
        let queue = format!("{}/v1/environments/{environment}/work", server.client().base);
        Ok(Self { queue, key, child, _place: place })
    }

    /// Waits until it has left the session that it served, and asks for the next.
    async fn leaves(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + FILLING;
        let http = reqwest::Client::builder().no_proxy().build()?;
        while Instant::now() < deadline {
            let asked = http.get(&self.queue).bearer_auth(&self.key).send().await?;
            let listed: Value = asked.error_for_status()?.json().await?;
            let items = listed["data"].as_array().context("a list")?;
            if items.iter().all(|item| item["state"] == "stopped") {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        anyhow::bail!("the worker does not leave")
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn there(name: &str) -> Option<PathBuf> {
    env::var_os(name).map(PathBuf::from).filter(|path| path.exists())
}

/// The programs that serve self-hosted environments, as anybody runs them.
fn workers(args: &Args) -> anyhow::Result<Vec<(&'static str, Vec<String>)>> {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/sdk/workers");
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let ours = std::path::absolute(&args.exe)?.display().to_string();
    let mut all = vec![(
        "`vaquero worker`, local",
        words(&[
            &ours,
            "worker",
            "--sandbox-limits",
            "degraded",
            "--sandbox-spares",
            "0",
            "--base-url",
            "BASE",
            "--environment",
            "ENVIRONMENT",
            "--data-dir",
            "PLACE/worker",
        ]),
    )];
    let arguments = ["ENVIRONMENT", "KEY", "PLACE"];
    if let Some(python) = there("VAQUERO_TEST_PYTHON") {
        let script = scripts.join("worker.py");
        let program = [python.display().to_string(), script.display().to_string()];
        let program = [&program[0], &program[1]].map(String::as_str);
        all.push(("official worker, Python", words(&[&program[..], &arguments].concat())));
    }
    if let Some(packages) = there("VAQUERO_TEST_TYPESCRIPT") {
        // It finds its packages beside itself.
        let script = packages.join("worker.mjs");
        std::fs::copy(scripts.join("worker.mjs"), &script)?;
        let script = script.display().to_string();
        all.push((
            "official worker, TypeScript",
            words(&[&["node", &script][..], &arguments].concat()),
        ));
    }
    Ok(all)
}

/// What the official tool takes by itself, without any server: the same command, by the same code of the SDK's.
fn own_work(args: &Args) -> anyhow::Result<()> {
    let Some(python) = there("VAQUERO_TEST_PYTHON") else { return Ok(()) };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/sdk/workers/own_work.py");
    let said = Command::new(python)
        .arg(script)
        .arg(args.count(200).to_string())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stderr(Stdio::inherit())
        .output()?;
    println!("{}", String::from_utf8_lossy(&said.stdout).trim());
    Ok(())
}
