//! `vaquero demo`: a first session through the public API, shown as it happens.

use super::{say, serve::runtime};
use crate::{
    config::{Config, LimitsChoice, Role, ServeArgs},
    server::Server,
};
use anyhow::{Context, bail};
use eventsource_stream::Eventsource;
use futures::StreamExt;
use serde_json::{Value, json};
use std::{io::IsTerminal, net::SocketAddr, process::ExitCode, time::Duration};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};
use vaquero_model::scripted::Scripted;
use vaquero_sandbox::{LimitsState, SandboxKey, SandboxSpec};

/// How long the demo's session may take.
const PATIENCE: Duration = Duration::from_secs(180);
const TASK: &str =
    "Write the first 20 Fibonacci numbers to fibonacci.txt, one per line, then show the file.";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Leave the server running when the session is over.
    #[arg(long)]
    keep: bool,
    /// The model to use when an Anthropic key is set.
    #[arg(long, env = "VAQUERO_DEMO_MODEL", default_value = "claude-haiku-4-5")]
    model: String,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    runtime()?.block_on(demo(args))
}

struct Paint {
    colour: bool,
}

impl Paint {
    fn line(&self, code: &str, label: &str, text: &str) {
        for (index, line) in text.lines().enumerate() {
            let label = if index == 0 { label } else { "" };
            if self.colour {
                say!("\x1b[{code}m{label:>10}\x1b[0m  {line}");
            } else {
                say!("{label:>10}  {line}");
            }
        }
    }
}

async fn demo(args: &Args) -> anyhow::Result<ExitCode> {
    let paint = Paint { colour: std::io::stdout().is_terminal() };
    let directory = tempfile::Builder::new().prefix("vaquero-demo-").tempdir()?;
    let mut config = Config::load(&ServeArgs::default())?;
    config.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    config.data_dir = directory.path().join("data");
    config.api_key = None;
    config.database_url = None;
    config.role = Role::All;
    config.sandbox_limits = LimitsChoice::Degraded;
    let mut background = JoinSet::new();
    let model = if config.anthropic_api_key.is_some() {
        paint.line("36", "model", &format!("{} at {}", args.model, config.anthropic_base_url));
        args.model.clone()
    } else {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        config.anthropic_base_url = format!("http://{}", listener.local_addr()?);
        config.anthropic_api_key = Some("scripted".to_owned());
        background.spawn(async {
            drop(Scripted::new().serve(listener).await);
        });
        paint.line("36", "model", "the built-in scripted stand-in: no language model thinks here.\nSet ANTHROPIC_API_KEY to see Claude do it.");
        "scripted".to_owned()
    };
    let server = Server::start(&config, false).await?;
    let compute = server.compute.as_ref().context("a server that runs turns has hands")?;
    let capabilities = compute.capabilities();
    if capabilities.limits == LimitsState::Degraded {
        paint.line("33", "limits", "there are no cgroups for this user: sandboxes are isolated, but their limits are weaker\n(--sandbox-limits=degraded). Run as root to have them enforced.");
    }
    let client = Client::new(&server)?;
    paint.line(
        "36",
        "server",
        &format!("{} with its data in {}", client.base, config.data_dir.display()),
    );
    let outcome = tokio::time::timeout(PATIENCE, session(&client, &model, &paint)).await;
    let shown = match outcome {
        Ok(Ok(session)) => show_file(&server, &session, &paint).await.map(|()| session),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(anyhow::anyhow!("the session did not end within {} s", PATIENCE.as_secs())),
    };
    let session = match shown {
        Ok(session) => session,
        Err(error) => {
            server.stop().await;
            return Err(error);
        }
    };
    say!("");
    how_to_go_on(&client, &session, args.keep);
    if args.keep {
        say!("The server keeps running until you press Ctrl-C.");
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
    server.stop().await;
    Ok(ExitCode::SUCCESS)
}

/// A client of the public API.
struct Client {
    http: reqwest::Client,
    base: String,
    key: String,
}

impl Client {
    fn new(server: &Server) -> anyhow::Result<Self> {
        let key = server.new_key.clone().context("a fresh server makes a key")?;
        vaquero_model::choose_crypto();
        let http = reqwest::Client::builder().no_proxy().build()?;
        Ok(Self { http, base: format!("http://{}", server.address), key })
    }

    fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        self.http
            .request(method, format!("{}{path}", self.base))
            .bearer_auth(&self.key)
            .header("anthropic-version", "2023-06-01")
            .header("anthropic-beta", "managed-agents-2026-04-01")
    }

    async fn post(&self, path: &str, body: Value) -> anyhow::Result<Value> {
        let response = self.request(reqwest::Method::POST, path).json(&body).send().await?;
        let status = response.status();
        let body: Value = response.json().await?;
        if !status.is_success() {
            bail!("POST {path} was answered with {status}: {}", body["error"]["message"]);
        }
        Ok(body)
    }
}

