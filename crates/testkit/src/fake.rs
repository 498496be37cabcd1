//! The fakes of those who offer machines: `tests/fakes`, each held to its vendor's own SDK there.

use crate::Server;
use std::{
    fs,
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// A fake, for as long as the value lives.
#[derive(Debug)]
pub struct Fake {
    /// Where it listens.
    pub base: String,
    name: String,
    child: Child,
}

impl Fake {
    /// Starts one by its name; none where it cannot be.
    pub fn start(name: &str) -> Option<Self> {
        let python = std::env::var("VAQUERO_TEST_FAKES").expect(
            "`cargo xtask fakes` makes the Python that runs them; VAQUERO_TEST_FAKES=none leaves them out",
        );
        if python == "none" {
            return None;
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../tests/fakes")
            .join(PathBuf::from(format!("fake_{name}.py")));
        let mut child = Command::new(python)
            .arg(script)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the fake starts");
        let mut line = String::new();
        let output = child.stdout.take().expect("it is piped");
        BufReader::new(output).read_line(&mut line).expect("it says where it listens");
        let base = line.trim().rsplit(' ').next().unwrap_or_default().to_owned();
        assert!(base.starts_with("http"), "the fake says `{line}`");
        Some(Self { base, name: name.to_owned(), child })
    }

    /// Tells a server, which is not started yet, that this is the service.
    pub fn equip(&self, server: &mut Server) -> io::Result<()> {
        let api = format!("{}/api", self.base);
        let settings: &[(&str, &str)] = match self.name.as_str() {
            "kubernetes" => {
                let kubeconfig = server.data().join("kubeconfig");
                fs::write(&kubeconfig, self.kubeconfig())?;
                server.set("KUBECONFIG", &kubeconfig.display().to_string());
                &[]
            }
            "e2b" => &[
                ("E2B_API_KEY", "e2b_test"),
                ("E2B_API_URL", &self.base),
                ("E2B_SANDBOX_URL", &self.base),
            ],
            "daytona" => &[("DAYTONA_API_KEY", "dtn_test"), ("DAYTONA_API_URL", &api)],
            _ => &[
                ("MODAL_TOKEN_ID", "ak-test"),
                ("MODAL_TOKEN_SECRET", "as-test"),
                ("MODAL_SERVER_URL", &self.base),
            ],
        };
        for (setting, value) in settings {
            server.set(&format!("VAQUERO_{setting}"), value);
        }
        Ok(())
    }

    /// How Kubernetes' clients find the fake of a cluster.
    pub fn kubeconfig(&self) -> String {
        let config = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "fake",
            "clusters": [{ "name": "fake", "cluster": { "server": self.base } }],
            "users": [{ "name": "fake", "user": { "token": "good" } }],
            "contexts": [{ "name": "fake", "context": { "cluster": "fake", "user": "fake" } }],
        });
        config.to_string()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        // It ends with its input, and its machines with it.
        drop(self.child.stdin.take());
        drop(self.child.wait());
    }
}
