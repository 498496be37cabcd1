//! The end-to-end load program: `cargo xtask load`. It starts the real server against an instant model in this process and prints, for each
//! question of docs/performance.md, what this machine answered. It judges nothing: machines differ, and the reader compares.

#![expect(clippy::print_stdout, reason = "a program whose output is its purpose")]
#![expect(
    clippy::disallowed_methods,
    reason = "it measures with the real clock and lets the process end its tasks"
)]

mod egress;
mod fanout;
mod first_request;
mod instant;
mod machine;
mod memory;
mod nodes;
mod others;
mod providers;
mod recovery;
mod sandbox;
mod sessions;
mod turns;

use clap::Parser;
use instant::Instantly;
use std::path::PathBuf;
use vaquero_testkit::Server;

/// Measures a server.
#[derive(Clone, Debug, Parser)]
struct Args {
    /// The server to measure.
    #[arg(long, default_value = "target/release/vaquero")]
    exe: PathBuf,
    /// Fewer of everything: to see that it works, not how fast.
    #[arg(long)]
    quick: bool,
    /// Only these measurements.
    #[arg(value_parser = ["first-request", "sandbox", "turns", "fanout", "memory", "recovery", "egress", "nodes", "providers"])]
    only: Vec<String>,
}

impl Args {
    /// A count, or a fraction of it when quick.
    fn count(&self, full: usize) -> usize {
        if self.quick { full.div_ceil(20) } else { full }
    }

    /// A server that is not started yet.
    fn server(&self, model: &Instantly) -> anyhow::Result<Server> {
        Server::new(std::path::absolute(&self.exe)?, &model.base)
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    machine::allow_many_files()?;
    let all = args.only.is_empty();
    let wanted = |name: &str| all || args.only.iter().any(|one| one == name);
    println!("machine: {}", machine::describe());
    let mut fdatasync = machine::fdatasync(args.count(400))?;
    println!("fdatasync of 4 KiB: {}", fdatasync.line());
    if wanted("first-request") {
        first_request::measure(&args).await?;
    }
    if wanted("sandbox") {
        sandbox::measure(&args).await?;
    }
    if wanted("turns") {
        for at_once in [8, 256] {
            turns::measure(&args, at_once).await?;
        }
    }
    if wanted("fanout") {
        fanout::measure(&args).await?;
    }
    if wanted("memory") {
        memory::measure(&args).await?;
    }
    if wanted("recovery") {
        recovery::measure(&args).await?;
    }
    if wanted("egress") {
        egress::measure(&args).await?;
    }
    // These need an engine, SDKs and fakes.
    if args.only.iter().any(|one| one == "providers") {
        providers::measure(&args).await?;
    }
    if wanted("nodes") && std::env::var_os("VAQUERO_TEST_POSTGRES").is_some() {
        nodes::measure(&args).await?;
    }
    Ok(())
}
