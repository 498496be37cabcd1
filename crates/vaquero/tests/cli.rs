//! The command line as scripts use it: what each command prints, where settings come from, and what a wrong one is told.

#![expect(clippy::panic_in_result_fn, reason = "assertions are what a test is for")]

use std::{
    path::Path,
    process::{Command, Output},
};
use vaquero_testkit::{KEY, Model, Server};

const EXE: &str = env!("CARGO_BIN_EXE_vaquero");

/// Runs a command in an empty environment.
fn run(directory: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    Command::new(EXE)
        .args(arguments)
        .current_dir(directory)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .envs(variables.iter().copied())
        .output()
        .expect("the command starts")
}

fn said(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// Arguments, variables, and what must be said.
type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a str);

#[test]
fn a_wrong_setting_is_named_with_its_source() {
    let place = tempfile::tempdir().expect("a directory");
    std::fs::write(place.path().join("bad.toml"), "turns = \"x\"\n").expect("written");
    let wrong: [Case<'_>; 15] = [
        (
            &["serve", "--listen", "nowhere"],
            &[],
            "listen: `nowhere` is no address; write HOST:PORT, such as 127.0.0.1:7777 — from command line",
        ),
        (
            &["serve"],
            &[("VAQUERO_TURNS", "many")],
            "turns: expected a whole number, found string \"many\" — from variable VAQUERO_TURNS",
        ),
        (
            &["serve"],
            &[("VAQUERO_TURNS", "0")],
            "turns: must be at least 1 — from variable VAQUERO_TURNS",
        ),
        (&["serve"], &[("VAQUERO_TRUNS", "3")], "truns: there is no such setting"),
        (
            &["serve", "--config", "bad.toml"],
            &[],
            "turns: expected a whole number, found string \"x\" — from TOML file",
        ),
        (
            &["serve", "--config", "none.toml"],
            &[],
            "the configuration file none.toml does not exist",
        ),
        (&["serve", "--sandbox", "moon"], &[], "sandbox:"),
        (&["serve", "--rate-limits", "some"], &[], "rate_limits: `some` is not a preset"),
        (
            &["serve", "--database-url", "mysql://x/y"],
            &[],
            "the database URL cannot be used: it must begin with postgres://",
        ),
        (
            &["serve"],
            &[("VAQUERO_DATABASE_URL", "postgres://u:secret@127.0.0.1:1/d")],
            "the database 127.0.0.1:1/d cannot be reached",
        ),
        (&["serve", "--role", "api"], &[], "role: only servers that share a database"),
        (&["serve", "--role", "queen"], &[], "role:"),
        (&["serve", "--node", "a b"], &[], "node: must be 1 to 64 characters"),
        (&["serve"], &[("VAQUERO_ANTHROPIC_API_KEY", "vq_mine")], "one of this server's own"),
        (&["serve"], &[("VAQUERO_API_KEY", "short")], "VAQUERO_API_KEY cannot be used"),
    ];
    for (arguments, variables, expected) in wrong {
        let output = run(place.path(), arguments, variables);
        let (out, err) = said(&output);
        assert!(
            !output.status.success() && err.contains(expected),
            "{arguments:?} {variables:?}: {out}{err}"
        );
    }
}

#[test]
fn doctor_reads_the_same_settings_and_reports() {
    let place = tempfile::tempdir().expect("a directory");
    std::fs::write(place.path().join("vaquero.toml"), "listen = \"127.0.0.1:0\"\n")
        .expect("written");
    let variables = [
        ("VAQUERO_API_KEY", "12345678901234567890"),
        ("VAQUERO_PORT", "tcp://10.0.0.1:7777"),
        ("VAQUERO_ANTHROPIC_API_KEY", "007"),
    ];
    let output = run(place.path(), &["doctor"], &variables);
    let (out, err) = said(&output);
    assert!(out.contains("settings: read without errors"), "{out}{err}");
    assert!(out.contains("127.0.0.1:0") && out.contains("sandbox, "), "{out}{err}");

    let nowhere = [("VAQUERO_SANDBOX", "docker"), ("VAQUERO_DOCKER_HOST", "unix:///none.sock")];
    let output = run(place.path(), &["doctor"], &nowhere);
    let (out, err) = said(&output);
    assert!(!output.status.success() && out.contains(" missing  sandbox, docker: "), "{out}{err}");
    assert!(!out.contains("sandbox, user"), "of the local one nothing is wanted: {out}");
}

