//! `vaquero scripted-model`

use super::{say, serve::runtime};
use std::{net::SocketAddr, process::ExitCode};
use tokio::net::TcpListener;
use vaquero_model::scripted::Scripted;

const SCRIPT: &str = "\
It speaks the Messages API. Without a script it repeats what it was told. A script is the lines of the
newest user message that begin with `!`:
  !say TEXT, !think TEXT, !bash COMMAND, !tool NAME {json}   blocks of one answer
  !next                                  the lines after it are the next answer
  !repeat N                              the answer it stands in is given N times
  !delay MS, !slow MS                    before the first byte, between pieces
  !fail STATUS [TIMES], !cut [TIMES]     failures before the answer, or in its middle
  !max_tokens, !pause, !refuse [CATEGORY]  how the answer ends
  !usage IN OUT READ WRITE               the tokens it says it took";

/// Where the stand-in listens, and whether it checks what it is sent.
#[derive(Debug, clap::Args)]
#[command(after_help = SCRIPT)]
pub(crate) struct Args {
    /// Where to listen.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7788")]
    listen: SocketAddr,
    /// Keep and check nothing; for load.
    #[arg(long)]
    instant: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    runtime()?.block_on(async {
        let listener = TcpListener::bind(args.listen).await?;
        say!(
            "The scripted stand-in model (not a language model) listens on http://{}",
            listener.local_addr()?
        );
        say!(
            "Use it with VAQUERO_ANTHROPIC_BASE_URL=http://{} VAQUERO_ANTHROPIC_API_KEY=scripted",
            listener.local_addr()?
        );
        let scripted = if args.instant { Scripted::forgetful() } else { Scripted::new() };
        scripted.serve(listener).await?;
        Ok(ExitCode::SUCCESS)
    })
}
