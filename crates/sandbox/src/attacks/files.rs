//! Tricking the file tools, and what unpacks archives, into touching something outside.

use std::fs;

use serde_json::json;

use super::{Arena, Attack, Target, attack, check};
use crate::seam::Quota;

pub(super) const ATTACKS: &[Attack] = &[
    attack!(10, "lead the file tools outside by links and paths", links),
    attack!(10, "make the file tools open pipes and devices", special_files),
    attack!(11, "swap a link while a tool reads", race),
    attack!(11, "choke the file tools on odd files", odd_files),
    attack!(12, "unpack an archive that aims outside", archive),
];

/// The line of the host's `/etc/passwd` that a sandbox does not have.
fn host_line() -> Result<String, String> {
    let text = fs::read_to_string("/etc/passwd").map_err(|e| e.to_string())?;
    let line = text.lines().find(|l| !l.starts_with("root:") && !l.starts_with("nobody:"));
    line.map(str::to_owned).ok_or_else(|| "the host has no passwd to find".to_owned())
}

async fn links(arena: &Arena<'_>) -> Result<(), String> {
    let line = host_line()?;
    let target = arena.target().await?;
    target
        .sh("cd /workspace; ln -s /etc/passwd absolute; ln -s ../../../../../../etc/passwd relative; \
             ln -s /proc/self/root self; ln -s /proc/1/root one; ln -s /etc/shadow shadow; ln -s / root")
        .await?;
    for path in [
        "/workspace/absolute",
        "relative",
        "self/etc/passwd",
        "one/etc/passwd",
        "shadow",
        "root/etc/shadow",
        "../../../../../../etc/passwd",
        "/proc/self/root/etc/passwd",
        "/proc/1/root/etc/passwd",
        "/proc/1/cwd/../etc/passwd",
        "/proc/1/environ",
        "/proc/1/fd/3",
    ] {
        let said =
            target.tool("read", json!({ "file_path": path })).await.map_err(|e| e.to_string())?;
        check(!said.text.contains(&line) && !said.text.contains("root:$"), || {
            format!("{path}: {said:?}")
        })?;
    }
    // A write through a link to what only the host may change changes nothing.
    for path in
        ["/workspace/root/usr/bin/vaquero-attack", "/etc/passwd", "/proc/sys/kernel/core_pattern"]
    {
        let input = json!({ "file_path": path, "content": "attack" });
        let said = target.tool("write", input).await.map_err(|e| e.to_string())?;
        check(said.is_error, || format!("{path}: {said:?}"))?;
    }
    arena.destroy(target).await?;
    check(fs::metadata("/usr/bin/vaquero-attack").is_err(), || "written to the host".to_owned())
}

async fn special_files(arena: &Arena<'_>) -> Result<(), String> {
    let target = arena.target().await?;
    target.sh("cd /workspace; mkfifo fifo; mkdir dir; ln -s /dev/zero zero; perl -MIO::Socket::UNIX -e 'IO::Socket::UNIX->new(Local => \"socket\", Listen => 1)'").await?;
    for path in [
        "fifo",
        "dir",
        "zero",
        "socket",
        "/dev/zero",
        "/dev/urandom",
        "/dev/pts/ptmx",
        "/proc/kmsg",
    ] {
        for (tool, input) in [
            ("read", json!({ "file_path": path })),
            ("edit", json!({ "file_path": path, "old_string": "a", "new_string": "b" })),
            ("write", json!({ "file_path": path, "content": "x" })),
        ] {
            let said = target.tool(tool, input).await.map_err(|e| e.to_string())?;
            check(said.is_error, || format!("{tool} {path}: {said:?}"))?;
        }
    }
    let said = target.tool("grep", json!({ "pattern": "x", "path": "." })).await;
    check(said.is_ok(), || format!("{said:?}"))?;
    arena.destroy(target).await
}

