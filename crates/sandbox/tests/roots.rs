//! Root file systems that the operator chose: a directory, a tarball, an image in OCI layout. None of them needs the libraries of a hand.
#![expect(clippy::unwrap_used, reason = "helpers of tests may fail as tests do")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use sha2::{Digest, Sha256};
use vaquero_sandbox::{
    Block, ComputeProvider, Fence, Limits, LimitsMode, LocalConfig, LocalProvider, Provision,
    Sandbox, SandboxError, SandboxKey, SandboxSpec,
};
use vaquero_types::{WorkspaceId, environment::Packages};

fn config(dir: &Path, root: &Path) -> LocalConfig {
    let mut config = LocalConfig::new(dir);
    config.launcher_exe = PathBuf::from(env!("CARGO_BIN_EXE_sandbox-fixture"));
    config.linger = Duration::from_mins(1);
    config.root = Some(root.to_owned());
    if !rustix::process::geteuid().is_root() {
        config.limits_mode = LimitsMode::Degraded;
    }
    config
}

fn spec(provision: Option<Provision>) -> SandboxSpec {
    SandboxSpec { provision: provision.map(Arc::new), ..SandboxSpec::new(1, 1, Limits::default()) }
}

async fn sh(sandbox: &dyn Sandbox, command: &str) -> String {
    let fence = Fence { epoch: 1, generation: sandbox.generation() };
    let input = json!({ "command": command });
    let result = sandbox.run("call", fence, "bash", &input, None).await.unwrap();
    let texts = result.content.into_iter().filter_map(|block| match block {
        Block::Text { text } => Some(text),
        Block::Image { .. } | Block::Document { .. } => None,
    });
    texts.collect::<String>().trim().to_owned()
}

