//! A small emulated machine with cgroup v2 alone, for what the machine at hand may not have: the limits of sandboxes are tried there, as root and as a user who was given a group.

use crate::{
    sdk::{has, install, succeed},
    tally::Tally,
};
use anyhow::Context;
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

const PACKAGES: [&str; 3] = ["debootstrap", "qemu-system-x86", "e2fsprogs"];
/// What the machine has beside the least that Debian has.
const INCLUDED: &str = "--include=kmod,iproute2,linux-image-cloud-amd64";
/// Emulated, everything takes its time.
const DEADLINE: &str = "900";

/// The machine's first program.
const INIT: &str = r#"#!/bin/bash
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs tmp /tmp; mount -t tmpfs run /run
mkdir -p /dev/pts /dev/shm; mount -t devpts pts /dev/pts; mount -t tmpfs shm /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for module in loop overlay nf_tables nft_redir nft_chain_nat; do modprobe $module; done
ip link set lo up
chmod 1777 /tmp
test="--exact --ignored --nocapture limits_hold_by_cgroup_v2"
mkdir /tmp/root; cp /test/* /tmp/root
VAQUERO_SANDBOX_TEST_DIR=/tmp/root /tmp/root/attacks $test
echo "as root: exit $?"
mkdir /tmp/user; cp /test/* /tmp/user; chown -R 54321:54321 /tmp/user
echo "+memory +pids +cpu +io" > /sys/fs/cgroup/cgroup.subtree_control
mkdir /sys/fs/cgroup/delegated
chown 54321:54321 /sys/fs/cgroup/delegated /sys/fs/cgroup/delegated/cgroup.{procs,subtree_control,threads}
bash -c "echo \$\$ > /sys/fs/cgroup/delegated/cgroup.procs
    VAQUERO_SANDBOX_TEST_DIR=/tmp/user exec setpriv --reuid 54321 --regid 54321 --clear-groups /tmp/user/attacks $test"
echo "as a user: exit $?"
echo o > /proc/sysrq-trigger; sleep 60
"#;

pub(crate) fn run(tally: &mut Tally) -> anyhow::Result<()> {
    let what = "limits by cgroup v2 in an emulated machine";
    if std::env::consts::ARCH != "x86_64" {
        tally.leave_out(format!("{what}: this is no x86_64"));
        return Ok(());
    }
    let usable = || has("qemu-system-x86_64") && has("debootstrap") && has_mke2fs();
    if !(usable() || (install(&PACKAGES) && usable())) {
        tally.leave_out(format!(
            "{what}: qemu and debootstrap are missing and cannot be installed without root"
        ));
        return Ok(());
    }
    let place = crate::target().join("machine");
    fs::create_dir_all(&place)?;
    let (tree, image) = (place.join("tree"), place.join("disk.img"));
    if let Err(error) = bootstrap(&tree) {
        tally.leave_out(format!("{what}: there is no Debian to start in it: {error:#}"));
        return Ok(());
    }
    furnish(&tree)?;
    make_image(&tree, &image)?;
    let kernel = kernel(&tree)?;
    let mut machine = Command::new("timeout");
    machine.args([DEADLINE, "qemu-system-x86_64", "-machine", "q35,accel=tcg", "-cpu", "max"]);
    machine.args(["-smp", "2", "-m", "2048", "-nographic", "-no-reboot", "-net", "none"]);
    machine.arg("-kernel").arg(kernel);
    machine.args(["-append", "console=ttyS0 root=/dev/nvme0n1 rw init=/test/init quiet panic=-1"]);
    machine.arg("-drive").arg(format!("file={},format=raw,if=none,id=disk", image.display()));
    machine.args(["-device", "nvme,serial=disk,drive=disk"]).stdin(Stdio::null());
    crate::show(&format!("\n=== {what}\n"));
    let output = machine.output().context("qemu cannot be started")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    for who in ["as root", "as a user"] {
        tally.check(&format!("limits hold, {who}"), said.contains(&format!("{who}: exit 0")));
    }
    if !said.contains("as root: exit 0") || !said.contains("as a user: exit 0") {
        crate::show(&said);
    }
    Ok(())
}

fn has_mke2fs() -> bool {
    Command::new("mke2fs").arg("-V").output().is_ok_and(|output| output.status.success())
}

/// A small Debian, made once.
fn bootstrap(tree: &Path) -> anyhow::Result<()> {
    if tree.join("test").exists() {
        return Ok(());
    }
    if tree.exists() {
        fs::remove_dir_all(tree)?;
    }
    let release = fs::read_to_string("/etc/os-release")?;
    let name = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let name = name.context("/etc/os-release names no release")?;
    let mut debootstrap = Command::new("debootstrap");
    debootstrap.args(["--variant=minbase", INCLUDED, name]).arg(tree);
    succeed(&mut debootstrap, "debootstrap")?;
    fs::create_dir(tree.join("test"))?;
    Ok(())
}

/// Puts the tests in.
fn furnish(tree: &Path) -> anyhow::Result<()> {
    let mut build = crate::cargo(&["test", "--package", "vaquero-sandbox", "--no-run"]);
    build.args(["--test", "attacks", "--message-format", "json"]).stderr(Stdio::inherit());
    let output = build.output().context("cargo cannot be started")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let artifacts = text.lines().filter_map(|line| serde_json::from_str(line).ok());
    let programs: Vec<PathBuf> = artifacts
        .filter_map(|artifact: serde_json::Value| Some(artifact["executable"].as_str()?.into()))
        .collect();
    for (part, name) in [("attacks", "attacks"), ("sandbox-fixture", "sandbox-fixture")] {
        let program = programs.iter().find(|path| {
            path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(part))
        });
        let program = program.with_context(|| format!("cargo built no `{part}`"))?;
        fs::copy(program, tree.join("test").join(name))?;
    }
    let init = tree.join("test/init");
    fs::write(&init, INIT)?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn make_image(tree: &Path, image: &Path) -> anyhow::Result<()> {
    fs::File::create(image)?.set_len(4 << 30)?;
    let mut make = Command::new("mke2fs");
    make.args(["-q", "-F", "-t", "ext4", "-d"]).arg(tree).arg(image);
    succeed(&mut make, "mke2fs")
}

fn kernel(tree: &Path) -> anyhow::Result<PathBuf> {
    let entries = fs::read_dir(tree.join("boot"))?;
    let found =
        entries.flatten().find(|entry| entry.file_name().to_string_lossy().starts_with("vmlinuz"));
    found.map(|entry| entry.path()).context("the machine has no kernel")
}
