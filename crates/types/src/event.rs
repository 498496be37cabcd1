//! Events: what clients send and what servers write.

pub mod server;
