//! What runs inside a sandbox as its PID 1: commands, files and search for the model, and nothing that reaches outside.

mod calls;
mod exec;
mod output;
pub mod pack;
mod processes;
pub mod protocol;
mod serve;
mod shell;
mod tools;

pub use exec::{EXEC, NO_SUCH_PROGRAM};
pub use serve::{HandArgs, main};
