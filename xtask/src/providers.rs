//! The table of what each provider of sandboxes can and cannot: made of what the suites found, and held to it.

use crate::{root, tally::Tally, target};
use anyhow::{Context, bail};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// In the order of the table's columns.
const PROVIDERS: [&str; 7] = ["local", "docker", "gvisor", "e2b", "modal", "daytona", "kubernetes"];
/// Their walls are others'.
const ELSEWHERE: [&str; 4] = ["e2b", "modal", "daytona", "kubernetes"];
const BEGIN: &str = "<!-- what the suites found: begin -->\n";
const END: &str = "<!-- what the suites found: end -->";

/// Where suites leave what they found.
pub(crate) fn announce(command: &mut Command) -> anyhow::Result<()> {
    let dir = dir();
    drop(fs::remove_dir_all(&dir));
    fs::create_dir_all(&dir)?;
    command.env("VAQUERO_TEST_FINDINGS", dir);
    Ok(())
}

fn dir() -> PathBuf {
    target().join("findings")
}

fn document() -> PathBuf {
    root().join("docs/providers.md")
}

/// Whether the documentation says what was found.
pub(crate) fn check(tally: &mut Tally) -> anyhow::Result<()> {
    let what = "docs/providers.md says what the suites found";
    match table(&dir())? {
        Some(table) => {
            let holds = fs::read_to_string(document())?.contains(&table);
            tally.check(&format!("{what} (`cargo xtask providers` writes it anew)"), holds);
        }
        None => tally.leave_out(format!("{what}: not every provider could be tried here")),
    }
    Ok(())
}

/// Writes what the last run of the suites found.
pub(crate) fn write() -> anyhow::Result<bool> {
    let Some(table) = table(&dir())? else {
        bail!("not every provider was tried: run `cargo xtask test` first, as root");
    };
    let text = fs::read_to_string(document())?;
    let (before, rest) = text.split_once(BEGIN).context("docs/providers.md has no table")?;
    let (_, after) = rest.split_once(END).context("the table has no end")?;
    fs::write(document(), format!("{before}{BEGIN}{table}{END}{after}"))?;
    Ok(true)
}

fn table(dir: &Path) -> anyhow::Result<Option<String>> {
    let mut found: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    let mut attacks = Vec::new();
    for provider in PROVIDERS {
        let read = |name: String| fs::read_to_string(dir.join(name)).ok();
        let Some(findings) = read(format!("{provider}.json")) else { return Ok(None) };
        found.insert(provider, serde_json::from_str(&findings)?);
        attacks.push(match read(format!("{provider}.attacks.json")) {
            Some(tried) => {
                let [tried, failed]: [u64; 2] = serde_json::from_str(&tried)?;
                format!("{failed} of {tried}")
            }
            // Nobody's walls but those of the fakes could be tried.
            None if ELSEWHERE.contains(&provider) => "none tried".to_owned(),
            None => return Ok(None),
        });
    }
    let mut text = format!("| | {} |\n|---|", PROVIDERS.join(" | "));
    text.push_str(&"---|".repeat(PROVIDERS.len()));
    text.push('\n');
    for (index, demand) in found["local"].iter().enumerate() {
        let name = demand["demand"].as_str().context("a demand has a name")?;
        let cells = PROVIDERS.map(|provider| {
            let outcome = found[provider].get(index).map(|finding| &finding["outcome"]);
            match outcome {
                Some(Value::String(held)) if held == "holds" => "yes",
                Some(other) if other.get("refused").is_some() => "refused",
                _ => "**no**",
            }
        });
        writeln!(text, "| {name} | {} |", cells.join(" | "))?;
    }
    writeln!(text, "| Attacks that fail, of those tried | {} |", attacks.join(" | "))?;
    Ok(Some(text))
}
