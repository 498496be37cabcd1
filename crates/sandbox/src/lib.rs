//! Sandboxes: the seam every provider stands behind, and the local Linux provider.

pub mod error;
pub mod seam;

pub use error::SandboxError;
pub use seam::*;
pub use vaquero_hand::protocol::INTERRUPTED;
