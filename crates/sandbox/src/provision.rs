//! What is done to install what an environment asks for: one step after the other, each a program with its arguments. Names are never put through a shell.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;
use vaquero_hand::{EXEC, NO_SUCH_PROGRAM};

use crate::error::SandboxError;
use crate::seam::{Block, Fence, Provision, Sandbox};

/// How long all steps together may take.
const PATIENCE: Duration = Duration::from_mins(30);
/// Where managers keep what they need only while they install, below the working directory.
pub(crate) const SCRATCH: &str = ".installing";
/// How much of what a program said at its end is passed on, in characters.
const SAID: usize = 2_000;

/// A manager that is to install something.
struct Manager<'a> {
    name: &'static str,
    /// The program that has to be there, and the Debian packages that bring it.
    program: &'static str,
    brought_by: &'static [&'static str],
    packages: &'a [String],
    steps: fn(&[String]) -> Vec<Vec<String>>,
}

fn argv(program: &[&str], packages: &[String]) -> Vec<String> {
    program.iter().map(|&word| word.to_owned()).chain(packages.iter().cloned()).collect()
}

/// What managers are told by variables. `scratch` is where they may keep things.
fn variables(scratch: &str) -> BTreeMap<&'static str, String> {
    let within = |name: &str| format!("{scratch}/{name}");
    BTreeMap::from([
        ("HOME", scratch.to_owned()),
        ("DEBIAN_FRONTEND", "noninteractive".to_owned()),
        ("CARGO_HOME", within("cargo")),
        ("CARGO_TARGET_DIR", within("cargo-target")),
        ("GOPATH", within("go")),
        ("GOCACHE", within("go-cache")),
        ("GOBIN", "/usr/local/bin".to_owned()),
        ("PIP_BREAK_SYSTEM_PACKAGES", "1".to_owned()),
        ("PIP_ROOT_USER_ACTION", "ignore".to_owned()),
        ("PIP_DISABLE_PIP_VERSION_CHECK", "1".to_owned()),
    ])
}

const APT_UPDATE: [&str; 2] = ["apt-get", "update"];
const APT_INSTALL: [&str; 5] = ["apt-get", "install", "--yes", "--no-install-recommends", "--"];

/// In the order in which they install.
fn managers(provision: &Provision) -> [Manager<'_>; 6] {
    let packages = &provision.packages;
    [
        Manager {
            name: "apt",
            program: "apt-get",
            brought_by: &[],
            packages: &packages.apt,
            steps: |packages| vec![argv(&APT_UPDATE, &[]), argv(&APT_INSTALL, packages)],
        },
        Manager {
            name: "cargo",
            program: "cargo",
            brought_by: &["cargo"],
            packages: &packages.cargo,
            steps: |packages| {
                vec![argv(&["cargo", "install", "--root", "/usr/local", "--"], packages)]
            },
        },
        Manager {
            name: "gem",
            program: "gem",
            brought_by: &["ruby", "ruby-dev", "build-essential"],
            packages: &packages.gem,
            steps: |packages| vec![argv(&["gem", "install", "--no-document"], packages)],
        },
        Manager {
            name: "go",
            program: "go",
            brought_by: &["golang-go"],
            packages: &packages.go,
            // A program without a version is the newest.
            steps: |packages| {
                let newest = |package: &String| {
                    if package.contains('@') {
                        package.clone()
                    } else {
                        format!("{package}@latest")
                    }
                };
                packages
                    .iter()
                    .map(|package| argv(&["go", "install"], &[newest(package)]))
                    .collect()
            },
        },
        Manager {
            name: "npm",
            program: "npm",
            brought_by: &["npm"],
            packages: &packages.npm,
            steps: |packages| {
                let quietly = [
                    "npm",
                    "install",
                    "--global",
                    "--prefix",
                    "/usr/local",
                    "--no-fund",
                    "--no-audit",
                    "--",
                ];
                vec![argv(&quietly, packages)]
            },
        },
        Manager {
            name: "pip",
            program: "pip3",
            brought_by: &["python3-pip"],
            packages: &packages.pip,
            steps: |packages| {
                vec![argv(&["python3", "-m", "pip", "install", "--no-input", "--"], packages)]
            },
        },
    ]
}

