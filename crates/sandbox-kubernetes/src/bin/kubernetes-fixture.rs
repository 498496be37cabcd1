//! The hand of the tests' sandboxes. No user ever runs it.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let code = match args.next().unwrap_or_default().to_str() {
        Some("hand") => vaquero_sandbox::hand_main(args),
        _ => 2,
    };
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
