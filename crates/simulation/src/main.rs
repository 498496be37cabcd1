//! Replays a seed, or runs many: `cargo run -p vaquero-simulation -- --seed 7`, `-- --from 1 --count 5000`.

#![expect(clippy::print_stdout, reason = "a program whose output is its purpose")]

use clap::Parser;
use std::process::ExitCode;
use vaquero_simulation::{Sabotage, run};

#[derive(Parser)]
struct Args {
    /// One seed, with everything that happens.
    #[arg(long)]
    seed: Option<u64>,
    /// The first of many seeds.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// How many.
    #[arg(long, default_value_t = 1_000)]
    count: u64,
    /// Break a promise: `no-fence`, `early-reply`, `double-claim`, `lost-wake-up`, `tool-twice`.
    #[arg(long)]
    sabotage: Option<String>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let named = args.sabotage.as_deref().unwrap_or("none");
    let mut known = Sabotage::ALL.into_iter().chain([("none", Sabotage::None)]);
    let Some((_, sabotage)) = known.find(|(name, _)| *name == named) else {
        println!("there is no sabotage `{named}`");
        return ExitCode::FAILURE;
    };
    if let Some(seed) = args.seed {
        let report = run(seed, sabotage);
        report.trace.iter().for_each(|line| println!("{line}"));
        println!("seed {seed}: {}", report.counts);
        report.broken.iter().for_each(|line| println!("BROKEN: {line}"));
        return if report.broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let mut failed = 0;
    for seed in args.from..args.from + args.count {
        let report = run(seed, sabotage);
        if !report.broken.is_empty() {
            failed += 1;
            println!("seed {seed}: {}", report.broken.join("; "));
        }
    }
    println!("{} seeds, {failed} failed", args.count);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
