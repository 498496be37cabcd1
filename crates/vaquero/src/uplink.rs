//! Gives each sandbox its way out: the policy of its session, served on its sockets, and the secrets of its vaults put in on the way.

use crate::{config::Config, vault_keys::VaultKeys};
use async_trait::async_trait;
use std::{
    collections::BTreeMap,
    fmt, io,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vaquero_egress::{
    Addresses, Authority, By, Dialer, HostRule, Injection, Injections, Injector, Outlet, Plan,
    Policy, TrustedHosts, system_trust,
};
use vaquero_sandbox::{
    Arrivals, Meter, Outbound, Reach, SandboxKey, Sockets, Traffic, Trust, Uplink, Vaults,
};
use vaquero_store::{SharedStore, StoreError};
use vaquero_types::{
    Clock,
    credential::{Auth, Credential, CredentialNetworking, InjectionLocation},
    vault::HttpHeaders,
};
use vaquero_vault::{Keyring, Keys, headers, secrets, variables};

/// How long secrets are used before they are read again: this long after a change the old ones may still be.
const FRESH: Duration = Duration::from_secs(2);
/// How long they are used when they cannot be read again.
const STALE: Duration = Duration::from_secs(60);

/// Serves the sockets of sandboxes.
pub(crate) struct Egress {
    dialer: Arc<Dialer>,
    trust: TrustedHosts,
    store: SharedStore,
    keys: Arc<Keys>,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Egress").field("dialer", &self.dialer).finish_non_exhaustive()
    }
}

impl Egress {
    pub(crate) fn new(
        config: &Config,
        store: SharedStore,
        vault: &VaultKeys,
        clock: Arc<dyn Clock>,
    ) -> anyhow::Result<Self> {
        let addresses = Addresses { allowed: config.egress_allow_private() };
        let dialer = Arc::new(Dialer { addresses, known: hosts_of_tests() });
        Ok(Self { dialer, trust: system_trust()?, store, keys: Arc::clone(&vault.keys), clock })
    }

    /// Puts in the secrets of some vaults.
    fn injector(&self, vaults: &Vaults, kept: &str) -> io::Result<Injector> {
        let clock = Arc::clone(&self.clock);
        let authority = Authority::from_kept(kept, clock).map_err(io::Error::other)?;
        let source = Secrets {
            store: Arc::clone(&self.store),
            keys: Arc::clone(&self.keys),
            vaults: vaults.clone(),
            read: Mutex::new(None),
        };
        let trust = Arc::clone(&self.trust);
        Injector::new(&Arc::new(authority), Arc::new(source), trust).map_err(io::Error::other)
    }
}

/// Names that tests give addresses: `name=address,…`.
fn hosts_of_tests() -> BTreeMap<String, Vec<IpAddr>> {
    let text = std::env::var("VAQUERO_TEST_HOSTS").unwrap_or_default();
    let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
    pairs
        .filter_map(|(name, address)| Some((name.to_owned(), vec![address.parse().ok()?])))
        .collect()
}

fn rules(hosts: &[String]) -> Vec<HostRule> {
    hosts.iter().filter_map(|host| HostRule::parse(host)).collect()
}

impl Uplink for Egress {
    fn authority(&self) -> io::Result<Trust> {
        let made = Authority::new(Arc::clone(&self.clock)).map_err(io::Error::other)?;
        Ok(Trust { certificate: made.certificate().to_owned(), kept: made.kept() })
    }

    fn serve(
        &self,
        key: &SandboxKey,
        outbound: &Outbound,
        kept: Option<&str>,
        arrivals: Arrivals,
        over: CancellationToken,
    ) -> io::Result<Arc<dyn Meter>> {
        let policy = match &outbound.reach {
            Reach::Unrestricted => Policy::Unrestricted,
            Reach::Limited(hosts) => Policy::Limited(rules(hosts)),
        };
        let injector = match (&outbound.vaults, kept) {
            (Some(vaults), Some(kept)) => Some(self.injector(vaults, kept)?),
            _ => None,
        };
        let plan = Plan {
            label: key.to_string(),
            policy,
            dialer: Arc::clone(&self.dialer),
            // Addresses that another server invented must not mean other names here.
            seed: getrandom::u32().map_err(io::Error::other)?,
            injector,
        };
        let outlet = Outlet::new(plan, over);
        match arrivals {
            Arrivals::Sockets(Sockets { proxy, catch_all, names }) => {
                outlet.serve(vaquero_egress::Sockets { proxy, catch_all, names })?;
            }
            Arrivals::Streams(streams) => outlet.serve_streams(streams),
        }
        Ok(Arc::new(Metered(outlet)))
    }
}

