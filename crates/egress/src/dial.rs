//! From a host to a connection: the name is resolved once, every address of it is checked, and what is dialled is an address that was. Nobody can answer differently
//! between the check and the use.

use crate::{Addresses, Host, Refusal, address::is_metadata};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};

/// How long looking a name up may take.
const LOOKUP: Duration = Duration::from_secs(10);
/// How long one address may take to answer.
const CONNECT: Duration = Duration::from_secs(6);
/// Most addresses of a name that are tried.
const ADDRESSES: usize = 8;

/// Resolves and dials.
#[derive(Clone, Debug, Default)]
pub struct Dialer {
    /// What may be dialled.
    pub addresses: Addresses,
    /// Names whose addresses are not asked of the host's resolver.
    pub known: BTreeMap<String, Vec<IpAddr>>,
}

impl Dialer {
    /// The addresses of a host that may be dialled.
    pub async fn resolve(&self, host: &Host, port: u16) -> Result<Vec<SocketAddr>, Refusal> {
        let found = match host {
            Host::Address(address) => vec![*address],
            Host::Name(name) => self.look_up(name).await,
        };
        if found.is_empty() {
            return Err(Refusal::NoAddress(host.clone()));
        }
        if found.iter().copied().all(is_metadata) {
            return Err(Refusal::Metadata(host.clone()));
        }
        let permitted = found.into_iter().filter(|address| self.addresses.permit(*address));
        let permitted: Vec<SocketAddr> =
            permitted.take(ADDRESSES).map(|address| SocketAddr::new(address, port)).collect();
        if permitted.is_empty() { Err(Refusal::Private(host.clone())) } else { Ok(permitted) }
    }

    async fn look_up(&self, name: &str) -> Vec<IpAddr> {
        if let Some(known) = self.known.get(name) {
            return known.clone();
        }
        // The dot keeps the resolver from trying the host's own search domains.
        let absolute = format!("{name}.");
        match timeout(LOOKUP, lookup_host((absolute.as_str(), 0))).await {
            Ok(Ok(found)) => found.map(|address| address.ip()).collect(),
            Ok(Err(_)) | Err(_) => Vec::new(),
        }
    }

    /// Whether the name exists.
    pub(crate) async fn exists(&self, name: &str) -> bool {
        !self.look_up(name).await.is_empty()
    }

    /// Connects to a host at one of its addresses, which were checked.
    pub(crate) async fn connect(
        &self,
        host: &Host,
        addresses: &[SocketAddr],
    ) -> Result<TcpStream, Refusal> {
        let mut last = "it does not answer".to_owned();
        for address in addresses {
            match timeout(CONNECT, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    // A slower connection is still one.
                    stream.set_nodelay(true).ok();
                    rustix::net::sockopt::set_socket_keepalive(&stream, true).ok();
                    return Ok(stream);
                }
                Ok(Err(error)) => last = error.to_string(),
                Err(_) => "it does not answer".clone_into(&mut last),
            }
        }
        Err(Refusal::Unreachable(host.clone(), last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dialer(addresses: &[&str]) -> Dialer {
        let addresses = addresses.iter().map(|text| text.parse().expect("an address")).collect();
        Dialer { known: [("a.example".to_owned(), addresses)].into(), ..Dialer::default() }
    }

    #[tokio::test]
    async fn only_checked_addresses_are_dialled() {
        let host = Host::parse("a.example").expect("a name");
        let mixed = dialer(&["127.0.0.1", "1.1.1.1", "10.0.0.1"]);
        let found = mixed.resolve(&host, 443).await.expect("one of them is public");
        assert_eq!(found, ["1.1.1.1:443".parse().expect("an address")]);
        let inside = dialer(&["127.0.0.1", "169.254.169.254"]);
        assert_eq!(inside.resolve(&host, 443).await, Err(Refusal::Private(host.clone())));
        let missing = Host::parse("nowhere.invalid").expect("a name");
        assert_eq!(dialer(&[]).resolve(&missing, 1).await, Err(Refusal::NoAddress(missing)));
    }
}
