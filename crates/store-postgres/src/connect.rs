//! Reaching the database: its URL, TLS, and what every connection is told first. Passwords are in no message.

mod tls;

use crate::OpenError;
use std::{str::FromStr, time::Duration};
use tokio::time::timeout;
use tokio_postgres::{Client, Config, Connection, Socket, config::Host, tls::MakeTlsConnect};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);

/// What every connection is told: nobody may hold others up for long, least of all a server that was stopped in the middle of a transaction. A database that does not wait
/// for its disk is told to; one that waits for more than its disk keeps doing so.
pub(crate) const SETTINGS: &str = "SET statement_timeout = '20s'; SET lock_timeout = '5s'; SET idle_in_transaction_session_timeout = '3s'; SET client_min_messages = warning; \
    SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'";

/// The half of a connection that moves bytes.
type Wire = Connection<Socket, <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream>;

/// A database that can be connected to.
#[derive(Clone)]
pub(crate) struct Database {
    pub(crate) config: Config,
    pub(crate) tls: MakeRustlsConnect,
    /// Where it is and what it is called, for messages.
    pub(crate) place: String,
    /// Ends the connections of dropped clients.
    tasks: TaskTracker,
    closed: CancellationToken,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database").field("place", &self.place).finish_non_exhaustive()
    }
}

impl Database {
    pub(crate) fn new(url: &str) -> Result<Self, OpenError> {
        let (url, mode, roots) = split(url)?;
        let mut config = Config::from_str(&url).map_err(|error| OpenError::Url(reason(&error)))?;
        if config.get_hosts().is_empty() {
            return Err(OpenError::Url("it names no host".to_owned()));
        }
        if config.get_dbname().is_none() {
            return Err(OpenError::Url("it names no database".to_owned()));
        }
        config
            .connect_timeout(CONNECT)
            .keepalives_idle(Duration::from_secs(10))
            .keepalives_interval(Duration::from_secs(5))
            .keepalives_retries(3)
            .tcp_user_timeout(Duration::from_secs(15));
        if config.get_application_name().is_none() {
            config.application_name("vaquero");
        }
        let place = place(&config);
        let tls = tls::connector(mode, roots.as_deref(), &mut config)?;
        let (tasks, closed) = (TaskTracker::new(), CancellationToken::new());
        Ok(Self { config, tls, place, tasks, closed })
    }

    /// A connection with nothing but its settings made.
    pub(crate) async fn connect(&self) -> Result<Client, tokio_postgres::Error> {
        let (client, connection) = self.config.connect(self.tls.clone()).await?;
        let closed = self.closed.clone();
        self.tasks.spawn(async move {
            // What ends a connection is also told to whoever waits for its answer.
            drop(closed.run_until_cancelled(connection).await);
        });
        client.batch_execute(SETTINGS).await?;
        Ok(client)
    }

    /// The same for a connection that also has to hear notifications.
    pub(crate) async fn connect_raw(&self) -> Result<(Client, Wire), tokio_postgres::Error> {
        self.config.connect(self.tls.clone()).await
    }

    /// The first connection, or why there is none.
    pub(crate) async fn reach(&self) -> Result<Client, OpenError> {
        match timeout(CONNECT * 2, self.connect()).await {
            Ok(Ok(client)) => Ok(client),
            Ok(Err(error)) if error.as_db_error().is_some() => Err(refused(error)),
            Ok(Err(error)) => {
                Err(OpenError::Unreachable { place: self.place.clone(), reason: reason(&error) })
            }
            Err(_) => Err(OpenError::Unreachable {
                place: self.place.clone(),
                reason: "it does not answer".to_owned(),
            }),
        }
    }

    pub(crate) fn close(&self) {
        self.closed.cancel();
        self.tasks.close();
    }
}

/// What the database said, as a reason not to open.
pub(crate) fn refused(error: tokio_postgres::Error) -> OpenError {
    OpenError::Refused(reason(&error))
}

/// An error with all its causes: the outermost alone says little.
pub(crate) fn reason(error: &(dyn std::error::Error + 'static)) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = match error.downcast_ref::<tokio_postgres::error::DbError>() {
            Some(said) => {
                let hint = said.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
                format!("{}{hint}", said.message())
            }
            None => error.to_string(),
        };
        if text != "db error" && !parts.last().is_some_and(|last| last.contains(&text)) {
            parts.push(text);
        }
        next = error.source();
    }
    parts.join(": ")
}

fn place(config: &Config) -> String {
    let ports = config.get_ports();
    let hosts: Vec<String> = config
        .get_hosts()
        .iter()
        .enumerate()
        .map(|(index, host)| {
            let port = ports.get(index).or_else(|| ports.first()).copied().unwrap_or(5432);
            match host {
                Host::Tcp(name) => format!("{name}:{port}"),
                Host::Unix(path) => path.display().to_string(),
            }
        })
        .collect();
    format!("{}/{}", hosts.join(","), config.get_dbname().unwrap_or_default())
}

/// How far a server's certificate is checked, as libpq names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// Takes out what the driver does not know: the modes that check certificates, and where the roots are.
fn split(url: &str) -> Result<(String, Mode, Option<String>), OpenError> {
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return Err(OpenError::Url("it must begin with postgres://".to_owned()));
    }
    let (base, query) = url.split_once('?').unwrap_or((url, ""));
    let (mut mode, mut roots) = (Mode::Prefer, None);
    let mut rest = form_urlencoded::Serializer::new(String::new());
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match name.as_ref() {
            "sslmode" => {
                mode = match value.as_ref() {
                    "disable" => Mode::Disable,
                    "allow" | "prefer" => Mode::Prefer,
                    "require" => Mode::Require,
                    "verify-ca" => Mode::VerifyCa,
                    "verify-full" => Mode::VerifyFull,
                    other => {
                        let message = format!(
                            "sslmode `{other}` is none of disable, prefer, require, verify-ca, verify-full"
                        );
                        return Err(OpenError::Url(message));
                    }
                }
            }
            "sslrootcert" => roots = Some(value.into_owned()),
            _ => drop(rest.append_pair(&name, &value)),
        }
    }
    // As libpq does: roots that are given are there to be used.
    if roots.is_some() && mode == Mode::Require {
        mode = Mode::VerifyCa;
    }
    // A space is `%20` to the driver, never `+`.
    let rest = rest.finish().replace('+', "%20");
    let url = if rest.is_empty() { base.to_owned() } else { format!("{base}?{rest}") };
    Ok((url, mode, roots))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_split_and_wrong_ones_named() {
        let (url, mode, roots) =
            split("postgres://u:p@h/d?sslmode=verify-full&sslrootcert=/r.pem&options=-c%20a=b")
                .expect("it is one");
        assert_eq!((mode, roots.as_deref()), (Mode::VerifyFull, Some("/r.pem")));
        assert!(url.starts_with("postgres://u:p@h/d?options=-c%20a"), "{url}");
        for (wrong, why) in [
            ("mysql://h/d", "must begin with postgres://"),
            ("postgres://u:secret@h/d?sslmode=always", "sslmode `always`"),
            ("postgres://u:secret@h/d?nonsense=1", "nonsense"),
            ("postgres://u:secret@h:99999/d", "invalid"),
            ("postgres://h", "no database"),
        ] {
            let error = Database::new(wrong).expect_err(wrong).to_string();
            assert!(error.contains(why), "{wrong}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