/// Counts of a way out.
#[derive(Debug)]
struct Metered(Arc<Outlet>);

impl Meter for Metered {
    fn so_far(&self) -> Traffic {
        self.0.traffic()
    }
}

/// The secrets of a session's vaults, read again every few seconds: what is changed or archived reaches sandboxes that run.
struct Secrets {
    store: SharedStore,
    keys: Arc<Keys>,
    vaults: Vaults,
    read: Mutex<Option<(Instant, Arc<[Injection]>)>>,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secrets").field("vaults", &self.vaults).finish_non_exhaustive()
    }
}

impl Secrets {
    fn known(&self, within: Duration) -> Option<Arc<[Injection]>> {
        let read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, injections) = read.as_ref()?;
        (at.elapsed() < within).then(|| Arc::clone(injections))
    }

    async fn open(&self) -> Result<Arc<[Injection]>, StoreError> {
        let ring = self.keys.get().inspect_err(|why| tracing::error!(why, "no secret opens")).ok();
        let (store, Vaults { workspace, ids }) = (self.store.as_ref(), &self.vaults);
        let mut injections = Vec::new();
        for (_, credential) in variables::of_vaults(store, workspace, ids).await? {
            if let Some(secret) = self.secret(ring.as_deref(), &credential, "secret_value").await? {
                injections.extend(by_placeholder(credential, secret));
            }
        }
        for (headers, credential) in headers::of_vaults(store, workspace, ids).await? {
            let secret = match &credential {
                Some(credential) => self.secret(ring.as_deref(), credential, "token").await?,
                None => None,
            };
            injections.extend(by_headers(&headers, secret));
        }
        Ok(injections.into())
    }

    async fn secret(
        &self,
        ring: Option<&Keyring>,
        credential: &Credential,
        field: &str,
    ) -> Result<Option<String>, StoreError> {
        let Some(ring) = ring else { return Ok(None) };
        let workspace = &self.vaults.workspace;
        secrets::open(self.store.as_ref(), ring, workspace, &credential.id, field).await
    }
}

fn by_placeholder(credential: Credential, secret: String) -> Option<Injection> {
    let placeholder = variables::placeholder(&credential.id);
    let Auth::EnvironmentVariable { networking, injection_location, .. } = credential.auth else {
        return None;
    };
    let hosts = match networking {
        CredentialNetworking::Unrestricted => None,
        CredentialNetworking::Limited { allowed_hosts } => Some(rules(&allowed_hosts)),
    };
    let InjectionLocation { header, body } = injection_location;
    Some(Injection { secret, hosts, by: By::Placeholder { placeholder, header, body } })
}

fn by_headers(headers: &HttpHeaders, secret: Option<String>) -> Option<Injection> {
    let hosts = Some(rules(&headers.hosts));
    let rendered = secret.as_deref().and_then(|token| headers.render(token));
    let by = match rendered {
        Some(rendered) => By::Headers { headers: rendered, tls: Some(headers.tls) },
        None if headers.required => By::Refusal,
        None => return None,
    };
    Some(Injection { secret: secret.unwrap_or_default(), hosts, by })
}

#[async_trait]
impl Injections for Secrets {
    async fn now(&self) -> Arc<[Injection]> {
        if let Some(known) = self.known(FRESH) {
            return known;
        }
        match self.open().await {
            Ok(injections) => {
                let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
                *read = Some((Instant::now(), Arc::clone(&injections)));
                injections
            }
            Err(error) => {
                tracing::error!(vaults = ?self.vaults.ids, %error, "secrets cannot be read");
                // Nobody knows which hosts should get one.
                let refusal = Injection { secret: String::new(), hosts: None, by: By::Refusal };
                self.known(STALE).unwrap_or_else(|| Arc::from([refusal]))
            }
        }
    }
}