#[test]
fn the_demo_runs_to_its_end() {
    let place = tempfile::tempdir().expect("a directory");
    let output = run(place.path(), &["demo"], &[]);
    let (out, err) = said(&output);
    assert!(output.status.success(), "{out}{err}");
    assert!(
        out.contains("scripted stand-in")
            && out.contains("4181")
            && out.contains("/workspace/fibonacci.txt"),
        "{out}"
    );
    assert!(out.contains("base_url=") && out.contains("curl"), "how to go on: {out}");
    assert!(!out.contains('\u{1b}'), "no colours where nobody sees them");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_made_listed_and_revoked_with_a_server_and_without() -> anyhow::Result<()> {
    let place = tempfile::tempdir()?;
    let key = |arguments: &[&str], data: &Path| {
        let mut all = vec!["key"];
        all.extend(arguments);
        all.extend(["--data-dir", data.to_str().unwrap_or_default()]);
        said(&run(place.path(), &all, &[])).0
    };
    let alone = place.path().join("alone");
    let made = key(&["create", "--workspace", "team"], &alone);
    assert!(made.starts_with("vq_") && made.lines().count() == 1, "{made}");
    let listed = key(&["list"], &alone);
    assert!(listed.contains("wrkspc_team") && !listed.contains(made.trim()), "{listed}");

    let model = Model::start().await?;
    let mut server = Server::new(EXE, &model.base)?;
    server.start().await?;
    let data = server.data().join("data");
    let made = key(&["create", "--workspace", "other"], &data);
    let ask = |key: String| {
        let base = server.client().base.clone();
        async move {
            let http = reqwest::Client::builder().no_proxy().build()?;
            let response =
                http.get(format!("{base}/v1/agents")).header("x-api-key", key).send().await?;
            anyhow::Ok((
                response.status().as_u16(),
                response.headers().get("anthropic-workspace-id").cloned(),
            ))
        }
    };
    let (status, workspace) = ask(made.trim().to_owned()).await?;
    assert_eq!(
        (status, workspace.as_ref().and_then(|name| name.to_str().ok())),
        (200, Some("wrkspc_other"))
    );
    let listed = key(&["list"], &data);
    let id = listed
        .lines()
        .find(|line| line.contains("wrkspc_other"))
        .and_then(|line| line.split_whitespace().next());
    key(&["revoke", id.unwrap_or_default()], &data);
    assert_eq!(ask(made.trim().to_owned()).await?.0, 401, "from the next request on");
    assert_eq!(ask(KEY.to_owned()).await?.0, 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_upstream_a_turn_says_what_to_set() -> anyhow::Result<()> {
    let model = Model::start().await?;
    let mut server = Server::new(EXE, &model.base)?;
    server.set("VAQUERO_ANTHROPIC_API_KEY", "");
    server.set("ANTHROPIC_BASE_URL", "http://127.0.0.1:9");
    server.start().await?;
    let client = server.client();
    let session = client.session(serde_json::json!([])).await?;
    client.say(&session, "hello").await?;
    let events = client.idle(&session).await?;
    let error = events.iter().find(|event| event["type"] == "session.error").expect("an error");
    let message = error["error"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("VAQUERO_ANTHROPIC_API_KEY"), "{error}");
    assert_eq!(error["error"]["retry_status"]["type"], "exhausted");
    let http = reqwest::Client::builder().no_proxy().build()?;
    let made_up = reqwest::Method::from_bytes(b"FROBNICATE")?;
    http.request(made_up, format!("{}/v1/agents", client.base)).send().await?;
    for path in ["/health", "/openapi.json", "/metrics"] {
        let response = http.get(format!("{}{path}", client.base)).send().await?;
        assert_eq!(response.status(), 200, "{path} needs no key");
        let text = response.text().await?;
        if path == "/metrics" {
            let counted = r#"vaquero_http_requests_total{method="POST",route="/v1/sessions/{session_id}/events",status="200"} 1"#;
            assert!(text.contains(counted), "{text}");
            assert!(!text.contains("FROBNICATE"), "a client cannot make labels");
        }
    }
    Ok(())
}

#[test]
fn the_help_of_the_stand_in_names_every_word_of_its_scripts() -> anyhow::Result<()> {
    let output = Command::new(EXE).args(["scripted-model", "--help"]).output()?;
    let help = String::from_utf8(output.stdout)?;
    let source = std::fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/src/scripted/script.rs"),
    )?;
    let words: Vec<&str> = source
        .lines()
        .filter_map(|line| line.trim().strip_prefix('"')?.split_once("\" =>"))
        .map(|(word, _)| word)
        .filter(|word| word.starts_with('!'))
        .collect();
    assert!(words.len() > 8, "{words:?}");
    for word in words {
        assert!(help.contains(word), "{word} is not in the help:\n{help}");
    }
    Ok(())
}
