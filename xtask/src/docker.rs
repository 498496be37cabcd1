//! A throw-away Docker engine for the tests, with an image that is made of this machine's own packages: nothing is fetched from a registry.

use crate::sdk::{has, install, succeed};
use anyhow::{Context, bail};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

/// What the tests' images are called; each has its tag in `/etc/image-mark`.
const IMAGE: &str = "vaquero-test";
/// What it has beside the least that Debian has.
const INCLUDED: [&str; 4] = ["perl-base", "ca-certificates", "curl", "python3-pip"];
/// How often the engine is asked whether it has started, and how long between.
const TRIES: u32 = 600;
const PAUSE: Duration = Duration::from_millis(50);
/// Directories that are links into `/usr` on every Debian of today.
const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];

/// A running engine; it ends with the value.
pub(crate) struct Docker {
    engine: Child,
    place: PathBuf,
    /// A runtime that is a kernel of its own.
    gvisor: bool,
}

impl Docker {
    /// Starts one, or says why there is none.
    pub(crate) fn start() -> anyhow::Result<Result<Self, String>> {
        let here = || has("dockerd") && has("containerd");
        if !(here() || (install(&["docker.io"]) && here())) {
            return Ok(Err("it is missing and cannot be installed without root".to_owned()));
        }
        if !(has("curl") || install(&["curl"])) {
            return Ok(Err("curl is missing and cannot be installed without root".to_owned()));
        }
        if !(has("dpkg-query") && has("unshare")) {
            return Ok(Err("its image is made of Debian's packages".to_owned()));
        }
        let gvisor = has("runsc") || install(&["runsc"]) && has("runsc");
        let made = Command::new("mktemp")
            .args(["-d", "-t", "vaquero-docker-XXXXXX"])
            .output()
            .context("mktemp cannot be started")?;
        let place = PathBuf::from(String::from_utf8(made.stdout)?.trim());
        let engine = Self::spawn(&place, gvisor)?;
        let mut docker = Self { engine, place, gvisor };
        if let Err(why) = docker.wait() {
            return Ok(Err(format!("it does not start here: {why:#}")));
        }
        docker.make_image("latest")?;
        docker.make_image("marked")?;
        Ok(Ok(docker))
    }

    /// In a network of its own: the machine's routes and filters are none of its business.
    fn spawn(place: &Path, gvisor: bool) -> anyhow::Result<Child> {
        let mut settings = serde_json::json!({
            "data-root": place.join("data"),
            "exec-root": place.join("exec"),
            "pidfile": place.join("pid"),
            "hosts": [format!("unix://{}", place.join("docker.sock").display())],
            "bridge": "none",
            "iptables": false,
            "ip6tables": false,
        });
        if gvisor {
            settings["runtimes"] = serde_json::json!({
                "runsc": { "path": "runsc", "runtimeArgs": ["--network=none", "--platform=ptrace", "--host-uds=open"] }
            });
        }
        let file = place.join("daemon.json");
        fs::write(&file, settings.to_string())?;
        let log = fs::File::create(place.join("log"))?;
        let script = "ip link set lo up 2>/dev/null; exec dockerd --config-file \"$1\"";
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", script, "sh"]).arg(file);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.spawn().context("unshare cannot be started")
    }

    fn wait(&mut self) -> anyhow::Result<()> {
        for _ in 0..TRIES {
            // It listens as soon as it is ready.
            if std::os::unix::net::UnixStream::connect(self.place.join("docker.sock")).is_ok() {
                return Ok(());
            }
            if let Some(status) = self.engine.try_wait()? {
                let log = fs::read_to_string(self.place.join("log")).unwrap_or_default();
                bail!("{status}: {}", log.lines().last().unwrap_or_default());
            }
            std::thread::sleep(PAUSE);
        }
        bail!("it is not ready in time")
    }

    /// Where it listens.
    pub(crate) fn url(&self) -> String {
        format!("unix://{}", self.place.join("docker.sock").display())
    }

    /// Tells tests where it is.
    pub(crate) fn announce(&self, command: &mut Command) {
        command.env("VAQUERO_TEST_DOCKER", self.url());
        if self.gvisor {
            command.env("VAQUERO_TEST_DOCKER_RUNTIME", "runsc");
        }
    }

