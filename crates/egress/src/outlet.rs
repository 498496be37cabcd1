//! One sandbox's way out: three sockets, a policy, and a count of what passed and what did not.

use crate::{
    Authority, Dialer, Host, Injections, Policy, Refusal, inject::ForHost, names::Names, proxy,
    transparent,
};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use std::{
    fmt,
    future::Future,
    io, net,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, join},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, server::TlsStream};
use tokio_util::{
    io::{InspectReader, InspectWriter},
    sync::CancellationToken,
    task::TaskTracker,
};
use vaquero_types::sandbox::Traffic;

/// Connections of one sandbox at once, to any of its sockets.
const CONNECTIONS: usize = 256;
/// Questions to the name server at once.
const QUESTIONS: usize = 64;
/// Names of one sandbox that are looked up at once: each lookup keeps a thread of the server.
const LOOKUPS: usize = 8;
/// KiB of bodies of one sandbox that are held at once.
pub(crate) const HELD_KIB: usize = 16 << 10;
/// What the two versions of HTTP are called in TLS.
pub(crate) const HTTP_1: &[u8] = b"http/1.1";
pub(crate) const HTTP_2: &[u8] = b"h2";
/// Largest question.
const DATAGRAM: usize = 1_500;

/// The sockets inside a sandbox, listening.
#[derive(Debug)]
pub struct Sockets {
    /// An HTTP proxy.
    pub proxy: net::TcpListener,
    /// Where connections to any address end up.
    pub catch_all: net::TcpListener,
    /// A name server.
    pub names: net::UdpSocket,
}

#[derive(Debug, Default)]
struct Counters {
    connections: AtomicU64,
    refusals: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

/// What a way out is like.
#[derive(Debug)]
pub struct Plan {
    /// Whose it is, for logs.
    pub label: String,
    /// What the sandbox may reach.
    pub policy: Policy,
    /// Resolves and dials.
    pub dialer: Arc<Dialer>,
    /// Any number that another server is unlikely to have.
    pub seed: u32,
    /// Puts in secrets, if the sandbox has the use of any.
    pub injector: Option<Injector>,
}

/// How hosts are trusted.
pub type TrustedHosts = Arc<ClientConfig>;

/// What secrets are put in with.
pub struct Injector {
    source: Arc<dyn Injections>,
    towards_sandbox: TlsAcceptor,
    /// With HTTP/1.1 alone, and with HTTP/2 where the host speaks it.
    towards_hosts: [TlsConnector; 2],
}

impl fmt::Debug for Outlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outlet").field("label", &self.label).finish_non_exhaustive()
    }
}

impl fmt::Debug for Injector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Injector").field("source", &self.source).finish_non_exhaustive()
    }
}

impl Injector {
    /// Opens TLS with this authority; `trust` is how hosts are trusted.
    pub fn new(
        authority: &Arc<Authority>,
        source: Arc<dyn Injections>,
        trust: TrustedHosts,
    ) -> Result<Self, rustls::Error> {
        Ok(Self {
            source,
            towards_sandbox: TlsAcceptor::from(authority.server_config()?),
            towards_hosts: [&[HTTP_1][..], &[HTTP_2, HTTP_1]].map(|protocols| {
                let mut config = ClientConfig::clone(&trust);
                config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
                TlsConnector::from(Arc::new(config))
            }),
        })
    }
}

/// Trusts hosts whose certificates come from these roots.
pub fn trust(roots: RootCertStore) -> Result<TrustedHosts, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Trusts hosts as this machine does.
pub fn system_trust() -> Result<TrustedHosts, rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    trust(roots)
}

/// A connection's place among those a sandbox may have, until the last part of the connection is gone: a tunnel outlives the request that asked for it.
pub(crate) type Place = Arc<OwnedSemaphorePermit>;

/// One sandbox's way out.
pub struct Outlet {
    label: String,
    pub(crate) policy: Policy,
    dialer: Arc<Dialer>,
    injector: Option<Injector>,
    names: Names,
    counters: Counters,
    places: Arc<Semaphore>,
    lookups: Semaphore,
    pub(crate) held: Semaphore,
    tasks: TaskTracker,
    until: CancellationToken,
}

