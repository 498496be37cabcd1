//! Taking more than a sandbox's share, or never letting go.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{Arena, Attack, FENCE, LIMITS, Said, Target, attack, check, perl};
use crate::error::SandboxError;
use crate::seam::{Limits, LimitsState, Quota, SandboxSpec};

pub(super) const ATTACKS: &[Attack] = &[
    attack!(38, "fork without end", fork_bomb),
    attack!(39, "allocate memory without end", memory_bomb),
    attack!(39, "fill the memory file systems", tmpfs_bomb),
    attack!(40, "fill the disk", disk_bomb),
    attack!(40, "make files without end", inode_bomb),
    attack!(41, "spin on every core", spin),
    attack!(42, "print without end", flood),
    attack!(43, "print what is not text", binary),
    attack!(44, "keep the output open in the background", holder),
    attack!(45, "escape a timeout by daemonizing", daemon),
    attack!(46, "leave ten thousand orphans", orphans),
    attack!(47, "ignore and stop signals", stubborn),
    attack!(48, "send ten megabytes that nobody reads", unread),
    attack!(49, "be destroyed by the dozen in the middle of it", crowd),
];

/// Another sandbox works as if nothing happened.
async fn others_work(arena: &Arena<'_>) -> Result<(), String> {
    let said = arena.inside("echo fine").await?;
    check(said.trim() == "fine", || said)
}

async fn fork_bomb(arena: &Arena<'_>) -> Result<(), String> {
    let target = arena.target().await?;
    let program = r#"my $n = 0; while ($n < 5000) { my $p = fork; if (!defined $p) { print "errno ", $!+0, " after $n\n"; last }
        if ($p == 0) { sleep 100; exit } $n++ } kill "KILL", 0 if 0; print "made $n\n";"#;
    let said = target.sh(&perl(program)).await?;
    let made = said.text.rsplit("made ").next().and_then(|n| n.trim().parse::<u32>().ok());
    let eagain = said.text.contains(&format!("errno {}", libc::EAGAIN));
    check(eagain && made.is_some_and(|n| n < LIMITS.pids), || format!("{said:?}"))?;
    target.restart_shell().await?;
    // The same with ids of its own choosing, and with the soft limit raised to the hard one.
    let raise = "ulimit -Su hard 2>/dev/null; ";
    let switch = "$) = $( = 1000; $> = $< = 1000; ";
    let said = target.sh(&format!("{raise}{}", perl(&format!("{switch}{program}")))).await?;
    let made = said.text.rsplit("made ").next().and_then(|n| n.trim().parse::<u32>().ok());
    // Without cgroups only `pid_max` limits other ids, and it counts from 300.
    check(made.is_some_and(|n| n < LIMITS.pids + 340), || format!("{said:?}"))?;
    others_work(arena).await?;
    arena.destroy(target).await?;
    // The classic, which hits its own shell as well: whatever becomes of the call, others live.
    let target = arena.target().await?;
    let input = json!({ "command": "b() { b | b & }; b; sleep 1; echo survived" });
    let limit = Some(Duration::from_secs(10));
    drop(target.tool_within("bash", input, limit).await);
    others_work(arena).await?;
    arena.destroy(target).await
}

