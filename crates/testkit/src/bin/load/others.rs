//! Other ways to make a sandbox on the same machine, in the same run: bubblewrap and runc, where they are installed. Each gets the host's `/usr` and namespaces of its own, and runs `true`.

use crate::machine::Times;
use anyhow::Context;
use serde_json::{Value, json};
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// What `/` has of the host's.
const LINKS: [&str; 4] = ["bin", "lib", "lib64", "sbin"];

/// Prints what others take, as far as they are here.
pub(crate) fn measure(count: usize) {
    match bubblewrap(count) {
        Ok(mut cold) => println!("beside it, bubblewrap, cold: {}", cold.line()),
        Err(error) => println!("beside it, bubblewrap: not measured: {error:#}"),
    }
    match runc(count) {
        Ok((mut cold, mut warm)) => {
            println!("beside it, runc, cold: {}", cold.line());
            println!("  a command in a container that runs: {}", warm.line());
        }
        Err(error) => println!("beside it, runc: not measured: {error:#}"),
    }
}

fn timed(command: &mut Command) -> anyhow::Result<Duration> {
    let started = Instant::now();
    let output = command.stdin(Stdio::null()).output()?;
    let took = started.elapsed();
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(took)
}

fn bubblewrap(count: usize) -> anyhow::Result<Times> {
    let mut times = Times::default();
    for _ in 0..count {
        let mut command = Command::new("bwrap");
        command.args([
            "--unshare-all",
            "--die-with-parent",
            "--clearenv",
            "--ro-bind",
            "/usr",
            "/usr",
        ]);
        for link in LINKS {
            command.args(["--symlink", &format!("usr/{link}"), &format!("/{link}")]);
        }
        command.args([
            "--proc",
            "/proc",
            "--dev",
            "/dev",
            "--tmpfs",
            "/tmp",
            "--",
            "/usr/bin/true",
        ]);
        times.0.push(timed(&mut command)?);
    }
    Ok(times)
}

fn runc(count: usize) -> anyhow::Result<(Times, Times)> {
    let place = tempfile::tempdir()?;
    let bundle = place.path();
    let root = bundle.join("rootfs");
    for dir in ["usr", "proc", "dev", "tmp", "sys", "etc"] {
        fs::create_dir_all(root.join(dir))?;
    }
    for link in LINKS {
        std::os::unix::fs::symlink(format!("usr/{link}"), root.join(link))?;
    }
    timed(Command::new("runc").arg("spec").current_dir(bundle)).context("runc spec")?;
    let mut spec: Value = serde_json::from_slice(&fs::read(bundle.join("config.json"))?)?;
    spec["process"]["terminal"] = json!(false);
    spec["process"]["args"] = json!(["/usr/bin/true"]);
    // Where limits can only go down.
    spec["process"]["rlimits"] = json!([]);
    let usr = json!({ "destination": "/usr", "type": "bind", "source": "/usr", "options": ["rbind", "ro"] });
    spec["mounts"].as_array_mut().context("mounts")?.push(usr);
    let write = |spec: &Value| fs::write(bundle.join("config.json"), spec.to_string());
    write(&spec)?;
    let (mut cold, mut warm) = (Times::default(), Times::default());
    let name = |number: usize| format!("vaquero-load-{}-{number}", std::process::id());
    for number in 0..count {
        let mut command = Command::new("runc");
        command.args(["run", &name(number)]).current_dir(bundle);
        cold.0.push(timed(&mut command)?);
    }
    spec["process"]["args"] = json!(["/usr/bin/sleep", "1000"]);
    write(&spec)?;
    let stays = name(count);
    timed(
        Command::new("runc")
            .args(["run", "--detach", &stays])
            .current_dir(bundle)
            .stdout(Stdio::null())
            .stderr(Stdio::null()),
    )?;
    let measured = (0..count).try_for_each(|_| {
        warm.0.push(timed(Command::new("runc").args(["exec", &stays, "/usr/bin/true"]))?);
        Ok::<(), anyhow::Error>(())
    });
    timed(Command::new("runc").args(["delete", "--force", &stays]))?;
    measured?;
    Ok((cold, warm))
}

/// The proportional share of memory of a process and all that descend from it, in KiB.
pub(crate) fn memory_of(mark: &Path) -> u64 {
    let mark = mark.display().to_string();
    let mut tree: Vec<u32> = Vec::new();
    let mut parents: Vec<(u32, u32)> = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(&mark) {
            tree.push(pid);
        }
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent =
            stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
        parents.extend(parent.map(|parent| (pid, parent)));
    }
    let launchers = tree.len();
    loop {
        let more: Vec<u32> = parents
            .iter()
            .filter(|(pid, parent)| tree.contains(parent) && !tree.contains(pid))
            .map(|(pid, _)| *pid)
            .collect();
        if more.is_empty() {
            break;
        }
        tree.extend(more);
    }
    let share = |pid: &u32| {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap_or_default();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0)
    };
    tree[launchers..].iter().map(share).sum()
}