/// A connection to a host, whatever is between.
pub(crate) trait Upstream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Upstream for T {}

impl Outlet {
    /// A way out, until the token is cancelled.
    pub fn new(plan: Plan, until: CancellationToken) -> Arc<Self> {
        let Plan { label, policy, dialer, seed, injector } = plan;
        Arc::new(Self {
            label,
            policy,
            dialer,
            injector,
            names: Names::new(seed),
            counters: Counters::default(),
            places: Arc::new(Semaphore::new(CONNECTIONS)),
            lookups: Semaphore::new(LOOKUPS),
            held: Semaphore::new(HELD_KIB),
            tasks: TaskTracker::new(),
            until,
        })
    }

    /// What it has done so far.
    pub fn traffic(&self) -> Traffic {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Traffic {
            connections: of(&self.counters.connections),
            refusals: of(&self.counters.refusals),
            sent_bytes: of(&self.counters.sent),
            received_bytes: of(&self.counters.received),
        }
    }

    /// Begins to answer on the sockets.
    pub fn serve(self: &Arc<Self>, sockets: Sockets) -> io::Result<()> {
        let Sockets { proxy, catch_all, names } = sockets;
        proxy.set_nonblocking(true)?;
        catch_all.set_nonblocking(true)?;
        names.set_nonblocking(true)?;
        let (proxy, catch_all) = (TcpListener::from_std(proxy)?, TcpListener::from_std(catch_all)?);
        let names = Arc::new(UdpSocket::from_std(names)?);
        self.spawn(Arc::clone(self).accept(proxy, |outlet, stream, place| async move {
            proxy::serve(&outlet, stream, place).await;
        }));
        self.spawn(Arc::clone(self).accept(catch_all, |outlet, stream, place| async move {
            transparent::serve(&outlet, stream, place).await;
        }));
        self.spawn(Arc::clone(self).answer(names));
        Ok(())
    }

    /// Begins to answer clients that know they speak to a proxy, as they come.
    pub fn serve_streams<S>(self: &Arc<Self>, mut streams: mpsc::Receiver<S>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let outlet = Arc::clone(self);
        self.spawn(async move {
            while let Some(stream) = streams.recv().await {
                let Some(place) = outlet.place() else { continue };
                let served = Arc::clone(&outlet);
                outlet.spawn(async move { proxy::serve(&served, stream, place).await });
            }
        });
    }

