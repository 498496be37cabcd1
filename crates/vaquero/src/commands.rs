//! The commands.

pub(crate) mod demo;
pub(crate) mod doctor;
pub(crate) mod key;
pub(crate) mod operate;
mod place;
pub(crate) mod sandbox;
pub(crate) mod scripted_model;
pub(crate) mod serve;
pub(crate) mod vault;
pub(crate) mod worker;

/// Prints a line to standard output; a closed pipe is no error.
macro_rules! say {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        drop(writeln!(std::io::stdout(), $($words)*));
    }};
}
use place::Place;
pub(crate) use say;
