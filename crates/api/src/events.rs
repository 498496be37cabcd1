//! Events of a session: sent, listed, streamed.

pub(crate) mod list;
pub(crate) mod send;
pub(crate) mod stream;