async fn race(arena: &Arena<'_>) -> Result<(), String> {
    let line = host_line()?;
    let target = arena.target().await?;
    target
        .sh("cd /workspace; echo mine > mine; (while :; do ln -sfn mine swap; ln -sfn /proc/1/root/etc/passwd swap; \
             ln -sfn /../../etc/shadow swap; ln -fn mine hard; done) >/dev/null 2>&1 & echo started")
        .await?;
    let mut read = 0;
    for _ in 0..200 {
        let said =
            target.tool("read", json!({ "file_path": "swap" })).await.map_err(|e| e.to_string())?;
        check(!said.text.contains(&line), || format!("{said:?}"))?;
        read += usize::from(!said.is_error);
    }
    arena.destroy(target).await?;
    // If it never hit the link while that was good, nothing was raced.
    check(read > 0, || "no read ever succeeded".to_owned())
}

async fn odd_files(arena: &Arena<'_>) -> Result<(), String> {
    let target = arena.target().await?;
    let choked = choke(&target).await;
    arena.destroy(target).await?;
    // Where files are counted, one that hides them so deep may be ended for it.
    let ended = |why: &String| why.contains("it was stopped");
    let counted = arena.provider.capabilities().quota == Quota::Soft;
    if counted && choked.as_ref().is_err_and(ended) { Ok(()) } else { choked }
}

async fn choke(target: &Target) -> Result<(), String> {
    target
        .sh("cd /workspace; truncate -s 900M sparse; printf 'needle\\n' > $'new\\nline'; printf 'needle\\n' > $'bad\\xff\\xfename'; \
             perl -e 'for (1..60) { mkdir \"d\" x 80; chdir \"d\" x 80 } open(F, \">bottom\"); print F \"needle\\n\"'; \
             head -c 3000000 /dev/zero | tr '\\0' 'x' > longline; echo made")
        .await?;
    let long = format!("/workspace/{}", "a/".repeat(2500));
    for path in ["sparse", &long, &"n".repeat(5000), "nul\0byte", ""] {
        let said =
            target.tool("read", json!({ "file_path": path })).await.map_err(|e| e.to_string())?;
        check(said.is_error && said.text.len() < 20_000, || format!("{path:.40}: {said:?}"))?;
    }
    for (tool, input) in [
        ("glob", json!({ "pattern": "**/*" })),
        ("grep", json!({ "pattern": "needle" })),
        ("grep", json!({ "pattern": "x+y" })),
        ("grep", json!({ "pattern": "(a+)+$" })),
        ("glob", json!({ "pattern": "../../**" })),
        ("read", json!({ "file_path": "new\nline" })),
        ("read", json!({ "file_path": 7 })),
        ("read", json!([])),
        ("nonsense", json!({})),
    ] {
        let said = target.tool(tool, input).await.map_err(|e| e.to_string())?;
        check(said.text.len() < 600_000, || format!("{tool} said {} bytes", said.text.len()))?;
    }
    alive(target).await
}

async fn archive(arena: &Arena<'_>) -> Result<(), String> {
    let outside = format!("/var/tmp/vaquero-attack-{}", std::process::id());
    let script = format!(
        "cd /tmp && mkdir pack && cd pack && echo evil > evil && ln -s / rootlink && \
         tar -P --transform 's,^evil$,../../../../../../../..{outside},' -cf ../up.tar evil; \
         tar -P --transform 's,^evil$,{outside},' -cf ../abs.tar evil; \
         tar -P --transform 's,^evil$,rootlink/etc/cron.d/evil,' -cf ../link.tar rootlink evil; \
         mkdir /workspace/un; for a in up abs link; do tar -P -C /workspace/un -xf ../$a.tar; done; \
         ls /etc/cron.d /usr/evil 2>&1; head -c 200000000 /dev/zero | gzip -c > bomb.gz; gunzip -c bomb.gz > /tmp/bomb 2>&1 || echo full"
    );
    let target = arena.target().await?;
    let said = target.sh(&script).await?;
    alive(&target).await?;
    arena.destroy(target).await?;
    let host_clean = fs::metadata(&outside).is_err() && fs::metadata("/etc/cron.d/evil").is_err();
    check(host_clean, || "the archive reached the host".to_owned())?;
    check(said.text.contains("full"), || format!("{said:?}"))
}

/// The sandbox still works.
async fn alive(target: &Target) -> Result<(), String> {
    let said = target.sh("echo alive").await?;
    check(said.text.trim() == "alive", || format!("{said:?}"))
}
