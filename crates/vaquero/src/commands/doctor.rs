//! `vaquero doctor`: each thing a server needs, whether it is here, and what to do if not.

use super::{say, serve::runtime};
use crate::{
    compute::try_out,
    config::{Config, SandboxChoice, ServeArgs},
    stores,
};
use std::{io::IsTerminal, net::TcpListener, path::Path, process::ExitCode};
use vaquero_blob::{BlobError, Blobs};
use vaquero_sandbox::{Wall, WallState, probe};

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
    let runtime = runtime()?;
    if let Some(url) = &config.database_url {
        runtime.block_on(database(&mut report, &config, url));
    }
    if let Some(url) = &config.blob_url {
        runtime.block_on(blobs(&mut report, url));
    }
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
    for choice in config.sandboxes() {
        if choice == SandboxChoice::Local {
            walls(&mut report, runtime.block_on(probe(Path::new("/proc/self/exe")))?.walls);
            continue;
        }
        let what = format!("sandbox, {}", choice.name());
        match runtime.block_on(try_out(&config, choice)) {
            Ok(()) => report.ok(&what, "one was made, and its walls stand"),
            Err(error) => report.missing(&what, &format!("{error:#}")),
        }
    }
    Ok(if report.failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn walls(report: &mut Report, walls: Vec<Wall>) {
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
}

async fn database(report: &mut Report, config: &Config, url: &str) {
    let found = match vaquero_store_postgres::inspect(&stores::postgres(config, url)).await {
        Ok(found) => found,
        Err(error) => return report.missing("database", &error.to_string()),
    };
    let encrypted = if found.encrypted { "encrypted" } else { "not encrypted" };
    report.ok(
        "database",
        &format!(
            "{}: PostgreSQL {}, {encrypted}; a commit takes {:.2} ms (median)",
            found.place,
            found.version,
            found.commit.as_secs_f64() * 1_000.0
        ),
    );
    let (schema, known) = (found.schema, found.known);
    if schema == known {
        report.ok("database schema", &format!("version {schema}, as this release needs it"));
    } else {
        let detail = format!("version {schema}; the first server of this release makes it {known}");
        report.ok("database schema", &detail);
    }
    let connections = i64::try_from(config.database_connections).unwrap_or(i64::MAX);
    let detail = format!(
        "{connections} of this server (--database-connections); PostgreSQL allows {} to all clients together",
        found.max_connections
    );
    if found.max_connections >= connections.saturating_mul(3) {
        report.ok("database connections", &detail);
    } else {
        report.weak("database connections", &format!("{detail}: few servers can share it"));
    }
    for setting in found.unsafe_settings {
        let detail = format!("{setting}: committed work can be lost; turn it on");
        report.missing("database durability", &detail);
    }
}

async fn blobs(report: &mut Report, url: &str) {
    let name = format!("doctor/{}", std::process::id());
    let tried = async {
        let blobs = Blobs::open(url)?;
        blobs.put(&name, "here".into()).await?;
        let read = blobs.get(&name).await?;
        blobs.remove(&name).await?;
        Ok::<_, BlobError>((blobs.place().to_owned(), read == "here"))
    };
    match tried.await {
        Ok((place, true)) => {
            report.ok("blobs", &format!("{place}: writing, reading and removing work"))
        }
        Ok((place, false)) => {
            report.missing("blobs", &format!("{place}: what was written is not what is read"))
        }
        Err(error) => report.missing("blobs", &error.to_string()),
    }
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
