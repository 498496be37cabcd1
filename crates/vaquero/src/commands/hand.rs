//! `vaquero hand`: PID 1 of a sandbox.

use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    control_fd: i32,
    #[arg(long)]
    generation: u64,
    #[arg(long, default_value = "/workspace")]
    workdir: PathBuf,
    #[arg(long, default_value = "/tmp/tool-results")]
    spill: PathBuf,
}

pub(crate) fn run(args: &Args) -> i32 {
    vaquero_hand::main(vaquero_hand::HandArgs {
        control: args.control_fd,
        generation: args.generation,
        workdir: args.workdir.clone(),
        spill: args.spill.clone(),
    })
}
