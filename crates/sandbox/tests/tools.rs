//! The tools as a model calls them, in a real sandbox: what they answer, and what they answer to nonsense.
#![expect(clippy::unwrap_used, reason = "helpers of tests may fail as tests do")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use vaquero_sandbox::{
    Block, CallState, ComputeProvider, Fence, Limits, LimitsMode, LocalConfig, LocalProvider,
    Sandbox, SandboxError, SandboxKey, SandboxSpec,
};

const FENCE: Fence = Fence { epoch: 1, generation: 1 };

struct Bench {
    sandbox: Arc<dyn Sandbox>,
    provider: LocalProvider,
    calls: AtomicU32,
    dir: TempDir,
}

impl Bench {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = LocalConfig::new(dir.path());
        config.launcher_exe = PathBuf::from(env!("CARGO_BIN_EXE_sandbox-fixture"));
        if !rustix::process::geteuid().is_root() {
            config.limits_mode = LimitsMode::Degraded;
        }
        let provider = LocalProvider::start(config, None).await.unwrap();
        let spec = SandboxSpec::new(1, 1, Limits::default());
        let sandbox = provider.ensure(&SandboxKey::default_of("sesn_tools"), &spec).await.unwrap();
        Self { sandbox, provider, calls: AtomicU32::new(0), dir }
    }

    /// What a tool said, and whether it failed.
    async fn call(&self, tool: &str, input: Value) -> (String, bool) {
        self.within(tool, input, None).await
    }

    async fn within(&self, tool: &str, input: Value, limit: Option<Duration>) -> (String, bool) {
        let id = format!("call_{}", self.calls.fetch_add(1, Ordering::Relaxed));
        let result = self.sandbox.run(&id, FENCE, tool, &input, limit).await.unwrap();
        let texts = result.content.iter().map(|block| match block {
            Block::Text { text } => text.clone(),
            Block::Image { media_type, data } | Block::Document { media_type, data } => {
                format!("{media_type} {data}")
            }
        });
        (texts.collect(), result.is_error)
    }

    async fn ok(&self, tool: &str, input: Value) -> String {
        let (text, is_error) = self.call(tool, input).await;
        assert!(!is_error, "{text}");
        text
    }

    async fn error(&self, tool: &str, input: Value) -> String {
        let (text, is_error) = self.call(tool, input).await;
        assert!(is_error, "{text}");
        text
    }

    async fn sh(&self, command: &str) -> String {
        self.ok("bash", json!({ "command": command })).await
    }

    async fn end(self) {
        self.provider.shutdown(false).await;
        drop(self.dir);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shell_keeps_its_state() {
    let bench = Bench::new().await;
    assert_eq!(bench.sh("pwd").await, "/workspace\n");
    bench.sh("cd /tmp; x=5; f() { echo \"f $1\"; }; alias g=f; set -o pipefail").await;
    assert_eq!(bench.sh("pwd; echo $x; f 1").await, "/tmp\n5\nf 1\n");
    assert_eq!(
        bench
            .error(
                "bash",
                json!({ "command": "echo out; echo err >&2; exit_code() { return 3; }; exit_code" })
            )
            .await,
        "out\nerr\n"
    );
    assert_eq!(bench.sh("true").await, "(no output)");
    assert_eq!(bench.sh("cat; echo end").await, "end\n", "nothing comes from standard input");
    assert_eq!(bench.sh("printf 'no newline'").await, "no newline");
    assert_eq!(bench.sh("cat <<'X'\na 'b' \"c\" $d `e`\nX").await, "a 'b' \"c\" $d `e`\n");
    bench.error("bash", json!({ "command": "echo 'never closed" })).await;
    bench.error("bash", json!({ "command": "if" })).await;
    assert_eq!(bench.sh("echo still here").await, "still here\n");
    let gone = bench.call("bash", json!({ "command": "echo bye; exit 4" })).await;
    assert!(gone.1 && gone.0.starts_with("bye\n[the shell exited with status 4"), "{gone:?}");
    assert_eq!(bench.sh("pwd; echo \"<$x>\"").await, "/workspace\n<>\n", "a fresh one");
    bench.sh("x=6").await;
    assert_eq!(bench.ok("bash", json!({ "restart": true })).await, "bash session restarted");
    assert_eq!(bench.sh("echo \"<$x>\"").await, "<>\n");
    bench.sh("mkdir /tmp/d && cd /tmp/d && rmdir /tmp/d").await;
    assert_eq!(bench.sh("echo in nowhere").await, "in nowhere\n");
    let long = format!("echo {}", "x".repeat(200_000));
    assert!(bench.sh(&long).await.len() > 50_000, "a command of any length");
    for (input, says) in [
        (json!({}), "bash: command is required"),
        (json!({ "command": 5 }), "command must be a string"),
        (json!({ "command": "a\u{0}b" }), "NUL"),
        (json!({ "command": "true", "timeout_ms": "soon" }), "timeout_ms"),
        (json!({ "restart": "yes" }), "restart"),
    ] {
        let said = bench.error("bash", input.clone()).await;
        assert!(said.contains(says), "{input}: {said}");
    }
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_kills_everything_and_says_so() {
    let bench = Bench::new().await;
    bench.sh("setsid sleep 1000 & nohup sleep 1001 >/dev/null 2>&1 & (sleep 1002 &)").await;
    let said = bench
        .error("bash", json!({ "command": "echo before; sleep 1003", "timeout_ms": 300 }))
        .await;
    assert!(
        said.starts_with("bash: bash command timed out after 0.3s") && said.contains("before"),
        "{said}"
    );
    assert!(bench.error("bash", json!({ "command": "true" })).await.contains("restart required"));
    bench.ok("bash", json!({ "restart": true })).await;
    let left = bench
        .sh("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -c 'slee[p] 100' || true")
        .await;
    assert_eq!(left, "0\n", "daemons too");
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_background_process_does_not_hold_the_call() {
    let bench = Bench::new().await;
    assert!(
        bench
            .within(
                "bash",
                json!({ "command": "sleep 1000 & echo started", "timeout_ms": 20000 }),
                None
            )
            .await
            .0
            .contains("started")
    );
    assert_eq!(bench.sh("jobs | wc -l").await.trim(), "1", "and lives on");
    // A subshell without an exec keeps even the shell's own descriptors.
    bench.sh("(sleep 1000; echo late) & disown").await;
    let gone = bench.call("bash", json!({ "command": "echo bye; exit 4", "timeout_ms": 20000 }));
    let (said, failed) = gone.await;
    assert!(failed && said.starts_with("bye\n[the shell exited with status 4"), "{said}");
    assert_eq!(bench.sh("echo a fresh one").await, "a fresh one\n");
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn output_of_any_size_and_kind_is_bounded() {
    let bench = Bench::new().await;
    let (said, _) = bench.call("bash", json!({ "command": "seq 1 500000" })).await;
    assert!(
        said.len() < 110_000 && said.starts_with("1\n2\n") && said.trim_end().ends_with("500000"),
        "{} bytes",
        said.len()
    );
    let kept =
        said.split("all of it is in ").nth(1).and_then(|rest| rest.split(']').next()).unwrap();
    assert_eq!(bench.sh(&format!("wc -l < {kept}")).await, "500000\n");
    let (said, _) =
        bench.call("bash", json!({ "command": "head -c 50000000 /dev/zero | tr '\\0' x" })).await;
    assert!(said.len() < 110_000, "one line of 50 MB");
    let odd = bench.sh("printf 'a\\000b\\377c\\033[31mred\\033[0m'").await;
    assert!(odd.contains("red") && !odd.contains('\u{1b}') && !odd.contains('\0'), "{odd:?}");
    bench.sh("yes line | head -20000 > many; seq 1 100 > few").await;
    let (said, _) = bench.call("read", json!({ "file_path": "many" })).await;
    assert!(said.contains("output truncated") || said.len() <= 100_000, "{} bytes", said.len());
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_read() {
    let bench = Bench::new().await;
    bench.sh("seq 1 9 > lines; printf '\\211PNG' > a.png; printf '%%PDF-1' > a.pdf; mkfifo pipe; mkdir dir; ln -s lines link; printf '\\377' > odd; head -c 300000 /dev/zero | tr '\\0' '\\n' > big; touch empty").await;
    assert_eq!(
        bench.ok("read", json!({ "file_path": "lines" })).await,
        "1\n2\n3\n4\n5\n6\n7\n8\n9\n"
    );
    assert_eq!(
        bench.ok("read", json!({ "file_path": "/workspace/link", "view_range": [3, 4] })).await,
        "3\n4\n"
    );
    assert_eq!(
        bench.ok("read", json!({ "file_path": "lines", "view_range": [8, -1] })).await,
        "8\n9\n"
    );
    assert_eq!(bench.ok("read", json!({ "file_path": "empty" })).await, "(no output)");
    assert_eq!(bench.ok("read", json!({ "file_path": "a.png" })).await, "image/png iVBORw==");
    assert_eq!(bench.ok("read", json!({ "file_path": "a.pdf" })).await, "application/pdf JVBERi0x");
    assert_eq!(
        bench.ok("read", json!({ "file_path": "big", "view_range": [1, 3] })).await,
        "\n\n\n"
    );
    for (input, says) in [
        (json!({ "file_path": "big" }), "exceeds 262144-byte limit. Use the view_range parameter"),
        (json!({ "file_path": "lines", "view_range": [20, 30] }), "starts after its end"),
        (json!({ "file_path": "lines", "view_range": [5, 2] }), "view_range"),
        (json!({ "file_path": "lines", "view_range": "all" }), "view_range"),
        (json!({ "file_path": "a.png", "view_range": [1, 2] }), "view_range is not supported"),
        (json!({ "file_path": "odd" }), "not valid UTF-8"),
        (json!({ "file_path": "pipe" }), "not a regular file"),
        (json!({ "file_path": "dir" }), "not a regular file"),
        (json!({ "file_path": "/dev/zero" }), "not a regular file"),
        (json!({ "file_path": "none" }), "no such file"),
        (json!({ "file_path": "" }), "file_path is required"),
        (json!({ "file_path": 7 }), "file_path must be a string"),
        (json!({}), "file_path is required"),
    ] {
        let said = bench.error("read", input.clone()).await;
        assert!(said.starts_with("read: ") && said.contains(says), "{input}: {said}");
    }
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_written_and_edited() {
    let bench = Bench::new().await;
    assert_eq!(
        bench.ok("write", json!({ "file_path": "a/b/c.txt", "content": "one two one\n" })).await,
        "wrote 12 bytes to /workspace/a/b/c.txt"
    );
    assert_eq!(bench.sh("cat a/b/c.txt").await, "one two one\n");
    let edit = |more: Value| {
        let mut input = json!({ "file_path": "a/b/c.txt" });
        for (name, value) in more.as_object().unwrap() {
            input[name] = value.clone();
        }
        input
    };
    let twice = bench.error("edit", edit(json!({ "old_string": "one", "new_string": "1" }))).await;
    assert_eq!(twice, "edit: old_string appears 2 times in /workspace/a/b/c.txt (must be unique)");
    assert_eq!(
        bench.ok("edit", edit(json!({ "old_string": "two", "new_string": "zwei\r\n" }))).await,
        "edited /workspace/a/b/c.txt (1 replacement(s))"
    );
    assert_eq!(
        bench
            .ok("edit", edit(json!({ "old_string": "one", "new_string": "", "replace_all": true })))
            .await,
        "edited /workspace/a/b/c.txt (2 replacement(s))"
    );
    assert_eq!(
        bench
            .sh("od -c a/b/c.txt | head -1")
            .await
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" "),
        "0000000 z w e i \\r \\n \\n"
    );
    assert_eq!(
        bench.error("edit", edit(json!({ "old_string": "three", "new_string": "3" }))).await,
        "edit: old_string not found in /workspace/a/b/c.txt"
    );
    for (tool, input, says) in [
        (
            "edit",
            edit(json!({ "old_string": "", "new_string": "x" })),
            "old_string must not be empty",
        ),
        ("edit", edit(json!({ "old_string": "a" })), "new_string is required"),
        (
            "edit",
            edit(json!({ "old_string": "a", "new_string": "b", "replace_all": "yes" })),
            "replace_all must be true or false",
        ),
        ("write", json!({ "file_path": "a/b", "content": "x" }), "directory"),
        ("write", json!({ "file_path": "a/b/c.txt/d", "content": "x" }), "write: "),
        ("write", json!({ "file_path": "x" }), "content is required"),
        ("write", json!({ "file_path": "/usr/x", "content": "x" }), "write: "),
        ("write", json!({ "file_path": "/proc/1/oom_score_adj", "content": "x" }), "write: "),
        ("fly", json!({}), "no such tool"),
    ] {
        let said = bench.error(tool, input.clone()).await;
        assert!(said.contains(says), "{tool} {input}: {said}");
    }
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_found_and_searched() {
    let bench = Bench::new().await;
    bench.sh("mkdir -p src/deep .git node_modules; echo 'fn main() {}' > src/main.rs; echo 'fn deep() {}' > src/deep/lib.rs; echo 'fn hidden() {}' > .git/x.rs; echo 'fn no() {}' > node_modules/y.rs; printf 'fn bin\\000' > src/bin.rs; touch -d '2020-01-01' src/main.rs; ln -s /etc/passwd src/link.rs").await;
    assert_eq!(
        bench.ok("glob", json!({ "pattern": "**/*.rs" })).await.lines().last(),
        Some("/workspace/src/main.rs"),
        "newest first"
    );
    assert_eq!(
        bench.ok("glob", json!({ "pattern": "*.rs", "path": "src/deep" })).await,
        "/workspace/src/deep/lib.rs"
    );
    assert_eq!(bench.ok("glob", json!({ "pattern": "*.none" })).await, "no matches");
    let found = bench.ok("grep", json!({ "pattern": "fn \\w+\\(" })).await;
    let mut lines: Vec<&str> = found.lines().collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        ["/workspace/src/deep/lib.rs:1:fn deep() {}", "/workspace/src/main.rs:1:fn main() {}"]
    );
    assert_eq!(
        bench.ok("grep", json!({ "pattern": "main", "path": "src/main.rs" })).await,
        "/workspace/src/main.rs:1:fn main() {}\n"
    );
    assert_eq!(bench.ok("grep", json!({ "pattern": "zzz" })).await, "no matches");
    bench.sh("yes 'a line that is found' | head -50000 > many.txt").await;
    let many = bench.ok("grep", json!({ "pattern": "found", "path": "many.txt" })).await;
    assert!(many.len() < 110_000 && many.contains("truncated"), "{} bytes", many.len());
    for (tool, input, says) in [
        ("glob", json!({ "pattern": "/etc/*" }), "must be relative"),
        ("glob", json!({ "pattern": "../*" }), "`..`"),
        ("glob", json!({ "pattern": "[" }), "glob: "),
        ("glob", json!({ "pattern": "*", "path": "none" }), "no such directory"),
        ("glob", json!({}), "pattern is required"),
        ("grep", json!({ "pattern": "(" }), "not a regular expression"),
        ("grep", json!({ "pattern": "x", "path": "none" }), "no such file or directory"),
        ("grep", json!({ "pattern": ["x"] }), "pattern must be a string"),
    ] {
        let said = bench.error(tool, input.clone()).await;
        assert!(said.contains(says), "{tool} {input}: {said}");
    }
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_runs_at_most_once_and_its_result_is_kept_until_acknowledged() {
    let bench = Bench::new().await;
    let input = json!({ "command": "echo ran >> /workspace/marks; wc -l < /workspace/marks" });
    let run = async |id: &str| bench.sandbox.run(id, FENCE, "bash", &input, None).await;
    assert_eq!(bench.sandbox.status("one", FENCE).await.unwrap(), CallState::Unknown);
    let first = run("one").await.unwrap();
    assert_eq!(run("one").await.unwrap(), first, "the same call, the same result");
    assert!(
        matches!(bench.sandbox.status("one", FENCE).await.unwrap(), CallState::Finished(kept) if kept == first)
    );
    bench.sandbox.ack("one", FENCE).await.unwrap();
    assert!(run("one").await.is_err(), "acknowledged is over");
    assert_eq!(bench.sh("cat marks").await, "ran\n");
    let stale = Fence { epoch: 0, generation: 1 };
    let newer = Fence { epoch: 2, generation: 1 };
    assert!(bench.sandbox.run("two", newer, "bash", &input, None).await.is_ok());
    for old in [stale, FENCE] {
        assert!(
            matches!(
                bench.sandbox.run("three", old, "bash", &input, None).await,
                Err(SandboxError::StaleFence)
            ),
            "{old:?}"
        );
    }
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_the_shell_take_turns_and_files_do_not_wait() {
    let bench = Bench::new().await;
    let shell = |n: u8| {
        let wait = "until [ -e /workspace/go ]; do sleep 0.01; done";
        let command = format!("echo begin {n} >> order; {wait}; echo end {n} >> order");
        bench.call("bash", json!({ "command": command }))
    };
    let write = bench.call("write", json!({ "file_path": "go", "content": "" }));
    let (one, two, three) = tokio::join!(shell(1), shell(2), write);
    assert!(!one.1 && !two.1 && !three.1, "{one:?} {two:?} {three:?}");
    let order = bench.sh("cat order").await;
    let lines: Vec<&str> = order.lines().map(|line| &line[..3]).collect();
    assert_eq!(lines, ["beg", "end", "beg", "end"], "{order}");
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_call_says_so() {
    let bench = Bench::new().await;
    let input = json!({ "command": "touch started; sleep 1000" });
    let running = bench.sandbox.run("long", FENCE, "bash", &input, None);
    let cancel = async {
        let started = async {
            while bench.sandbox.read_file("/workspace/started", 1, FENCE).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), started).await.unwrap();
        bench.sandbox.cancel("long", FENCE).await.unwrap();
    };
    let (result, ()) = tokio::join!(running, cancel);
    let result = result.unwrap();
    assert!(
        result.is_error && format!("{result:?}").contains("interrupted before completion"),
        "{result:?}"
    );
    bench.end().await;
}
