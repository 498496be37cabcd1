//! The tables, and how older databases become newer ones. Migrations only go forward; one that has shipped is never edited. Any number of servers may start at once:
//! one migrates under a lock, the others wait for it. A migration must leave the release before it working, or a rolling restart would break.

use crate::{OpenError, connect::refused};
use tokio_postgres::Client;

/// Held by whoever migrates; any number that nothing else in the database uses will do.
const LOCK: i64 = 0x7661_7175_6572_6f00;

/// Identifiers compare by their bytes: lists must have the same order whatever language the database was made for. Instants are microseconds since 1970.
const MIGRATIONS: &[&str] = &[r#"
    CREATE TABLE documents (
        workspace text COLLATE "C" NOT NULL, kind text COLLATE "C" NOT NULL, id text COLLATE "C" NOT NULL,
        parent text COLLATE "C", unique_key text COLLATE "C",
        created_at bigint NOT NULL, archived_at bigint, revision bigint NOT NULL, body text NOT NULL,
        PRIMARY KEY (workspace, kind, id)
    );
    CREATE UNIQUE INDEX documents_key ON documents (workspace, kind, unique_key) WHERE unique_key IS NOT NULL;
    CREATE INDEX documents_list ON documents (workspace, kind, created_at, id);
    CREATE INDEX documents_parent ON documents (workspace, kind, parent, created_at, id) WHERE parent IS NOT NULL;

    CREATE SEQUENCE session_numbers AS bigint CACHE 32;
    CREATE TABLE sessions (
        n bigint PRIMARY KEY, id text COLLATE "C" NOT NULL UNIQUE, workspace text COLLATE "C" NOT NULL, status text NOT NULL,
        agent text COLLATE "C" NOT NULL, agent_version bigint NOT NULL, environment text NOT NULL, primary_thread text NOT NULL,
        created_at bigint NOT NULL, updated_at bigint NOT NULL, archived_at bigint,
        head bigint NOT NULL, client_head bigint NOT NULL, revision bigint NOT NULL,
        last_at bigint NOT NULL, last_event_at bigint NOT NULL,
        epoch bigint NOT NULL, claims integer NOT NULL,
        lease_worker text, lease_until bigint, ready_at bigint, hands text,
        gate text NOT NULL, usage text NOT NULL, activity text NOT NULL, deleted boolean NOT NULL
    ) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);
    -- Apart from their rows, which every append rewrites.
    CREATE TABLE bodies (session bigint PRIMARY KEY, body text NOT NULL);
    CREATE INDEX sessions_list ON sessions (workspace, created_at, id) WHERE NOT deleted;
    CREATE INDEX sessions_agent ON sessions (workspace, agent, created_at, id) WHERE NOT deleted;
    CREATE INDEX sessions_ready ON sessions (ready_at, n) WHERE ready_at IS NOT NULL;

    CREATE TABLE threads (
        id text COLLATE "C" PRIMARY KEY, session bigint NOT NULL, parent text, status text NOT NULL,
        created_at bigint NOT NULL, updated_at bigint NOT NULL, archived_at bigint,
        usage text NOT NULL, activity text NOT NULL
    ) WITH (fillfactor = 70);
    CREATE INDEX threads_session ON threads (session, created_at);

    CREATE TABLE log (
        session bigint NOT NULL, seq bigint NOT NULL, kind smallint NOT NULL, event_id text COLLATE "C" NOT NULL,
        thread text COLLATE "C" NOT NULL, event_type text COLLATE "C" NOT NULL, at bigint NOT NULL, body text NOT NULL,
        -- Of the lease it was written under; none for what clients wrote.
        epoch bigint,
        PRIMARY KEY (session, seq)
    );
    -- By the event first: ids are made in the order of time, so new entries stay together, and a lookup never walks through a session.
    CREATE UNIQUE INDEX log_event ON log (event_id, session, kind);
    CREATE INDEX log_received ON log (session, seq) WHERE kind = 1;

    CREATE TABLE snapshots (
        session bigint PRIMARY KEY, seq bigint NOT NULL, version integer NOT NULL, body bytea NOT NULL
    );
    CREATE TABLE answers (
        workspace text COLLATE "C" NOT NULL, operation text COLLATE "C" NOT NULL, key text COLLATE "C" NOT NULL, at bigint NOT NULL,
        request_digest text NOT NULL, status integer NOT NULL, body text NOT NULL, session text, events text,
        PRIMARY KEY (workspace, operation, key)
    );
    CREATE INDEX answers_age ON answers (at);
    CREATE INDEX answers_session ON answers (session) WHERE session IS NOT NULL;

    CREATE TABLE workers (name text PRIMARY KEY, lives_until bigint NOT NULL);
"#];

/// The version of the schema this release knows.
pub(crate) fn known() -> i64 {
    i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX)
}

/// The version of the database's schema; 0 if it has none yet.
pub(crate) async fn found(client: &Client) -> Result<i64, OpenError> {
    let there = client
        .query_one("SELECT to_regclass('vaquero_schema') IS NOT NULL", &[])
        .await
        .map_err(refused)?;
    if !there.get::<_, bool>(0) {
        return Ok(0);
    }
    let row = client.query_one("SELECT version FROM vaquero_schema", &[]).await.map_err(refused)?;
    Ok(row.get(0))
}

/// Brings the database to the newest version.
pub(crate) async fn migrate(client: &mut Client) -> Result<(), OpenError> {
    // The usual start changes nothing, and so works where only reading and writing rows is allowed.
    if found(client).await? == known() {
        return Ok(());
    }
    let transaction = client.transaction().await.map_err(refused)?;
    // Others may be at it, and large tables take their time.
    transaction
        .batch_execute("SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0")
        .await
        .map_err(refused)?;
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await.map_err(refused)?;
    transaction
        .batch_execute("CREATE TABLE IF NOT EXISTS vaquero_schema (version bigint NOT NULL)")
        .await
        .map_err(refused)?;
    let row = transaction.query_opt("SELECT version FROM vaquero_schema", &[]).await;
    let found = row.map_err(refused)?.map(|row| row.get::<_, i64>(0));
    if found > Some(known()) {
        return Err(OpenError::Newer { found: found.unwrap_or(0), known: known() });
    }
    let done = usize::try_from(found.unwrap_or(0)).unwrap_or(0);
    for migration in &MIGRATIONS[done..] {
        transaction.batch_execute(migration).await.map_err(refused)?;
    }
    let set = match found {
        None => "INSERT INTO vaquero_schema (version) VALUES ($1)",
        Some(_) => "UPDATE vaquero_schema SET version = $1",
    };
    transaction.execute(set, &[&known()]).await.map_err(refused)?;
    transaction.commit().await.map_err(refused)
}
