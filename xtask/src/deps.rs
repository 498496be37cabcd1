//! Which crate may depend on which. The arrows are the architecture; this is where they are held.

use anyhow::{Context, bail};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Crate, and the crates of this workspace it may name (development apart).
const ALLOWED: &[(&str, &[&str])] = &[
    ("vaquero-types", &[]),
    ("vaquero-core", &["vaquero-types"]),
    ("vaquero-store", &["vaquero-types"]),
    ("vaquero-model", &["vaquero-types"]),
    ("vaquero-hand", &[]),
    ("vaquero-sandbox", &["vaquero-hand", "vaquero-types"]),
    ("vaquero-sandbox-daytona", &["vaquero-sandbox"]),
    ("vaquero-sandbox-docker", &["vaquero-sandbox"]),
    ("vaquero-sandbox-e2b", &["vaquero-sandbox"]),
    ("vaquero-sandbox-kubernetes", &["vaquero-sandbox", "vaquero-types"]),
    ("vaquero-sandbox-modal", &["vaquero-sandbox"]),
    ("vaquero-sandbox-plugin", &["vaquero-sandbox"]),
    ("vaquero-store-sqlite", &["vaquero-store", "vaquero-types"]),
    ("vaquero-store-postgres", &["vaquero-store", "vaquero-types"]),
    (
        "vaquero-worker",
        &[
            "vaquero-blob",
            "vaquero-core",
            "vaquero-model",
            "vaquero-sandbox",
            "vaquero-store",
            "vaquero-types",
            "vaquero-vault",
        ],
    ),
    ("vaquero-blob", &[]),
    ("vaquero-egress", &["vaquero-types"]),
    (
        "vaquero-api",
        &["vaquero-core", "vaquero-model", "vaquero-store", "vaquero-types", "vaquero-vault"],
    ),
    ("vaquero-vault", &["vaquero-store", "vaquero-types"]),
    ("vaquero-testkit", &["vaquero-egress", "vaquero-model", "vaquero-sandbox", "vaquero-types"]),
    ("xtask", &[]),
];

/// Crates that decide or describe, and so must not reach the world.
const PURE: [&str; 2] = ["vaquero-types", "vaquero-core"];
const WORLDLY: [&str; 6] = ["tokio", "tokio-postgres", "reqwest", "rusqlite", "axum", "hyper"];

pub(crate) fn check() -> anyhow::Result<()> {
    let output = crate::cargo(&["metadata", "--format-version", "1", "--no-deps"]).output();
    let output = output.context("cargo metadata cannot be started")?;
    let metadata: Value =
        serde_json::from_slice(&output.stdout).context("cargo metadata is no JSON")?;
    let allowed: BTreeMap<&str, BTreeSet<&str>> =
        ALLOWED.iter().map(|(name, list)| (*name, list.iter().copied().collect())).collect();
    let mut wrong = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let other = dependency["name"].as_str().unwrap_or_default();
            if dependency["kind"] == "dev" {
                continue;
            }
            if PURE.contains(&name) && WORLDLY.contains(&other) {
                wrong.push(format!("{name} is pure and must not depend on {other}"));
            }
            let ours = other.starts_with("vaquero-");
            let permitted = allowed.get(name).is_none_or(|list| list.contains(other));
            if ours && !permitted {
                wrong.push(format!("{name} must not depend on {other}"));
            }
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("{}", wrong.join("; "))
}
