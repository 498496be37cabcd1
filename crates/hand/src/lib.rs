//! What runs inside a sandbox as its PID 1: commands, files and search for the model, and nothing that reaches outside.

pub mod protocol;
