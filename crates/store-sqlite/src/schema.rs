//! The tables, and how older databases become newer ones. Migrations only go forward; one that has shipped is never edited.

use crate::OpenError;
use rusqlite::Connection;
use std::{path::Path, time::Duration};

const MIGRATIONS: &[&str] = &["
    CREATE TABLE documents (
        workspace TEXT NOT NULL, kind TEXT NOT NULL, id TEXT NOT NULL, parent TEXT, unique_key TEXT,
        created_at INTEGER NOT NULL, archived_at INTEGER, revision INTEGER NOT NULL, body TEXT NOT NULL,
        PRIMARY KEY (workspace, kind, id)
    ) WITHOUT ROWID;
    CREATE UNIQUE INDEX documents_key ON documents (workspace, kind, unique_key) WHERE unique_key IS NOT NULL;
    CREATE INDEX documents_list ON documents (workspace, kind, parent, created_at, id);

    CREATE TABLE sessions (
        n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, workspace TEXT NOT NULL, status TEXT NOT NULL,
        agent TEXT NOT NULL, agent_version INTEGER NOT NULL, environment TEXT NOT NULL, primary_thread TEXT NOT NULL,
        created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL, archived_at INTEGER,
        head INTEGER NOT NULL DEFAULT 0, client_head INTEGER NOT NULL DEFAULT 0, revision INTEGER NOT NULL DEFAULT 1,
        last_at INTEGER NOT NULL DEFAULT 0, last_event_at INTEGER NOT NULL DEFAULT 0,
        epoch INTEGER NOT NULL DEFAULT 0, claims INTEGER NOT NULL DEFAULT 0,
        lease_worker TEXT, lease_until INTEGER, ready_at INTEGER,
        gate TEXT NOT NULL, usage TEXT NOT NULL, activity TEXT NOT NULL, deleted INTEGER NOT NULL DEFAULT 0
    );
    -- Apart from their rows, which every append rewrites.
    CREATE TABLE bodies (session INTEGER PRIMARY KEY, body TEXT NOT NULL);
    CREATE INDEX sessions_list ON sessions (workspace, created_at, id) WHERE deleted = 0;
    CREATE INDEX sessions_ready ON sessions (ready_at) WHERE ready_at IS NOT NULL;

    CREATE TABLE threads (
        id TEXT PRIMARY KEY, session INTEGER NOT NULL, parent TEXT, status TEXT NOT NULL,
        created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL, archived_at INTEGER,
        usage TEXT NOT NULL, activity TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX threads_session ON threads (session, created_at);

    CREATE TABLE log (
        n INTEGER PRIMARY KEY, session INTEGER NOT NULL, seq INTEGER NOT NULL, kind INTEGER NOT NULL,
        event_id TEXT NOT NULL, thread TEXT NOT NULL, event_type TEXT NOT NULL, at INTEGER NOT NULL, body TEXT NOT NULL,
        UNIQUE (session, seq)
    );
    CREATE UNIQUE INDEX log_event ON log (session, event_id, kind);
    CREATE INDEX log_received ON log (session, seq) WHERE kind = 1;

    CREATE TABLE snapshots (
        session INTEGER PRIMARY KEY, seq INTEGER NOT NULL, version INTEGER NOT NULL, body BLOB NOT NULL
    );
    CREATE TABLE answers (
        workspace TEXT NOT NULL, operation TEXT NOT NULL, key TEXT NOT NULL, at INTEGER NOT NULL,
        request_digest TEXT NOT NULL, status INTEGER NOT NULL, body TEXT NOT NULL, session TEXT, events TEXT,
        PRIMARY KEY (workspace, operation, key)
    ) WITHOUT ROWID;
    CREATE INDEX answers_age ON answers (at);
", "
    ALTER TABLE sessions ADD COLUMN hands TEXT;
    CREATE TABLE workers (name TEXT PRIMARY KEY, lives_until INTEGER NOT NULL) WITHOUT ROWID;
"];

/// Opens a connection with the settings every connection shares.
pub(crate) fn connect(path: &Path) -> Result<Connection, rusqlite::Error> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(Duration::from_secs(10))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "cache_size", -4_096)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

/// Brings the database to the newest version, each step in a transaction of its own.
pub(crate) fn migrate(connection: &mut Connection) -> Result<(), OpenError> {
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if found > known {
        return Err(OpenError::Newer { found, known });
    }
    for (index, migration) in MIGRATIONS.iter().enumerate() {
        let version = i64::try_from(index).unwrap_or(i64::MAX) + 1;
        if version > found {
            let transaction = connection.transaction()?;
            transaction.execute_batch(migration)?;
            transaction.pragma_update(None, "user_version", version)?;
            transaction.commit()?;
        }
    }
    Ok(())
}
