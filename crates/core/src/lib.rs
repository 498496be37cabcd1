//! Deciding, and nothing else: what a client may send, what a log folds to, what a turn does next. No clock, no randomness, no I/O; all of them are arguments.
//!
//! * [`admission`]: which client events a session accepts, and the records that accepting them makes.
//! * [`transcript`]: the private records a brain leaves for the next one.
//! * [`state`]: the fold of a log.
//! * [`context`]: the messages of the next model request, a pure function of the folded transcript.
//! * [`turn`]: the machine; inputs in, steps out.
//! * [`fork`]: how much of a log another session begins with.
//! * [`queue`]: the work queue of a self-hosted environment.
//! * [`tools`]: the built-in tools and who may call them.

pub mod admission;
pub mod context;
pub mod fork;
pub mod queue;
pub mod state;
pub mod tools;
pub mod transcript;
pub mod turn;

pub use context::{Message, Role};
pub use state::State;
pub use turn::{Input, Limits, Machine, Step};
