//! Gives each sandbox its way out: the policy of its session, served on its sockets.

use crate::config::Config;
use std::{collections::BTreeMap, io, net::IpAddr, sync::Arc};
use tokio_util::sync::CancellationToken;
use vaquero_egress::{Addresses, Dialer, HostRule, Outlet, Policy};
use vaquero_sandbox::{Outbound, SandboxKey, Sockets, Uplink};

/// Serves the sockets of sandboxes.
#[derive(Debug)]
pub(crate) struct Egress {
    dialer: Arc<Dialer>,
}

impl Egress {
    pub(crate) fn new(config: &Config) -> Self {
        let addresses = Addresses { allowed: config.egress_allow_private() };
        Self { dialer: Arc::new(Dialer { addresses, known: hosts_of_tests() }) }
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

impl Uplink for Egress {
    fn serve(
        &self,
        key: &SandboxKey,
        outbound: &Outbound,
        sockets: Sockets,
        over: CancellationToken,
    ) -> io::Result<()> {
        let policy = match outbound {
            Outbound::Unrestricted => Policy::Unrestricted,
            Outbound::Limited(hosts) => {
                Policy::Limited(hosts.iter().filter_map(|host| HostRule::parse(host)).collect())
            }
        };
        // Addresses that another server invented must not mean other names here.
        let seed = getrandom::u32().map_err(io::Error::other)?;
        let outlet = Outlet::new(key.to_string(), policy, Arc::clone(&self.dialer), seed, over);
        let Sockets { proxy, catch_all, names } = sockets;
        outlet.serve(vaquero_egress::Sockets { proxy, catch_all, names })
    }
}
