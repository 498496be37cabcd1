//! scratch
use vaquero_sandbox::*;
#[tokio::test(flavor = "multi_thread")]
async fn scratch() {
    let dir = std::env::var("SCRATCH_DIR")
        .map(std::path::PathBuf::from)
        .unwrap_or_else(|_| tempfile::tempdir().unwrap().keep());
    let mut c = LocalConfig::new(dir);
    c.launcher_exe = env!("CARGO_BIN_EXE_sandbox-fixture").into();
    if std::env::var("SCRATCH_DEGRADED").is_ok() {
        c.limits_mode = LimitsMode::Degraded;
    }
    println!("{:#?}", probe(&c.launcher_exe).await);
    let p = LocalProvider::start(c).await.map_err(|e| format!("{e} {e:?}")).unwrap();
    println!("{:?}", p.capabilities());
    let script = std::env::var("SCRATCH").unwrap_or("id; mount; ls -la / /dev /etc; cat /proc/self/status | grep -E 'Cap|Sec|NoNew'; cat /proc/self/cgroup; ls -la /proc/1/; cat /proc/mounts|wc -l; ulimit -a; hostname; python3 -c 'print(1)'; node -e 'console.log(2)'; perl -e 'print 3'; git --version".into());
    let t = std::time::Instant::now();
    let s = p
        .ensure(
            &SandboxKey::default_of("sesn_1"),
            &SandboxSpec {
                generation: 1,
                epoch: 1,
                limits: Limits::default(),
                env: Default::default(),
            },
        )
        .await
        .unwrap();
    println!("ensure {:?}", t.elapsed());
    let r = s
        .run(
            "c1",
            Fence { epoch: 1, generation: 1 },
            "bash",
            &serde_json::json!({"command":script}),
            None,
        )
        .await
        .unwrap();
    println!("run {:?}", t.elapsed());
    for b in r.content {
        if let Block::Text { text } = b {
            println!("{text}");
        }
    }
    p.shutdown(false).await;
}
