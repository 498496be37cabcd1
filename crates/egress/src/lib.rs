//! The only way out of a sandbox. A sandbox has no route: what its programs send ends at three sockets inside its own network namespace, and this crate answers on
//! them, from outside: an HTTP proxy for programs that honour proxy variables, a name server that invents addresses, and a catch-all for programs that connect to those
//! addresses by themselves. Each connection is decided by the sandbox's [`Policy`], its name resolved once, and only the address that was checked is dialled.

mod address;
mod dial;
mod host;
mod inspect;
mod names;
mod outlet;
mod policy;
mod proxy;
mod refusal;
mod transparent;
mod tunnel;

pub use address::Addresses;
pub use dial::Dialer;
pub use host::{Host, HostRule};
pub use outlet::{Counts, Outlet, Sockets};
pub use policy::Policy;
pub use refusal::Refusal;
