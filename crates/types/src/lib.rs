//! What crosses the wire and what the crates share: ids, instants, resources, events, errors. Data and its checks only: no I/O, no clock reads.

pub mod agent;
pub mod checkpoint;
pub mod clock;
pub mod content;
pub mod credential;
pub mod environment;
pub mod error;
pub mod event;
pub mod fields;
pub mod gate;
pub mod id;
mod images;
pub mod record;
pub mod sandbox;
pub mod session;
pub mod thread;
pub mod time;
pub mod usage;
pub mod vault;
pub mod work;

pub use clock::{Clock, IdGen, RandomIds, SystemClock};
pub use error::{ApiError, ErrorCode};
pub use fields::{Fields, Invalid, Patch};
pub use id::{
    AgentId, ApiKeyId, CredentialId, EnvironmentId, EventId, RequestId, SessionId, ThreadId,
    VaultId, WorkId, WorkspaceId,
};
pub use images::AllowedImages;
pub use time::Timestamp;
