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
    let mut b = measure_bare(&c.launcher_exe, 200).await.unwrap();
    b.sort();
    println!("bare median {:?} min {:?} p90 {:?}", b[100], b[0], b[180]);
    let p = LocalProvider::start(c).await.map_err(|e| format!("{e} {e:?}")).unwrap();
    let (mut e, mut r, mut s) = (vec![], vec![], vec![]);
    for i in 0..200 {
        let t = std::time::Instant::now();
        let k = SandboxKey::default_of(format!("sesn_{i}"));
        let x = p
            .ensure(
                &k,
                &SandboxSpec {
                    generation: 1,
                    epoch: 1,
                    limits: Limits::default(),
                    env: Default::default(),
                },
            )
            .await
            .unwrap();
        e.push(t.elapsed());
        x.run(
            "c1",
            Fence { epoch: 1, generation: 1 },
            "bash",
            &serde_json::json!({"command":"true"}),
            None,
        )
        .await
        .unwrap();
        r.push(t.elapsed());
        p.stop(&k).await.unwrap();
        s.push(t.elapsed());
    }
    for v in [&mut e, &mut r, &mut s] {
        v.sort();
        println!("median {:?} min {:?} p90 {:?}", v[100], v[0], v[180]);
    }
    let t = std::time::Instant::now();
    let all = (0..50)
        .map(|i| {
            let p = p.clone();
            async move {
                let k = SandboxKey::default_of(format!("many_{i}"));
                let x = p
                    .ensure(
                        &k,
                        &SandboxSpec {
                            generation: 1,
                            epoch: 1,
                            limits: Limits::default(),
                            env: Default::default(),
                        },
                    )
                    .await
                    .unwrap();
                x.run(
                    "c1",
                    Fence { epoch: 1, generation: 1 },
                    "bash",
                    &serde_json::json!({"command":"true"}),
                    None,
                )
                .await
                .unwrap();
            }
        })
        .map(tokio::spawn)
        .collect::<Vec<_>>();
    for a in all {
        a.await.unwrap();
    }
    println!("50 at once {:?}", t.elapsed());
    let t = std::time::Instant::now();
    println!("reap {:?}", p.reap(&Default::default()).await);
    println!("{:?}", t.elapsed());
    p.shutdown(false).await;
}
