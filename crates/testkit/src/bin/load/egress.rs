//! How fast a large body comes to a client: from its host directly, through a sandbox's way out, and with its TLS opened and searched for a secret. All in this process, so
//! that both ends and the egress share its cores.

use crate::{Args, machine::Times};
use anyhow::Context;
use async_trait::async_trait;
use futures::StreamExt;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject},
};
use std::{
    net::{self, IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use vaquero_egress::{
    Addresses, Authority, By, Dialer, HostRule, Injection, Injections, Injector, Outlet, Plan,
    Policy, Sockets, trust,
};
use vaquero_types::SystemClock;

const HOST: &str = "host.test";
const MEGABYTE: usize = 1 << 20;

#[derive(Debug)]
struct Fixed(Arc<[Injection]>);

#[async_trait]
impl Injections for Fixed {
    async fn now(&self) -> Arc<[Injection]> {
        Arc::clone(&self.0)
    }
}

struct Host {
    at: SocketAddr,
    root: CertificateDer<'static>,
}

/// Answers every request with as many megabytes.
async fn host(megabytes: usize) -> anyhow::Result<Host> {
    let (root_key, leaf_key) = (KeyPair::generate()?, KeyPair::generate()?);
    let mut root = CertificateParams::new(Vec::new())?;
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = root.self_signed(&root_key)?.der().clone();
    let leaf = CertificateParams::new(vec![HOST.to_owned()])?;
    let leaf = leaf.signed_by(&leaf_key, &Issuer::new(root, root_key))?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf_key.serialize_der()));
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let at = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut stream = acceptor.accept(stream).await?;
                let body: Vec<u8> =
                    b"abcdefghijklmnopqrstuvw".iter().copied().cycle().take(MEGABYTE).collect();
                loop {
                    if stream.read(&mut [0; 4096]).await? == 0 {
                        return anyhow::Ok(());
                    }
                    let length = megabytes * MEGABYTE;
                    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
                    stream.write_all(head.as_bytes()).await?;
                    for _ in 0..megabytes {
                        stream.write_all(&body).await?;
                    }
                }
            });
        }
    });
    Ok(Host { at, root: certificate })
}

pub(crate) async fn measure(args: &Args) -> anyhow::Result<()> {
    vaquero_model::choose_crypto();
    let megabytes = args.count(256);
    let host = host(megabytes).await?;
    println!("a body of {megabytes} MB over TLS on loopback, MB per second:");
    println!("  directly: {:.0}", rate(&host, megabytes, None).await?);
    for (name, opens) in [("through the egress", false), ("opened and searched for a secret", true)]
    {
        println!("  {name}: {:.0}", rate(&host, megabytes, Some(opens)).await?);
    }
    let mut requests = [Times::default(), Times::default()];
    for (times, opens) in requests.iter_mut().zip([false, true]) {
        let small = self::host(0).await?;
        let (client, _until) = client(&small, Some(opens))?;
        for _ in 0..args.count(1_000) {
            let started = Instant::now();
            client.get(format!("https://{HOST}:{}/", small.at.port())).send().await?;
            times.0.push(started.elapsed());
        }
    }
    let [through, opened] = &mut requests;
    println!("  an empty answer on an open connection, through: {}", through.line());
    println!("  the same, opened: {}", opened.line());
    Ok(())
}

/// A client of the host: directly, or by a way out that opens its TLS or does not.
fn client(
    host: &Host,
    egress: Option<bool>,
) -> anyhow::Result<(reqwest::Client, Option<tokio_util::sync::DropGuard>)> {
    let mut roots = RootCertStore::empty();
    roots.add(host.root.clone())?;
    let mut builder = reqwest::Client::builder().no_proxy().resolve(HOST, host.at);
    let mut until = None;
    if let Some(opens) = egress {
        let authority = Arc::new(Authority::new(Arc::new(SystemClock))?);
        let secret = Injection {
            secret: "a secret that nobody sends".to_owned(),
            hosts: Some(vec![HostRule::parse(HOST).context("a host")?]),
            by: By::Placeholder {
                placeholder: "vaquero_placeholder_of_the_load_program".to_owned(),
                header: true,
                body: true,
            },
        };
        let source = Arc::new(Fixed(Arc::from(if opens { vec![secret] } else { Vec::new() })));
        let injector = Injector::new(&authority, source, trust(roots.clone())?)?;
        let known = [(HOST.to_owned(), vec![IpAddr::from([127, 0, 0, 1])])].into();
        let addresses = Addresses { allowed: vec!["127.0.0.1/32".parse()?] };
        let plan = Plan {
            label: "load".to_owned(),
            policy: Policy::Limited(vec![HostRule::parse(HOST).context("a host")?]),
            dialer: Arc::new(Dialer { addresses, known }),
            seed: 0,
            injector: Some(injector),
        };
        let token = CancellationToken::new();
        let bind = || net::TcpListener::bind("127.0.0.1:0");
        let (proxy, catch_all, names) = (bind()?, bind()?, net::UdpSocket::bind("127.0.0.1:0")?);
        let at = proxy.local_addr()?;
        Outlet::new(plan, token.clone()).serve(Sockets { proxy, catch_all, names })?;
        roots.add(CertificateDer::from_pem_slice(authority.certificate().as_bytes())?)?;
        builder = builder.proxy(reqwest::Proxy::all(format!("http://{at}"))?);
        until = Some(token.drop_guard());
    }
    let tls = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    Ok((builder.use_preconfigured_tls(tls).build()?, until))
}

async fn rate(host: &Host, megabytes: usize, egress: Option<bool>) -> anyhow::Result<f64> {
    let (client, _until) = client(host, egress)?;
    let mut best: f64 = 0.0;
    for _ in 0..3 {
        let started = Instant::now();
        let answer = client.get(format!("https://{HOST}:{}/", host.at.port())).send().await?;
        let mut body = answer.bytes_stream();
        let mut received = 0;
        while let Some(piece) = body.next().await {
            received += piece?.len();
        }
        anyhow::ensure!(received == megabytes * MEGABYTE, "{received} bytes came");
        let whole = f64::from(u32::try_from(megabytes)?);
        best = best.max(whole / started.elapsed().as_secs_f64());
    }
    Ok(best)
}
