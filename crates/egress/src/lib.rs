//! The only way out of a sandbox. A sandbox has no route: what its programs send ends at three sockets inside its own network namespace, and this crate answers on
//! them, from outside: an HTTP proxy for programs that honour proxy variables, a name server that invents addresses, and a catch-all for programs that connect to those
//! addresses by themselves. Each connection is decided by the sandbox's [`Policy`], its name resolved once, and only the address that was checked is dialled. Towards hosts that a
//! secret is for, placeholders become secrets on the way out, and secrets are taken out of what comes back.

mod address;
mod authority;
mod dial;
mod host;
mod inject;
mod inspect;
mod names;
mod outlet;
mod policy;
mod proxy;
mod refusal;
mod replace;
mod signed;
mod transparent;
mod tunnel;
mod upstream;
mod websocket;

pub use address::Addresses;
pub use authority::{Authority, AuthorityError};
pub use dial::Dialer;
pub use host::{Host, HostRule};
pub use inject::{By, Injection, Injections};
pub use outlet::{Injector, Outlet, Plan, Sockets, TrustedHosts, system_trust, trust};
pub use policy::Policy;
pub use refusal::Refusal;
