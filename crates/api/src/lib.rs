//! The HTTP face: the Claude Managed Agents API. It checks, commits and shows; it never runs a turn.
//!
//! One endpoint, one file: `POST /v1/agents` is `agents/create.rs`. [`routes`] is the table of all of them.

mod agents;
mod app;
mod auth;
mod body;
mod change;
mod credentials;
mod cursor;
mod documents;
mod edge;
mod environments;
mod events;
mod health;
pub mod keys;
mod models;
pub mod openapi;
pub mod portable;
mod query;
mod rates;
mod reject;
pub mod routes;
mod scope;
mod sessions;
mod stop_all;
mod threads;
mod vaults;
mod work;

pub use app::{App, Parts, Provider, Sandboxes, Settings};
pub use edge::unreadable;
pub use models::ModelList;
pub use rates::Rates;
pub use routes::{router, worker_router};
pub use stop_all::stop_all;