/// Installs everything in a sandbox that may write where packages go.
pub(crate) async fn install(
    sandbox: &dyn Sandbox,
    fence: Fence,
    provision: &Provision,
    workdir: &str,
) -> Result<(), SandboxError> {
    let scratch = format!("{workdir}/{SCRATCH}");
    let until = Instant::now() + PATIENCE;
    let mut run = Run { sandbox, fence, variables: variables(&scratch), count: 0, until };
    let mut listed = false;
    run.surely("setup", &argv(&["mkdir", "-p", &scratch], &[])).await?;
    for manager in managers(provision) {
        let Manager { name, program, brought_by, packages, steps } = manager;
        if packages.is_empty() {
            continue;
        }
        if run.misses(program).await? {
            if brought_by.is_empty() || run.misses("apt-get").await? {
                let what = format!("{name}: `{program}` is not in the sandbox's root file system");
                return Err(SandboxError::Provision(what));
            }
            if !listed {
                run.surely(name, &argv(&APT_UPDATE, &[])).await?;
            }
            run.surely(name, &argv(&APT_INSTALL, &argv(brought_by, &[]))).await?;
            listed = true;
        }
        listed |= name == "apt";
        for argv in steps(packages) {
            run.surely(name, &argv).await?;
        }
    }
    if listed {
        run.surely("apt", &argv(&["apt-get", "clean"], &[])).await?;
        run.surely("apt", &argv(&["rm", "-rf", "/var/lib/apt/lists"], &[])).await?;
    }
    run.surely("setup", &argv(&["rm", "-rf", &scratch], &[])).await?;
    run.variables.clear();
    for (number, command) in provision.setup.iter().enumerate() {
        run.surely(&format!("setup.{number}"), &argv(&["/bin/bash", "-c", command], &[])).await?;
    }
    Ok(())
}

struct Run<'a> {
    sandbox: &'a dyn Sandbox,
    fence: Fence,
    variables: BTreeMap<&'static str, String>,
    count: u32,
    until: Instant,
}

struct Came {
    failed: bool,
    said: String,
}

impl Run<'_> {
    async fn perform(&mut self, argv: &[String]) -> Result<Came, SandboxError> {
        self.count += 1;
        let call = format!("install_{}", self.count);
        let input = json!({ "argv": argv, "env": self.variables });
        let left = self.until.saturating_duration_since(Instant::now());
        tracing::debug!(?argv, "installing");
        let result = self.sandbox.run(&call, self.fence, EXEC, &input, Some(left)).await?;
        drop(self.sandbox.ack(&call, self.fence).await);
        let texts = result.content.into_iter().filter_map(|block| match block {
            Block::Text { text } => Some(text),
            Block::Image { .. } | Block::Document { .. } => None,
        });
        Ok(Came { failed: result.is_error, said: texts.collect() })
    }

    async fn misses(&mut self, program: &str) -> Result<bool, SandboxError> {
        let came = self.perform(&argv(&[program, "--version"], &[])).await?;
        Ok(came.failed && came.said.starts_with(NO_SUCH_PROGRAM))
    }

    async fn surely(&mut self, what: &str, argv: &[String]) -> Result<(), SandboxError> {
        let came = self.perform(argv).await?;
        if !came.failed {
            return Ok(());
        }
        let said = came.said.trim();
        let from = said.char_indices().rev().nth(SAID).map_or(0, |(at, _)| at);
        let short = argv.join(" ");
        let short: String = short.chars().take(200).collect();
        Err(SandboxError::Provision(format!("{what}: `{short}` failed: {}", &said[from..])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vaquero_types::{WorkspaceId, environment::Packages};

    #[test]
    fn managers_come_in_their_order_and_names_stay_whole() {
        let one = |name: &str| vec![name.to_owned()];
        let packages = Packages {
            apt: one("jq"),
            cargo: one("ripgrep@14.0.0"),
            gem: one("rake:13.0"),
            go: one("example.com/x/cmd/y"),
            npm: one("left-pad@1"),
            pip: one("x >= 1, < 2"),
            ..Packages::default()
        };
        let provision = Provision {
            workspace: WorkspaceId::from_wire("wrkspc_1"),
            packages,
            setup: Vec::new(),
            env: BTreeMap::new(),
        };
        let said: Vec<String> = managers(&provision)
            .into_iter()
            .flat_map(|manager| (manager.steps)(manager.packages))
            .map(|argv| argv.join("|"))
            .collect();
        insta::assert_snapshot!(said.join("\n"), @r"
        apt-get|update
        apt-get|install|--yes|--no-install-recommends|--|jq
        cargo|install|--root|/usr/local|--|ripgrep@14.0.0
        gem|install|--no-document|rake:13.0
        go|install|example.com/x/cmd/y@latest
        npm|install|--global|--prefix|/usr/local|--no-fund|--no-audit|--|left-pad@1
        python3|-m|pip|install|--no-input|--|x >= 1, < 2
        ");
    }
}
