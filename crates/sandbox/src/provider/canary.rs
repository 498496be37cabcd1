//! The canary: a first sandbox that shows whether the walls stand, before any session gets one.
//! It must look from the inside, at what a model's command would see, and believe nothing it was told.

use std::path::PathBuf;
use std::time::Duration;

use crate::error::SandboxError;
use crate::seam::{Block, Fence, Sandbox, ToolResult};

const TIMEOUT: Duration = Duration::from_secs(30);

/// Prints one word for every wall that does not stand, and `done` at the end. Shell builtins only, so
/// that it costs no more than one shell.
const SCRIPT: &str = r#"
has() { [ -e "$1" ] && echo "$2"; }
while read -r name value rest; do
  case "$name" in
    NoNewPrivs:) [ "$value" = 1 ] || echo privileges ;;
    Seccomp:) [ "$value" = 2 ] || echo seccomp ;;
    CapEff:) [ "$value" = 00000000000004fb ] || echo capabilities ;;
  esac
done < /proc/self/status
while read -r inside outside count; do
  [ "$inside" = 0 ] && [ "$outside" = 0 ] && [ "$OWN_IDS" = 1 ] && echo user-ids
done < /proc/self/uid_map
[ "$OWN_ROOT" = 1 ] || has /etc/shadow host-etc
has /sys/kernel host-sys
[ "$OWN_ROOT" = 1 ] || has /run/systemd host-run
has "$HOST_MARK" host-data
while read -r line; do
  case "$line" in *"|"*|lo:*) ;; *:*) echo network ;; esac
done < /proc/net/dev
[ -w /usr ] && echo writable-usr
[ -w / ] && echo writable-root
[ -w /proc/sys/kernel/core_pattern ] && ( : > /proc/sys/kernel/core_pattern ) 2>/dev/null && echo writable-proc
[ -w /workspace ] || echo workspace
[ -w /tmp ] || echo tmp
[ "${VAQUERO_CANARY_ENV+set}" = set ] && echo environment
echo done
"#;

/// What an engine's sandboxes look like from inside when all their walls stand.
#[derive(Clone, Debug)]
pub struct Walls {
    /// A file of the host that must not be there.
    pub host_mark: PathBuf,
    /// The root file system is another than the host's: it may have files as a host has.
    pub own_root: bool,
    /// User ids inside are others outside.
    pub own_ids: bool,
}

impl Walls {
    /// Checks them.
    pub async fn check(&self, sandbox: &dyn Sandbox) -> Result<(), SandboxError> {
        let (root, ids) = (u8::from(self.own_root), u8::from(self.own_ids));
        let mark = self.host_mark.display().to_string().replace('\'', "'\\''");
        let script = format!("OWN_IDS={ids}; OWN_ROOT={root}; HOST_MARK='{mark}'\n{SCRIPT}");
        let said = text(run(sandbox, &script).await?);
        let failed: Vec<&str> = said.split_whitespace().filter(|word| *word != "done").collect();
        if said.trim() == "done" {
            return Ok(());
        }
        Err(SandboxError::unavailable(
            format!("the canary sandbox found walls missing: {:.200}", failed.join(", ")),
            "run `vaquero doctor`, and report this if every wall there is ok",
        ))
    }
}

/// Checks only that commands run at all: for engines whose walls are none, or elsewhere.
pub async fn check_runs(sandbox: &dyn Sandbox) -> Result<(), SandboxError> {
    let said = text(run(sandbox, "echo done").await?);
    if said.trim() == "done" {
        return Ok(());
    }
    Err(SandboxError::unavailable(
        format!("commands do not run in a sandbox: {:.300}", said.trim()),
        "it needs /bin/bash and a kernel that lets programs run",
    ))
}

/// Checks that nothing leads out of it but what its proxy lets through: for engines whose networks are shut by somebody else.
pub(crate) async fn check_reaches_nothing(sandbox: &dyn Sandbox) -> Result<(), SandboxError> {
    let script = "for to in 1.1.1.1/443 8.8.8.8/53 169.254.169.254/80; do \
                  timeout 3 bash -c \"exec 3<>/dev/tcp/$to\" 2>/dev/null && echo $to; done; echo done";
    let fence = Fence { epoch: 1, generation: sandbox.generation() };
    let input = serde_json::json!({ "command": script });
    let said = text(sandbox.run("reach", fence, "bash", &input, Some(TIMEOUT)).await?);
    if said.trim() == "done" {
        return Ok(());
    }
    Err(SandboxError::unavailable(
        format!(
            "a sandbox reaches what it must not, past its way out: {:.200}",
            said.trim().replace('\n', ", ")
        ),
        "have its network shut",
    ))
}

async fn run(sandbox: &dyn Sandbox, script: &str) -> Result<ToolResult, SandboxError> {
    let fence = Fence { epoch: 1, generation: sandbox.generation() };
    let input = serde_json::json!({ "command": script });
    sandbox.run("canary", fence, "bash", &input, Some(TIMEOUT)).await
}

fn text(result: ToolResult) -> String {
    let texts = result.content.into_iter().filter_map(|block| match block {
        Block::Text { text } => Some(text),
        Block::Image { .. } | Block::Document { .. } => None,
    });
    texts.collect::<Vec<_>>().join("\n")
}
