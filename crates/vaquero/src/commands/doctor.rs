//! `vaquero doctor`: each thing a server needs, whether it is here, and what to do if not.

use super::{say, serve::runtime};
use crate::config::{Config, ServeArgs};
use std::{io::IsTerminal, net::TcpListener, path::Path, process::ExitCode};
use vaquero_sandbox::{WallState, probe};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    serve: ServeArgs,
}

struct Report {
    colour: bool,
    failed: bool,
}

impl Report {
    fn line(&mut self, mark: &str, colour: &str, what: &str, detail: &str) {
        if self.colour {
            say!("\x1b[{colour}m{mark:>8}\x1b[0m  {what}: {detail}");
        } else {
            say!("{mark:>8}  {what}: {detail}");
        }
    }

    fn ok(&mut self, what: &str, detail: &str) {
        self.line("ok", "32", what, detail);
    }

    fn weak(&mut self, what: &str, detail: &str) {
        self.line("weak", "33", what, detail);
    }

    fn missing(&mut self, what: &str, detail: &str) {
        self.failed = true;
        self.line("missing", "31", what, detail);
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut report = Report { colour: std::io::stdout().is_terminal(), failed: false };
    let config = Config::load(&args.serve)?;
    report.ok("settings", "read without errors");
    data_directory(&mut report, &config);
    match TcpListener::bind(config.listen) {
        Ok(_) => report.ok("listen", &format!("{} is free", config.listen)),
        Err(error) => report.weak(
            "listen",
            &format!(
                "{}: {error}; a server may be running there, or choose another --listen",
                config.listen
            ),
        ),
    }
    match &config.anthropic_api_key {
        None => report
            .weak("upstream model", "no key; set VAQUERO_ANTHROPIC_API_KEY or ANTHROPIC_API_KEY"),
        Some(_) => match crate::server::upstream(&config) {
            Ok(_) => report.ok("upstream model", &config.anthropic_base_url),
            Err(error) => report.missing("upstream model", &format!("{error:#}")),
        },
    }
    let walls = runtime()?.block_on(probe(Path::new("/proc/self/exe")))?.walls;
    for wall in walls {
        let what = format!("sandbox, {}", wall.name);
        let detail = if wall.fix.is_empty() {
            wall.detail
        } else {
            format!("{}. {}", wall.detail, wall.fix)
        };
        match wall.state {
            WallState::Ok => report.ok(&what, &detail),
            WallState::Degraded => report.weak(&what, &detail),
            WallState::Missing => report.missing(&what, &detail),
        }
    }
    Ok(if report.failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn data_directory(report: &mut Report, config: &Config) {
    let directory = &config.data_dir;
    let place = if directory.exists() { directory.clone() } else { std::env::temp_dir() };
    match vaquero_store_sqlite::measure_fdatasync(&place) {
        Ok(time) => report.ok(
            "data directory",
            &format!(
                "{}; a flush to disk takes {:.2} ms (median)",
                directory.display(),
                time.as_secs_f64() * 1_000.0
            ),
        ),
        Err(error) => {
            report.missing("data directory", &format!("{}: {error}", directory.display()))
        }
    }
}