/// What may become of a call that hits the memory limit: killed and told, or the sandbox is gone.
fn survivable(result: Result<Said, SandboxError>) -> Result<Option<Said>, String> {
    match result {
        Ok(said) => Ok(Some(said)),
        Err(SandboxError::Gone { .. }) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

async fn memory_bomb(arena: &Arena<'_>) -> Result<(), String> {
    let target = arena.target().await?;
    let program = r#"$| = 1; my @a; for (1..64) { push @a, "x" x (64 << 20); print "$_\n" } print "all of it\n";"#;
    let said = survivable(target.tool("bash", json!({ "command": perl(program) })).await)?;
    if let Some(said) = said {
        check(!said.text.lines().any(|l| l == "all of it"), || format!("{said:?}"))?;
    }
    others_work(arena).await?;
    arena.destroy(target).await
}

async fn tmpfs_bomb(arena: &Arena<'_>) -> Result<(), String> {
    let target = arena.target().await?;
    let script = "dd if=/dev/zero of=/tmp/fill bs=1M count=4096 2>&1 | tail -1; dd if=/dev/zero of=/dev/shm/fill bs=1M count=4096 2>&1 | tail -1; \
        stat -c %s /tmp/fill /dev/shm/fill; rm -f /tmp/fill /dev/shm/fill; \
        perl -e 'for (1..400000) { open(my $f, \">\", \"/tmp/i$_\") or do { print \"inodes end at $_\\n\"; exit } } print \"no end\\n\"'";
    let said = survivable(target.tool("bash", json!({ "command": script })).await)?;
    if let Some(said) = said {
        let sizes: Vec<u64> = said.text.lines().filter_map(|l| l.trim().parse().ok()).collect();
        let bounded = sizes.len() == 2 && sizes.iter().all(|s| *s <= LIMITS.tmp_bytes);
        check(bounded && !said.text.contains("no end"), || format!("{said:?}"))?;
    }
    others_work(arena).await?;
    arena.destroy(target).await
}

/// A sandbox with little room for files, and a command that wants more of it.
async fn with_little_room(arena: &Arena<'_>, command: &str) -> Result<Option<Said>, String> {
    let limits = Limits { workspace_bytes: ROOM, ..LIMITS };
    let target = arena.target_like(SandboxSpec { limits, ..Arena::spec() }).await?;
    let said = survivable(target.tool("bash", json!({ "command": command })).await)?;
    others_work(arena).await?;
    arena.destroy(target).await?;
    if arena.provider.capabilities().quota == Quota::Hard && said.is_none() {
        return Err("the sandbox is gone, which a full disk is no reason for".to_owned());
    }
    Ok(said)
}

const ROOM: u64 = 32 << 20;

async fn disk_bomb(arena: &Arena<'_>) -> Result<(), String> {
    // Over all its directories together; where the quota is only soft, until it is ended.
    let command = "for i in $(seq 100); do for d in /workspace ~ /mnt/session/outputs; do \
        head -c 4M /dev/zero >$d/$i 2>/dev/null || full=1; done; [ \"$full\" ] && break; sleep 0.05; done; \
        du -sm --total /workspace ~ /mnt/session/outputs | tail -1; rm /workspace/1; echo room again >/workspace/x; cat /workspace/x";
    let Some(said) = with_little_room(arena, command).await? else { return Ok(()) };
    let megabytes = said.text.split_whitespace().next().and_then(|n| n.parse::<u64>().ok());
    let bounded = megabytes.is_some_and(|used| used << 20 <= ROOM);
    check(bounded && said.text.contains("room again"), || format!("{said:?}"))
}

async fn inode_bomb(arena: &Arena<'_>) -> Result<(), String> {
    let program = r#"my $made = 0; for (1..20000) { if (open(my $f, ">", "/workspace/f$_")) { $made = $_ } else { last } }
        print "made $made\n"; sleep 100 if $made > 3000;"#;
    let Some(said) = with_little_room(arena, &perl(program)).await? else { return Ok(()) };
    let made = said.text.rsplit("made ").next().and_then(|n| n.trim().parse::<u64>().ok());
    check(made.is_some_and(|made| made <= ROOM / (16 << 10)), || format!("{said:?}"))
}

async fn spin(arena: &Arena<'_>) -> Result<(), String> {
    let mut targets = Vec::new();
    for _ in 0..4 {
        let target = arena.target().await?;
        target
            .sh("for i in 1 2 3 4; do (while :; do :; done) >/dev/null 2>&1 & done; echo spinning")
            .await
            .map_err(|e| format!("spinner: {e}"))?;
        targets.push(target);
    }
    let (mut slowest, bystander) = (Duration::ZERO, arena.target().await?);
    for _ in 0..20 {
        let started = now();
        bystander.sandbox.status("none", FENCE).await.map_err(|e| format!("bystander: {e}"))?;
        bystander.sh("true").await?;
        slowest = slowest.max(now() - started);
    }
    targets.push(bystander);
    for target in targets {
        arena.destroy(target).await?;
    }
    check(slowest < Duration::from_secs(5), || format!("a call took {slowest:?}"))
}

#[expect(clippy::disallowed_methods, reason = "an attack is timed by the real clock")]
fn now() -> Instant {
    Instant::now()
}

/// This process's resident memory, in bytes.
fn resident() -> Result<u64, String> {
    let status = fs::read_to_string("/proc/self/status").map_err(|e| e.to_string())?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or_default();
    let kib = line.trim().trim_end_matches(" kB").parse::<u64>().map_err(|e| e.to_string())?;
    Ok(kib << 10)
}

async fn flood(arena: &Arena<'_>) -> Result<(), String> {
    let target = arena.target().await?;
    let before = resident()?;
    for command in [
        "yes | head -c 1000000000",
        "head -c 1000000000 /dev/zero | tr '\\0' 'x'",
        "head -c 300000000 /dev/urandom",
    ] {
        let said = target.sh(command).await?;
        check(said.text.len() < 1_000_000, || format!("{command}: {} bytes", said.text.len()))?;
    }
    let endless =
        target.tool_within("bash", json!({ "command": "yes" }), Some(Duration::from_secs(2))).await;
    let endless = endless.map_err(|e| e.to_string())?;
    check(endless.is_error, || "an endless command ended well".to_owned())?;
    let grown = resident()?.saturating_sub(before);
    arena.destroy(target).await?;
    check(grown < 100 << 20, || format!("the server grew by {grown} bytes"))
}

async fn binary(arena: &Arena<'_>) -> Result<(), String> {
    let target = arena.target().await?;
    let said = target.sh("printf 'a\\0b\\xff\\xfec\\033[31mred\\033[0m\\r\\n\\xf0\\x9f\\x98\\x80 \\xed\\xa0\\x80 end'").await?;
    check(said.text.contains('a') && said.text.contains("\u{1f600}"), || format!("{said:?}"))?;
    check(said.text.contains("red") && said.text.trim_end().ends_with("end"), || {
        format!("{said:?}")
    })?;
    check(!said.text.contains(['\0', '\u{1b}']), || format!("{said:?}"))?;
    arena.destroy(target).await
}

async fn holder(arena: &Arena<'_>) -> Result<(), String> {
    let target = arena.target().await?;
    let started = now();
    let said = target.sh("sleep 300 & echo hello").await?;
    check(said.text.contains("hello"), || format!("{said:?}"))?;
    let took = now() - started;
    check(took < Duration::from_secs(20), || format!("it took {took:?}"))?;
    arena.destroy(target).await
}

async fn daemon(arena: &Arena<'_>) -> Result<(), String> {
    let target = arena.target().await?;
    let command = "setsid sleep 3333 & (setsid perl -e 'fork and exit; exec \"sleep\", \"3333\"' &) ; \
        nohup sleep 3333 >/dev/null 2>&1 & sleep 3333";
    let limit = Some(Duration::from_secs(1));
    let said = target.tool_within("bash", json!({ "command": command }), limit).await;
    let said = said.map_err(|e| e.to_string())?;
    check(said.is_error, || format!("{said:?}"))?;
    target.restart_shell().await?;
    let said = target
        .sh("cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c 'sleep 333[3]'; echo end")
        .await?;
    arena.destroy(target).await?;
    check(said.text.trim() == "0\nend", || format!("{said:?}"))
}

async fn orphans(arena: &Arena<'_>) -> Result<(), String> {
    let target = arena.target().await?;
    // Each child leaves a grandchild behind, which PID 1 has to collect.
    let program = r#"my $made = 0; for (1..10000) { my $p = fork; if (!defined $p) { select undef, undef, undef, 0.01; next }
        if ($p == 0) { fork; exit 0 } waitpid $p, 0; $made++ } print "made $made\n";"#;
    let said = target.sh(&perl(program)).await?;
    let made = said.text.trim().strip_prefix("made ").and_then(|n| n.parse::<u32>().ok());
    check(made.is_some_and(|n| n > 5000), || format!("{said:?}"))?;
    let count = "for i in $(seq 200); do n=$(cat /proc/[0-9]*/stat 2>/dev/null | grep -c ') Z '); [ $n = 0 ] && break; done; echo $n zombies";
    // Until the last of them are collected, there may be no process left to count with.
    let mut said = target.sh(count).await?;
    for _ in 0..20 {
        if said.text.trim() == "0 zombies" {
            return arena.destroy(target).await;
        }
        said = target.sh(count).await?;
    }
    Err(format!("{said:?}"))
}

async fn stubborn(arena: &Arena<'_>) -> Result<(), String> {
    for command in [
        "trap '' TERM INT HUP QUIT; while :; do :; done",
        "kill -STOP $$",
        "perl -e '$SIG{$_} = \"IGNORE\" for keys %SIG; kill \"STOP\", $$; sleep 600'",
        "kill -STOP 1; kill -KILL 1; kill -STOP -1",
    ] {
        let target = arena.target().await?;
        let limit = Some(Duration::from_secs(1));
        let said = target.tool_within("bash", json!({ "command": command }), limit).await;
        said.map_err(|e| format!("{command}: {e}"))?;
        target.restart_shell().await?;
        let said = target.sh("echo back").await?;
        check(said.text.trim() == "back", || format!("after {command}: {said:?}"))?;
        arena.destroy(target).await?;
    }
    Ok(())
}

async fn unread(arena: &Arena<'_>) -> Result<(), String> {
    let target = arena.target().await?;
    let command = format!("true <<'END'\n{}\nEND\necho through", "x".repeat(10 << 20));
    let said = target.sh(&command).await?;
    check(said.text.contains("through") || said.is_error, || "neither run nor refused".to_owned())?;
    let said = target.sh("read -t 1 line; echo $?").await?;
    check(said.text.trim() == "1", || format!("stdin is not empty: {said:?}"))?;
    arena.destroy(target).await
}

async fn crowd(arena: &Arena<'_>) -> Result<(), String> {
    let mut targets: Vec<Target> = Vec::new();
    for _ in 0..50 {
        targets.push(arena.target().await?);
    }
    let started =
        targets.iter().map(|target| async { target.sh("sleep 600 & echo under way").await });
    for said in join_all(started).await {
        let said = said?;
        check(said.text.contains("under way"), || format!("{said:?}"))?;
    }
    let sessions: Vec<_> = targets.iter().map(|t| t.key.clone()).collect();
    let calls = targets.iter().map(|target| target.tool("bash", json!({ "command": "sleep 600" })));
    let destroys = sessions.iter().map(|key| arena.provider.destroy(&key.session));
    let (calls, destroyed) = tokio::join!(join_all(calls), join_all(destroys));
    for call in calls {
        check(call.is_err(), || format!("a call outlived its sandbox: {call:?}"))?;
    }
    for destroyed in destroyed {
        destroyed.map_err(|e| e.to_string())?;
    }
    for key in &sessions {
        let left = arena.provider.attach(key, &Arena::spec()).await.map_err(|e| e.to_string())?;
        check(left.is_none(), || format!("{key} is still there"))?;
    }
    let enforced = matches!(arena.provider.capabilities().limits, LimitsState::Enforced(_));
    check(enforced || !arena.host_is_root, || "root without cgroups".to_owned())
}

/// Polls all of them until each is done.
async fn join_all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut pending: Vec<_> = futures.map(Box::pin).map(Some).collect();
    let mut done: Vec<Option<F::Output>> = pending.iter().map(|_| None).collect();
    std::future::poll_fn(move |context| {
        for (slot, out) in pending.iter_mut().zip(&mut done) {
            if let Some(future) = slot
                && let std::task::Poll::Ready(output) = future.as_mut().poll(context)
            {
                *out = Some(output);
                *slot = None;
            }
        }
        if pending.iter().any(Option::is_some) {
            return std::task::Poll::Pending;
        }
        std::task::Poll::Ready(done.drain(..).flatten().collect())
    })
    .await
}
