//! Which hosts package managers load from: what the operator names, or else what the managers on this machine are set up for. There is no list of registries in here.

use futures::{FutureExt, future::join_all};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};
use tokio::{process::Command, time::timeout};
use vaquero_egress::{Host, HostRule};
use vaquero_worker::Registries;

/// How long a manager may take to say what it is set up for.
const PATIENCE: Duration = Duration::from_secs(20);
/// Programs, and what makes them say which URLs they load from.
const ASKED: [(&str, &[&str]); 5] = [
    ("pip", &["config", "list"]),
    // What it uses where nothing is set: an index, and where the index's files are.
    (
        "python3",
        &[
            "-c",
            "from pip._internal.models.index import PyPI as p; print(p.simple_url, 'https://' + p.file_storage_domain)",
        ],
    ),
    ("npm", &["config", "get", "registry"]),
    ("gem", &["sources", "--list"]),
    ("go", &["env", "GOPROXY"]),
];
const VARIABLES: [&str; 5] = [
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "NPM_CONFIG_REGISTRY",
    "npm_config_registry",
    "GOPROXY",
];

/// Those that are named, or else what is found out when somebody first wants to know.
pub(crate) fn registries(named: Option<String>) -> Registries {
    async move {
        let hosts = match named {
            Some(named) => named.split(',').map(|host| host.trim().to_owned()).collect(),
            None => found().await,
        };
        Arc::from(hosts)
    }
    .boxed()
    .shared()
}

/// Checks the operator's list.
pub(crate) fn check(named: &str) -> Result<(), String> {
    let wrong = named.split(',').find(|host| HostRule::parse(host.trim()).is_none());
    wrong.map_or(Ok(()), |wrong| Err(format!("`{wrong}` is neither a host nor *. and a domain")))
}

async fn found() -> Vec<String> {
    let mut text = String::new();
    for said in join_all(ASKED.map(|(program, arguments)| ask(program, arguments))).await {
        text.push_str(&said);
    }
    for name in VARIABLES {
        text.push_str(&std::env::var(name).unwrap_or_default());
        text.push('\n');
    }
    let files = tokio::task::spawn_blocking(settings).await;
    text.push_str(&files.unwrap_or_default());
    let hosts = hosts(&text);
    tracing::debug!(?hosts, "package managers load from these hosts");
    hosts.into_iter().collect()
}

async fn ask(program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    // A manager that is not here has nothing to say.
    match timeout(PATIENCE, command.output()).await {
        Ok(Ok(output)) => format!("{}\n", String::from_utf8_lossy(&output.stdout)),
        Ok(Err(_)) | Err(_) => String::new(),
    }
}

/// What is written down in files: apt's sources, and where cargo has loaded from.
fn settings() -> String {
    let mut text = String::new();
    let apt = Path::new("/etc/apt");
    let mut files = vec![apt.join("sources.list")];
    files.extend(entries(&apt.join("sources.list.d")));
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let cargo = std::env::var_os("CARGO_HOME").map_or_else(|| home.join(".cargo"), PathBuf::from);
    files.push(cargo.join("config.toml"));
    for index in entries(&cargo.join("registry/index")) {
        // Named for its host, and a hash behind it.
        let name = index.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some((host, _)) = name.rsplit_once('-') {
            text.push_str(&format!("https://{host}\n"));
        }
        files.push(index.join("config.json"));
    }
    for file in files {
        let read = std::fs::read_to_string(file).unwrap_or_default();
        let said = read.lines().filter(|line| !line.trim_start().starts_with('#'));
        said.for_each(|line| text.push_str(&format!("{line}\n")));
    }
    text
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(found) = std::fs::read_dir(folder) else { return Vec::new() };
    found.flatten().map(|entry| entry.path()).collect()
}

/// The hosts of all URLs in a text.
fn hosts(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices("://") {
        let rest = &text[at + 3..];
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || "-._:@%[]".contains(c)));
        let authority = &rest[..end.unwrap_or(rest.len())];
        // A name and a password before the host are none of it.
        let host = authority.rsplit('@').next().unwrap_or_default();
        if let Some((host @ Host::Name(_), _)) = Host::parse_authority(host, Some(443)) {
            found.insert(host.to_string());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_found_in_any_text() {
        let text = "global.index-url='https://user:pass@packages.example:8443/simple'\n\
            deb [signed-by=/x] http://Mirror.Example/debian stable main\n\
            { \"dl\": \"https://static.example/crates\" } https://proxy.example,direct http://127.0.0.1:80/ ://\n";
        let found: Vec<String> = hosts(text).into_iter().collect();
        assert_eq!(
            found,
            ["mirror.example", "packages.example", "proxy.example", "static.example"]
        );
    }

    #[test]
    fn the_operators_list_is_checked() {
        assert_eq!(check("a.example, *.b.example"), Ok(()));
        assert!(
            check("a.example,https://b.example")
                .is_err_and(|said| said.contains("https://b.example"))
        );
    }
}
