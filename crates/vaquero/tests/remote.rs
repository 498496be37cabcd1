//! Machines that others run, behind a whole server: chosen by an environment, left for another provider, and gone under a session that runs. They are fakes, each held to its vendor's SDK
//! in `tests/fakes`.
#![cfg(feature = "all-sandboxes")]
#![expect(clippy::panic_in_result_fn, reason = "assertions are what a test is for")]

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use std::fs;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    process::Command,
};
use vaquero_testkit::{Client, Fake, Model, Server, eventually, of_type, text_of};

const EXE: &str = env!("CARGO_BIN_EXE_vaquero");
const ALL: [&str; 4] = ["e2b", "daytona", "kubernetes", "modal"];

struct Rig {
    server: Server,
    model: Model,
    fakes: Vec<(&'static str, Fake)>,
}

/// A server with the local provider and these; none where there cannot be fakes.
async fn rig(names: &[&'static str]) -> anyhow::Result<Option<Rig>> {
    let model = Model::start().await?;
    let mut server = Server::new(EXE, &model.base)?;
    server.set("VAQUERO_SANDBOX", &format!("local,{}", names.join(",")));
    let mut fakes = Vec::new();
    for name in names {
        let Some(fake) = Fake::start(name) else { return Ok(None) };
        fake.equip(&mut server)?;
        fakes.push((*name, fake));
    }
    Ok(Some(Rig { server, model, fakes }))
}

impl Rig {
    fn client(&self) -> &Client {
        self.server.client()
    }

    /// What the server has on record of a session's machine.
    fn machine(&self, provider: &str, session: &str) -> anyhow::Result<Value> {
        let machines = self.server.data().join("data").join(provider).join("machines");
        let text = fs::read(machines.join(format!("{session}.default")))?;
        Ok(serde_json::from_slice(&text)?)
    }

    /// What E2B itself says of it.
    async fn of_e2b(&self, method: &str, path: &str) -> anyhow::Result<String> {
        let (_, fake) =
            self.fakes.iter().find(|(name, _)| *name == "e2b").context("it is there")?;
        let mut command = Command::new("curl");
        command.args(["-sf", "-X", method, "-H", "X-API-KEY: e2b_test"]);
        let output = command.arg(format!("{}{path}", fake.base)).output().await?;
        ensure!(output.status.success(), "{method} {path}");
        Ok(String::from_utf8(output.stdout)?)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_moves_between_machines_of_others_by_configuration_alone() -> anyhow::Result<()> {
    let Some(mut rig) = rig(&ALL).await? else { return Ok(()) };
    rig.server.start().await?;
    let client = rig.client();
    let session = client.session_in(json!({ "type": "cloud" })).await?;
    let made = client
        .sh(&session, "mkdir d; echo local >d/f; head -c 3000000 /dev/urandom >big; sha256sum big")
        .await?;
    let shown = client.get(&format!("/v1/sessions/{session}")).await?;
    let path = format!("/v1/environments/{}", shown["environment_id"].as_str().context("an id")?);
    let mut said = "local\n".to_owned();
    for provider in ALL.into_iter().chain(["local"]) {
        let config = json!({ "type": "cloud", "provider": provider });
        client.post(&path, json!({ "config": config })).await?;
        let found =
            client.sh(&session, &format!("cat d/f; echo {provider} >>d/f; sha256sum big")).await?;
        assert_eq!(found, format!("{said}{made}"), "{provider}");
        said = format!("{said}{provider}\n");
        let sandbox = format!("/v1/sessions/{session}/sandbox");
        eventually("the provider is on record", || async {
            let shown = client.get(&sandbox).await.ok()?;
            (shown["data"][0]["provider"] == provider).then_some(())
        })
        .await?;
    }
    for provider in ALL {
        assert!(rig.machine(provider, &session).is_err(), "{provider} has none of its files");
    }
    assert_eq!(rig.model.scripted.violations(), Vec::<String>::new());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_outlives_its_server_and_is_replaced_when_it_is_gone() -> anyhow::Result<()> {
    let Some(mut rig) = rig(&["e2b"]).await? else { return Ok(()) };
    rig.server.start().await?;
    let session = rig.client().session_in(json!({ "type": "cloud", "provider": "e2b" })).await?;
    rig.client().sh(&session, "echo kept >kept; echo $$ >/tmp/shell").await?;
    let first = rig.machine("e2b", &session)?;
    rig.server.kill().await?;
    rig.server.start().await?;
    let look = "cat kept; kill -0 $(cat /tmp/shell) && echo alive";
    assert_eq!(rig.client().sh(&session, look).await?, "kept\nalive\n");
    assert_eq!(rig.machine("e2b", &session)?["machine"], first["machine"]);

    rig.client().sh(&session, "echo more >>kept").await?;
    rig.client().say(&session, "!bash touch /tmp/began; sleep 600\n!next\n!say over").await?;
    let id = first["machine"].as_str().context("an id")?.to_owned();
    eventually("the command runs", || async {
        let shown = rig.client().events(&session).await.ok()?;
        (of_type(&shown, "agent.tool_use").len() == 4).then_some(())
    })
    .await?;
    rig.of_e2b("DELETE", &format!("/sandboxes/{id}")).await?;
    let events = rig.client().idle(&session).await?;
    let last = of_type(&events, "agent.tool_result").pop().map(text_of).context("a result")?;
    assert!(last.contains("sandbox ended"), "{last}");
    let found = rig.client().sh(&session, "cat kept; ls /tmp/shell").await?;
    assert!(found.contains("kept\nmore\n") && found.contains("No such file"), "{found}");
    assert_ne!(rig.machine("e2b", &session)?["machine"], first["machine"]);

    rig.client().delete(&format!("/v1/sessions/{session}")).await?;
    eventually("nothing is left at E2B", || async {
        (rig.of_e2b("GET", "/v2/sandboxes").await.ok()? == "[]").then_some(())
    })
    .await?;
    assert_eq!(rig.model.scripted.violations(), Vec::<String>::new());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_machine_reaches_is_decided_by_the_server() -> anyhow::Result<()> {
    let Some(mut rig) = rig(&ALL).await? else { return Ok(()) };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    tokio_util::task::TaskTracker::new().spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            if stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                let answer =
                    b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\nconnection: close\r\n\r\nhello\n";
                drop(stream.write_all(answer).await);
            }
        }
    });
    rig.server.set("VAQUERO_TEST_HOSTS", "allowed.test=127.0.0.1,other.test=127.0.0.1");
    rig.server.set("VAQUERO_EGRESS_ALLOW_PRIVATE", "127.0.0.1");
    rig.server.start().await?;
    for provider in ALL {
        let networking = json!({ "type": "limited", "allowed_hosts": ["allowed.test"] });
        let config = json!({ "type": "cloud", "provider": provider, "networking": networking });
        let session = rig.client().session_in(config).await?;
        let asked = format!(
            "curl -sS http://allowed.test:{port}; curl -sS -o /dev/null -w '%{{http_code}}\\n' http://other.test:{port}; curl -sS --noproxy '*' -m 5 http://127.0.0.1:{port} || echo none"
        );
        let found = rig.client().sh(&session, &asked).await?;
        assert!(
            found.starts_with("hello\n403\n") && found.ends_with("none\n"),
            "{provider}: {found}"
        );
        let sandbox = format!("/v1/sessions/{session}/sandbox");
        eventually("it is counted", || async {
            let shown = rig.client().get(&sandbox).await.ok()?;
            (shown["data"][0]["network"]["connections"].as_u64()? >= 1).then_some(())
        })
        .await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_says_which_images_may_be_named() -> anyhow::Result<()> {
    let Some(mut rig) = rig(&["e2b"]).await? else { return Ok(()) };
    rig.server.set("VAQUERO_SANDBOX_IMAGES", "mark*,python:*");
    rig.server.start().await?;
    let named = |image: &str| json!({ "type": "cloud", "provider": "e2b", "image": image });
    let session = rig.client().session_in(named("marked")).await?;
    assert_eq!(rig.client().sh(&session, "cat /etc/image-mark").await?, "marked\n");
    let refused = rig.client().session_in(named("base")).await.err().context("refused")?;
    assert!(refused.to_string().contains("--sandbox-images"), "{refused}");
    // Also of an environment that has changed since.
    let other = rig.client().session_in(named("marked")).await?;
    let shown = rig.client().get(&format!("/v1/sessions/{other}")).await?;
    let path = format!("/v1/environments/{}", shown["environment_id"].as_str().context("an id")?);
    rig.client().post(&path, json!({ "config": named("base") })).await?;
    let said = rig.client().sh(&other, "echo in vain").await?;
    assert!(said.contains("--sandbox-images"), "{said}");
    Ok(())
}

/// What the last call of a turn came to.
async fn call(client: &Client, session: &str, tool: &str, command: &str) -> anyhow::Result<String> {
    let input = json!({ "command": command });
    client.say(session, &format!("!tool {tool} {input}\n!next\n!say done")).await?;
    let events = client.idle(session).await?;
    of_type(&events, "agent.tool_result").pop().map(text_of).context("a result")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_has_several_sandboxes_of_several_providers() -> anyhow::Result<()> {
    let Some(mut rig) = rig(&["e2b", "modal"]).await? else { return Ok(()) };
    rig.server.start().await?;
    let client = rig.client();
    let config = json!({ "type": "cloud", "sandboxes": [
        { "name": "cloud", "provider": "e2b", "image": "marked", "description": "For builds." },
        { "name": "twin" },
    ] });
    let session = client.session_in(config).await?;
    for (tool, name) in [("bash", "default"), ("execute_cloud", "cloud"), ("execute_twin", "twin")]
    {
        let make = format!("echo {name} >mine; export PLACE={name}; ls");
        assert_eq!(call(client, &session, tool, &make).await?, "mine\n", "{tool}");
    }
    let look = "echo $PLACE; cat mine; cat /etc/image-mark 2>/dev/null; true";
    assert_eq!(call(client, &session, "bash", look).await?, "default\ndefault\n");
    assert_eq!(call(client, &session, "execute_cloud", look).await?, "cloud\ncloud\nmarked\n");
    assert_eq!(call(client, &session, "execute_twin", look).await?, "twin\ntwin\n");
    let sandboxes = format!("/v1/sessions/{session}/sandbox");
    let names = eventually("all are on record", || async {
        let shown = client.get(&sandboxes).await.ok()?;
        let one = |it: &Value| format!("{} {}", it["name"], it["provider"]).replace('"', "");
        let mut all: Vec<String> = shown["data"].as_array()?.iter().map(one).collect();
        all.sort();
        (all.len() == 3).then_some(all)
    })
    .await?;
    assert_eq!(names, ["cloud e2b", "default local", "twin local"]);

    // One of them ends: the others go on as they were, and its files are where they were.
    let machines = rig.server.data().join("data/e2b/machines");
    let record = fs::read(machines.join(format!("{session}-cloud.default")))?;
    let id =
        serde_json::from_slice::<Value>(&record)?["machine"].as_str().context("an id")?.to_owned();
    rig.of_e2b("DELETE", &format!("/sandboxes/{id}")).await?;
    let client = rig.client();
    let gone = call(client, &session, "execute_cloud", look).await?;
    assert!(gone.contains("sandbox ended") || gone.contains("cloud\n"), "{gone}");
    let again = call(client, &session, "execute_cloud", look).await?;
    assert!(again.ends_with("cloud\nmarked\n"), "{again}");
    assert_eq!(call(client, &session, "bash", look).await?, "default\ndefault\n");

    // Unknown ones are no tool of the agent's.
    let unknown = call(client, &session, "execute_other", "true").await?;
    assert!(unknown.contains("execute_other"), "{unknown}");
    client.delete(&format!("/v1/sessions/{session}")).await?;
    eventually("nothing is left of any", || async {
        let at_e2b = rig.of_e2b("GET", "/v2/sandboxes").await.ok()? == "[]";
        let here = fs::read_dir(rig.server.data().join("data/workspaces")).ok()?;
        let names = here.flatten().map(|it| it.file_name().to_string_lossy().into_owned());
        (at_e2b && !names.collect::<Vec<_>>().iter().any(|name| name.starts_with(&session)))
            .then_some(())
    })
    .await?;
    assert_eq!(rig.model.scripted.violations(), Vec::<String>::new());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_a_sandbox_is_refused() -> anyhow::Result<()> {
    let Some(mut rig) = rig(&["e2b"]).await? else { return Ok(()) };
    rig.server.start().await?;
    for (sandboxes, says) in [
        (json!([{ "name": "default" }]), "which every session has"),
        (json!([{ "name": "With Spaces" }]), "small letters"),
        (json!([{ "name": "a" }, { "name": "a" }]), "two are called `a`"),
        (json!([{ "name": "a", "colour": "red" }]), "colour"),
        (json!([{ "name": "a", "provider": "docker" }]), "this server has local, e2b"),
        (json!([{ "name": "a", "image": "debian" }]), "not made of images"),
    ] {
        let config = json!({ "type": "cloud", "sandboxes": sandboxes });
        let refused = rig.client().session_in(config).await.err().context("refused")?.to_string();
        assert!(refused.contains("400") && refused.contains(says), "{refused}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_is_paused_until_it_is_resumed_or_called() -> anyhow::Result<()> {
    let Some(mut rig) = rig(&["e2b"]).await? else { return Ok(()) };
    rig.server.start().await?;
    let client = rig.client();
    let act = async |word: &str, session: &str| -> anyhow::Result<String> {
        let data = rig.server.data().join("data");
        let mut command = Command::new(EXE);
        command.args(["sandbox", word, session, "--data-dir"]).arg(data);
        Ok(String::from_utf8(command.current_dir(rig.server.data()).output().await?.stderr)?)
    };
    let session = client.session_in(json!({ "type": "cloud", "provider": "e2b" })).await?;
    assert_eq!(client.sh(&session, "x=kept; echo $x").await?, "kept\n");
    let path = format!("/v1/sessions/{session}/sandbox");
    eventually("it is on record", || async {
        (client.get(&path).await.ok()?["data"][0]["state"] == "running").then_some(())
    })
    .await?;
    let is_paused = async || -> anyhow::Result<bool> {
        Ok(rig.of_e2b("GET", "/v2/sandboxes?state=paused").await?.contains("paused"))
    };
    for _ in 0..2 {
        assert_eq!(act("pause", &session).await?, "");
        assert_eq!(client.get(&path).await?["data"][0]["state"], "paused");
        assert!(is_paused().await?);
        assert_eq!(act("resume", &session).await?, "");
        assert_eq!(client.get(&path).await?["data"][0]["state"], "running");
        assert!(!is_paused().await?);
    }
    assert_eq!(act("resume", &session).await?, "", "it runs already");
    assert_eq!(act("pause", &session).await?, "");
    assert_eq!(client.sh(&session, "echo $x").await?, "kept\n");
    eventually("it runs again", || async {
        (client.get(&path).await.ok()?["data"][0]["state"] == "running").then_some(())
    })
    .await?;
    let local = client.session_in(json!({ "type": "cloud" })).await?;
    client.sh(&local, "echo something").await?;
    let refused = act("pause", &local).await?;
    assert!(refused.contains("`local` cannot be paused"), "{refused}");
    for word in ["pause", "resume", "stop"] {
        assert!(act(word, "sesn_none").await?.contains("no such sandbox runs"), "there is none");
    }
    Ok(())
}
