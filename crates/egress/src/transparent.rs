//! The catch-all: connections of programs that know of no proxy. The kernel has turned them here and remembers where they were to go: to an address that the sandbox's name
//! server has invented for a name, or to one that the program has from elsewhere.

use crate::{
    Host, Refusal,
    host::Destination,
    inspect,
    names::Names,
    outlet::{Outlet, Place},
    tunnel,
};
use std::{sync::Arc, time::Duration};
use tokio::{io::split, net::TcpStream, time::timeout};

/// How long to wait for the first bytes of a connection that is refused, to refuse it in its protocol.
const OPENING: Duration = Duration::from_secs(2);

pub(crate) async fn serve(outlet: &Arc<Outlet>, client: TcpStream, place: Place) {
    let Ok(wanted) = rustix::net::sockopt::ip_original_dst(&client) else { return };
    let port = wanted.port();
    let host = match outlet.name_of(*wanted.ip()) {
        Some(name) => Host::Name(name),
        None => Host::Address((*wanted.ip()).into()),
    };
    let reached = match &host {
        Host::Address(_) if Names::is_invented(*wanted.ip()) => {
            Err(Refusal::Malformed("that address was for a moment only: look the name up again"))
        }
        host => outlet.dial(host, port).await,
    };
    match reached {
        Ok(upstream) => {
            let to = Destination { host, port };
            tunnel::run(Arc::clone(outlet), client, to, upstream, place).await;
        }
        Err(refusal) => {
            outlet.refused(&host, port, &refusal);
            let (mut from, mut back) = split(client);
            // Something that waits for the host to speak first learns nothing but the end.
            if let Ok(Ok(opening)) = timeout(OPENING, inspect::open(&mut from, Vec::new())).await {
                inspect::refuse(&mut back, &opening.kind, &refusal).await;
            }
        }
    }
}