    /// Runs something for as long as the sandbox has its way out.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let until = self.until.clone();
        self.tasks.spawn(async move {
            until.run_until_cancelled(task).await;
        });
    }

    async fn accept<F>(
        self: Arc<Self>,
        listener: TcpListener,
        serve: fn(Arc<Self>, TcpStream, Place) -> F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                // Out of descriptors, perhaps: the next moment may be better.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let Some(place) = self.place() else { continue };
            drop(stream.set_nodelay(true));
            let outlet = Arc::clone(&self);
            self.spawn(serve(outlet, stream, place));
        }
    }

    /// A place for one connection; none when all are taken.
    pub(crate) fn place(&self) -> Option<Place> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok().map(Arc::new);
        if place.is_none() {
            self.count_refusal(&Refusal::TooMany);
        }
        place
    }

    async fn answer(self: Arc<Self>, socket: Arc<UdpSocket>) {
        let places = Arc::new(Semaphore::new(QUESTIONS));
        let mut buffer = vec![0; DATAGRAM];
        loop {
            let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let (question, socket, outlet) =
                (buffer[..length].to_vec(), Arc::clone(&socket), Arc::clone(&self));
            self.spawn(async move {
                let answer = outlet.answer_to(&question).await;
                if let Some(answer) = answer {
                    // A program that does not hear it asks again.
                    drop(socket.send_to(&answer, from).await);
                }
                drop(place);
            });
        }
    }

    async fn answer_to(&self, question: &[u8]) -> Option<Vec<u8>> {
        // Under `limited`, nothing is looked up.
        let _turn = if self.policy.inspects() { None } else { self.lookups.acquire().await.ok() };
        self.names.answer(question, &self.policy, &self.dialer).await
    }

    /// The name an address of this sandbox's own name server stands for.
    pub(crate) fn name_of(&self, address: net::Ipv4Addr) -> Option<String> {
        self.names.name_of(address)
    }

    /// Connects to a host, if the sandbox may reach it.
    pub(crate) async fn dial(&self, host: &Host, port: u16) -> Result<TcpStream, Refusal> {
        self.policy.check(host)?;
        let addresses = {
            let _turn = self.lookups.acquire().await;
            self.dialer.resolve(host, port).await?
        };
        let stream = self.dialer.connect(host, &addresses).await?;
        self.counters.connections.fetch_add(1, Ordering::Relaxed);
        metrics::counter!("vaquero_egress_connections_total").increment(1);
        tracing::debug!(sandbox = self.label, %host, port, "a sandbox reaches a host");
        Ok(stream)
    }

    /// The secrets that are for a host.
    pub(crate) async fn secrets(&self, host: &Host) -> Option<ForHost> {
        let injector = self.injector.as_ref()?;
        ForHost::of(&injector.source.now().await, host)
    }

    /// Answers TLS in the host's place; none if that is not possible.
    pub(crate) async fn open_tls<C>(&self, client: C) -> Option<TlsStream<C>>
    where
        C: AsyncRead + AsyncWrite + Unpin,
    {
        // A client that does not trust the sandbox's authority hangs up here, and says why.
        self.injector.as_ref()?.towards_sandbox.accept(client).await.ok()
    }

    /// Speaks TLS to a host over a connection to it; whether HTTP/2 is spoken in it, if that is wanted.
    pub(crate) async fn in_tls(
        self: &Arc<Self>,
        stream: TcpStream,
        host: &Host,
        http2: bool,
    ) -> Result<(impl Upstream + 'static, bool), Refusal> {
        let unreachable = |why: String| Refusal::Unreachable(host.clone(), why);
        let name =
            ServerName::try_from(host.to_string()).map_err(|e| unreachable(e.to_string()))?;
        let Some(injector) = &self.injector else {
            return Err(unreachable("nothing here speaks TLS".to_owned()));
        };
        let connector = &injector.towards_hosts[usize::from(http2)];
        let connected = connector.connect(name, self.counted(stream)).await;
        let stream = connected.map_err(|error| unreachable(error.to_string()))?;
        let http2 = stream.get_ref().1.alpn_protocol() == Some(HTTP_2);
        Ok((stream, http2))
    }

    /// The connection, with what passes over it counted.
    pub(crate) fn counted(
        self: &Arc<Self>,
        upstream: TcpStream,
    ) -> impl AsyncRead + AsyncWrite + Unpin + Send + 'static {
        let (read, write) = upstream.into_split();
        let (reader, writer) = (Arc::clone(self), Arc::clone(self));
        join(
            InspectReader::new(read, move |bytes: &[u8]| {
                reader.counters.received.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                metrics::counter!("vaquero_egress_received_bytes_total")
                    .increment(bytes.len() as u64);
            }),
            InspectWriter::new(write, move |bytes: &[u8]| {
                writer.counters.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                metrics::counter!("vaquero_egress_sent_bytes_total").increment(bytes.len() as u64);
            }),
        )
    }

    /// Notes that a connection was refused.
    pub(crate) fn refused(&self, host: &Host, port: u16, refusal: &Refusal) {
        self.count_refusal(refusal);
        tracing::debug!(sandbox = self.label, %host, port, %refusal, "a sandbox does not reach a host");
    }

    fn count_refusal(&self, refusal: &Refusal) {
        self.counters.refusals.fetch_add(1, Ordering::Relaxed);
        metrics::counter!("vaquero_egress_refusals_total", "reason" => refusal.reason())
            .increment(1);
    }
}