/// A small system: a shell and a few programs of this machine, with what they were linked with.
fn system(root: &Path) {
    for dir in ["usr/bin", "usr/lib64", "etc", "var"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    for link in ["bin", "lib64"] {
        symlink(format!("usr/{link}"), root.join(link)).unwrap();
    }
    for program in ["bash", "cat", "ls", "mkdir", "rm", "touch"] {
        let path = ["/usr/bin", "/bin"].map(|dir| Path::new(dir).join(program));
        let path = path.into_iter().find(|path| path.exists()).unwrap();
        fs::copy(&path, root.join("usr/bin").join(program)).unwrap();
        let traced = Command::new("/lib64/ld-linux-x86-64.so.2").arg("--list").arg(&path).output();
        for line in String::from_utf8_lossy(&traced.unwrap().stdout).lines() {
            let Some((left, _)) = line.trim().rsplit_once(" (") else { continue };
            let library = Path::new(left.split(" => ").last().unwrap());
            if library.is_absolute() {
                let name = library.file_name().unwrap();
                fs::copy(library, root.join("usr/lib64").join(name)).unwrap();
                let place = root.join(library.parent().unwrap().strip_prefix("/").unwrap());
                fs::create_dir_all(&place).unwrap();
                fs::copy(library, place.join(name)).unwrap();
            }
        }
    }
    fs::write(root.join("etc/os-release"), "NAME=Chosen\n").unwrap();
}

/// What is seen in a sandbox on this root, and that it holds layers as the host's does.
async fn look(root: &Path) -> String {
    let dir = tempfile::tempdir().unwrap();
    let provider = LocalProvider::start(config(dir.path(), root), None).await.unwrap();
    let sandbox = provider.ensure(&SandboxKey::default_of("plain"), &spec(None)).await.unwrap();
    let command = "cat /etc/os-release /etc/hostname; ls /usr/bin; ls / | cat; touch /etc/x 2>&1; echo mine >file; cat file";
    let seen = sh(&*sandbox, command).await;
    let sandbox = provider.ensure(&SandboxKey::default_of("hand"), &spec(None)).await.unwrap();
    let said = sh(&*sandbox, "for f in environ maps mem; do cat /proc/1/$f 2>&1; done").await;
    assert_eq!(said.matches("Permission denied").count(), 3, "{said}");
    let provision = Provision {
        workspace: WorkspaceId::from_wire("wrkspc_1"),
        packages: Packages::default(),
        setup: vec!["echo more >/etc/more; rm /usr/bin/ls".to_owned()],
        env: BTreeMap::new(),
    };
    let layered = spec(Some(provision));
    let sandbox = provider.ensure(&SandboxKey::default_of("layered"), &layered).await.unwrap();
    let said = sh(&*sandbox, "cat /etc/more; ls 2>&1; cat /etc/os-release").await;
    assert!(said.starts_with("more\n") && said.contains("ls: command not found"), "{said}");
    assert!(said.ends_with("NAME=Chosen"), "{said}");
    provider.shutdown(false).await;
    seen
}

const SEEN: &str = "NAME=Chosen\nsandbox\nbash\ncat\nls\nmkdir\nrm\ntouch\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_a_tarball_and_an_image_are_all_the_same_inside() {
    if !cfg!(target_arch = "x86_64") {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("root");
    system(&root);
    let from_directory = look(&root).await;
    assert!(
        from_directory.starts_with(SEEN) && from_directory.ends_with("Read-only file system\nmine"),
        "{from_directory}"
    );
    assert!(!from_directory.contains("home"), "nothing of the host: {from_directory}");

    let tarball = place.path().join("root.tar.gz");
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(&root).arg("-czf").arg(&tarball).arg(".");
    assert!(tar.status().unwrap().success());
    assert_eq!(look(&tarball).await, from_directory);

    let layout = place.path().join("image");
    let upper = place.path().join("upper");
    fs::create_dir_all(upper.join("usr/bin")).unwrap();
    fs::create_dir_all(upper.join("etc")).unwrap();
    // A layer that removes what another one brought, and what leads outside.
    fs::write(root.join("usr/bin/extra"), "x").unwrap();
    fs::write(upper.join("usr/bin/.wh.extra"), "").unwrap();
    fs::write(upper.join("etc/.wh...wh."), "").unwrap();
    image(&layout, &[&root, &upper]);
    assert_eq!(look(&layout).await, from_directory);
}

/// An image in OCI layout whose layers are these directories.
fn image(layout: &Path, layers: &[&Path]) {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let digest = format!("{:x}", Sha256::digest(bytes));
        fs::write(blobs.join(&digest), bytes).unwrap();
        format!("sha256:{digest}")
    };
    let layers: Vec<_> = layers
        .iter()
        .map(|layer| {
            let packed = Command::new("tar").arg("-C").arg(layer).args(["-cf", "-", "."]).output();
            let digest = put(&packed.unwrap().stdout);
            json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": 0 })
        })
        .collect();
    let manifest = put(json!({ "schemaVersion": 2, "layers": layers }).to_string().as_bytes());
    let here = json!({ "architecture": "amd64", "os": "linux" });
    let other = json!({ "architecture": "sparc", "os": "linux" });
    let inner = put(json!({ "manifests": [
        { "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": format!("sha256:{}", "0".repeat(64)), "platform": other },
        { "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest, "platform": here },
    ] }).to_string().as_bytes());
    let index = json!({ "manifests": [{ "mediaType": "application/vnd.oci.image.index.v1+json", "digest": inner }] });
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_root_file_system_is_refused_with_the_reason() {
    let place = tempfile::tempdir().unwrap();
    let empty = place.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let junk = place.path().join("junk.tar");
    fs::write(&junk, vec![7; 4096]).unwrap();
    let forged = place.path().join("forged");
    image(&forged, &[&empty]);
    for blob in fs::read_dir(forged.join("blobs/sha256")).unwrap().flatten() {
        let text = fs::read(blob.path()).unwrap();
        if String::from_utf8_lossy(&text).contains("layers") {
            fs::write(blob.path(), b"{\"layers\":[] }").unwrap();
        }
    }
    for (root, word) in [
        (place.path().join("nowhere"), "there is no root file system"),
        (PathBuf::from("/"), "holds this server's own files"),
        (empty, "has no /bin/bash"),
        (junk, "cannot be used"),
        (forged, "is not what its name says"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let refused = LocalProvider::start(config(dir.path(), &root), None).await.err().unwrap();
        let SandboxError::Unavailable { what, fix } = refused else { panic!("{refused}") };
        assert!(what.contains(word) && !fix.is_empty(), "{what}");
    }
}