async fn session(client: &Client, model: &str, paint: &Paint) -> anyhow::Result<String> {
    let agent = client
        .post("/v1/agents", json!({ "name": "demo", "model": model, "tools": [{ "type": "agent_toolset_20260401" }] }))
        .await?;
    let environment = client
        .post("/v1/environments", json!({ "name": "demo", "config": { "type": "cloud" } }))
        .await?;
    let session = client
        .post("/v1/sessions", json!({ "agent": agent["id"], "environment_id": environment["id"], "title": "Vaquero demo" }))
        .await?;
    let id = session["id"].as_str().context("a session has an id")?.to_owned();
    paint.line("36", "session", &id);
    let stream = client
        .request(reqwest::Method::GET, &format!("/v1/sessions/{id}/events/stream"))
        .send()
        .await?
        .error_for_status()?;
    let message = json!({ "type": "user.message", "content": [{ "type": "text", "text": TASK }] });
    client.post(&format!("/v1/sessions/{id}/events"), json!({ "events": [message] })).await?;
    paint.line("1", "you", TASK);
    let mut events = stream.bytes_stream().eventsource();
    while let Some(event) = events.next().await {
        let event: Value = serde_json::from_str(&event?.data)?;
        if let Some(end) = show(&event, paint) {
            end?;
            return Ok(id);
        }
    }
    bail!("the stream ended before the session was idle")
}

/// Shows an event; the last one says how the turn ended.
fn show(event: &Value, paint: &Paint) -> Option<anyhow::Result<()>> {
    let texts = |content: &Value| {
        let blocks = content.as_array().into_iter().flatten();
        blocks.filter_map(|block| block["text"].as_str()).collect::<Vec<_>>().join("\n")
    };
    match event["type"].as_str().unwrap_or_default() {
        "agent.message" => paint.line("32", "agent", &texts(&event["content"])),
        "agent.tool_use" => {
            let input = event["input"]["command"]
                .as_str()
                .map_or_else(|| event["input"].to_string(), str::to_owned);
            paint.line("35", event["name"].as_str().unwrap_or("tool"), &input);
        }
        "agent.tool_result" => {
            let colour = if event["is_error"] == true { "31" } else { "90" };
            paint.line(colour, "result", &texts(&event["content"]));
        }
        "session.error" => {
            paint.line("31", "error", event["error"]["message"].as_str().unwrap_or("unknown"));
        }
        "session.status_idle" => {
            let reason = event["stop_reason"]["type"].as_str().unwrap_or_default();
            if reason == "end_turn" {
                paint.line("36", "idle", "the turn is over");
                return Some(Ok(()));
            }
            return Some(Err(anyhow::anyhow!(
                "the turn ended with `{reason}` instead of `end_turn`"
            )));
        }
        _ => {}
    }
    None
}

async fn show_file(server: &Server, session: &str, paint: &Paint) -> anyhow::Result<()> {
    let content = read_back(server, session)
        .await
        .context("fibonacci.txt cannot be read back from the sandbox")?;
    let numbers: Vec<&str> = content.split_whitespace().collect();
    paint.line("36", "file", &format!("/workspace/fibonacci.txt\n{}", numbers.join(" ")));
    if numbers.len() != 20 || numbers.last() != Some(&"4181") {
        bail!("fibonacci.txt does not hold the first 20 Fibonacci numbers");
    }
    Ok(())
}

async fn read_back(server: &Server, session: &str) -> anyhow::Result<String> {
    let key = SandboxKey::default_of(session);
    let far = u64::from(u32::MAX);
    let compute = server.compute.as_ref().context("a server that runs turns has hands")?;
    let spec = SandboxSpec::new(1, far, vaquero_sandbox::Limits::default());
    let sandbox = compute.attach(&key, &spec).await?.context("the sandbox is gone")?;
    let fence = vaquero_sandbox::Fence { epoch: far, generation: 1 };
    let bytes = sandbox.read_file("/workspace/fibonacci.txt", 64 << 10, fence).await?;
    Ok(String::from_utf8(bytes)?)
}

fn how_to_go_on(client: &Client, session: &str, kept: bool) {
    let (base, key) = if kept {
        (client.base.clone(), client.key.clone())
    } else {
        say!("That was all of it. Start a server of your own with:  vaquero serve");
        ("http://127.0.0.1:7777".to_owned(), "the key it prints".to_owned())
    };
    say!("Python SDK:      client = Anthropic(base_url=\"{base}\", api_key=\"{key}\")");
    say!("TypeScript SDK:  new Anthropic({{ baseURL: \"{base}\", apiKey: \"{key}\" }})");
    say!("Any SDK:         export ANTHROPIC_BASE_URL={base} ANTHROPIC_API_KEY=\"{key}\"");
    if kept {
        say!(
            "curl:            curl {base}/v1/sessions/{session}/events -H 'authorization: Bearer {key}'"
        );
    } else {
        say!("curl:            curl {base}/v1/agents -H 'authorization: Bearer …'");
    }
}