    /// Makes one of the tests' images: the packages that every Debian has, as they are on this machine.
    fn make_image(&self, tag: &str) -> anyhow::Result<()> {
        let list = self.place.join("files");
        fs::write(&list, files()?)?;
        let links = self.place.join(tag);
        fs::create_dir(&links)?;
        for name in MERGED {
            std::os::unix::fs::symlink(format!("usr/{name}"), links.join(name))?;
        }
        // Not this machine's: a sandbox must not be able to read its users in an image either.
        fs::create_dir(links.join("etc"))?;
        for (name, text) in [("passwd", "root:x:0:0::/root:/bin/bash\n"), ("group", "root:x:0:\n")]
        {
            fs::write(links.join("etc").join(name), text)?;
        }
        fs::write(links.join("etc/image-mark"), format!("{tag}\n"))?;
        let archive = self.place.join("image.tar");
        let mut tar = Command::new("tar");
        tar.args(["--create", "--no-recursion", "--ignore-failed-read", "--directory"]);
        tar.arg(&links)
            .args(MERGED)
            .args(["etc/passwd", "etc/group", "etc/image-mark"])
            .args(["--directory", "/", "--files-from"])
            .arg(&list);
        tar.arg("--file").arg(&archive);
        succeed(&mut tar, "tar")?;
        let mut import = Command::new("curl");
        import.args(["--silent", "--show-error", "--fail-with-body", "--unix-socket"]);
        import.arg(self.place.join("docker.sock")).args(["--request", "POST"]);
        import.args(["--header", "Content-Type: application/x-tar", "--upload-file"]).arg(&archive);
        import.arg(format!("http://docker/images/create?fromSrc=-&repo={IMAGE}&tag={tag}"));
        succeed(&mut import, "the import of the tests' image")?;
        fs::remove_file(archive)?;
        Ok(())
    }
}

/// The files of the packages that every Debian has, one on a line, each below its real directory.
fn files() -> anyhow::Result<String> {
    let format = "-f=${Package}\t${Essential}\t${Priority}\t${Pre-Depends}, ${Depends}\n";
    let known = Command::new("dpkg-query").args(["-W", format]).output()?;
    let known = String::from_utf8(known.stdout)?;
    let mut needs: BTreeMap<&str, &str> = BTreeMap::new();
    let mut wanted: Vec<&str> = INCLUDED.to_vec();
    for line in known.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let [name, essential, priority, depends] = fields[..] else { continue };
        needs.insert(name, depends);
        if essential == "yes" || priority == "required" {
            wanted.push(name);
        }
    }
    let mut chosen = BTreeSet::new();
    while let Some(name) = wanted.pop() {
        let Some(depends) = needs.get(name) else { continue };
        if chosen.insert(name) {
            let names = depends.split([',', '|']).filter_map(|need| need.split_whitespace().next());
            wanted.extend(names.map(|need| need.split(':').next().unwrap_or(need)));
        }
    }
    let listed = Command::new("dpkg-query").arg("-L").args(&chosen).output()?;
    let listed = String::from_utf8(listed.stdout)?;
    let mut paths = BTreeSet::new();
    for path in listed.lines().filter(|line| line.starts_with('/') && *line != "/.") {
        let inner = path.trim_start_matches('/');
        let first = inner.split('/').next().unwrap_or_default();
        if MERGED.contains(&inner) {
            continue;
        }
        let merged = MERGED.contains(&first);
        paths.insert(if merged { format!("usr/{inner}") } else { inner.to_owned() });
    }
    // Made when packages are installed, and in none of them.
    for made in ["etc/ssl/certs/ca-certificates.crt", "usr/bin/awk"] {
        paths.insert(made.to_owned());
    }
    let kept = |path: &&String| {
        let skipped = ["usr/share/doc/", "usr/share/man/", "usr/share/locale/", "usr/share/info/"];
        !skipped.iter().any(|skipped| path.starts_with(skipped))
            && Path::new("/").join(path).symlink_metadata().is_ok()
    };
    let mut text = String::new();
    for path in paths.iter().filter(kept) {
        writeln!(text, "{path}")?;
    }
    Ok(text)
}

impl Drop for Docker {
    fn drop(&mut self) {
        // It ends its containers and containerd first. What keeps a mount busy goes with it.
        let script = format!("kill {}", self.engine.id());
        drop(Command::new("sh").args(["-c", &script]).status());
        drop(self.engine.wait());
        drop(fs::remove_dir_all(&self.place));
    }
}
