//! The statements of a transaction, prepared once for a connection. Each works on as many rows as a group of commits needs: arrays go in, `unnest` makes rows of them.

use crate::rows::{SESSION_COLUMNS, STATE_COLUMNS};
use tokio_postgres::{Client, Error, Statement};

/// The database's own clock, in microseconds: the clocks of servers differ.
pub(crate) const CLOCK: &str = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint";

macro_rules! statements {
    ($($name:ident: $sql:expr,)*) => {
        /// Prepared statements.
        pub(crate) struct Statements { $(pub(crate) $name: Statement,)* }

        impl Statements {
            pub(crate) async fn prepare(client: &Client) -> Result<Self, Error> {
                $(let $name = $sql;)*
                $(let $name = client.prepare(&$name);)*
                let ($($name,)*) = futures::try_join!($($name,)*)?;
                Ok(Self { $($name,)* })
            }
        }
    };
}

statements! {
    begin: "SELECT pg_current_xact_id()::text, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint",
    share_documents: "SELECT d.workspace, d.kind, d.id, d.revision, d.unique_key FROM documents d \
        JOIN unnest($1::text[], $2::text[], $3::text[]) AS u(w, k, i) ON d.workspace = u.w AND d.kind = u.k AND d.id = u.i \
        ORDER BY d.workspace, d.kind, d.id FOR SHARE OF d",
    lock_documents: "SELECT d.workspace, d.kind, d.id, d.revision, d.unique_key FROM documents d \
        JOIN unnest($1::text[], $2::text[], $3::text[]) AS u(w, k, i) ON d.workspace = u.w AND d.kind = u.k AND d.id = u.i \
        ORDER BY d.workspace, d.kind, d.id FOR UPDATE OF d",
    holders: "SELECT d.workspace, d.kind, d.unique_key, d.id FROM documents d \
        JOIN unnest($1::text[], $2::text[], $3::text[]) AS u(w, k, i) ON d.workspace = u.w AND d.kind = u.k AND d.unique_key = u.i",
    lock_sessions: format!("SELECT n, id, {STATE_COLUMNS} FROM sessions WHERE id = ANY($1) ORDER BY n FOR NO KEY UPDATE"),
    made: "WITH found AS MATERIALIZED (SELECT l.session, l.event_id, l.kind, l.seq, l.at FROM unnest($2::text[]) AS u(e) JOIN log l ON l.event_id = u.e) \
        SELECT s.id, found.event_id, found.kind, found.seq, found.at FROM found JOIN sessions s ON s.n = found.session WHERE s.id = ANY($1::text[])",
    answered: "SELECT a.workspace, a.operation, a.key FROM answers a \
        JOIN unnest($1::text[], $2::text[], $3::text[]) AS u(w, o, k) ON a.workspace = u.w AND a.operation = u.o AND a.key = u.k \
        WHERE a.at >= $4",
    numbers: "SELECT nextval('session_numbers') FROM generate_series(1, $1)",
    delete_documents: "DELETE FROM documents d USING unnest($1::text[], $2::text[], $3::text[]) AS u(w, k, i) \
        WHERE d.workspace = u.w AND d.kind = u.k AND d.id = u.i",
    update_documents: "UPDATE documents d SET parent = u.parent, unique_key = u.unique_key, created_at = u.created_at, archived_at = u.archived_at, \
        revision = u.revision, body = u.body \
        FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::bigint[], $8::bigint[], $9::text[]) \
            AS u(w, k, i, parent, unique_key, created_at, archived_at, revision, body) \
        WHERE d.workspace = u.w AND d.kind = u.k AND d.id = u.i",
    insert_documents: "INSERT INTO documents (workspace, kind, id, parent, unique_key, created_at, archived_at, revision, body) \
        SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::bigint[], $8::bigint[], $9::text[])",
    insert_sessions: "INSERT INTO sessions (n, id, workspace, agent, agent_version, environment, primary_thread, created_at, \
            status, updated_at, head, client_head, revision, last_at, last_event_at, epoch, claims, gate, usage, activity, deleted) \
        SELECT u.*, 'idle', 0, 0, 0, 1, 0, 0, 0, 0, '', '', '', false \
        FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::text[], $7::text[], $8::bigint[]) AS u",
    insert_bodies: "INSERT INTO bodies (session, body) SELECT * FROM unnest($1::bigint[], $2::text[])",
    insert_threads: "INSERT INTO threads (session, id, parent, status, created_at, updated_at, archived_at, usage, activity) \
        SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[], $8::text[], $9::text[])",
    update_sessions: "UPDATE sessions s SET status = u.status, updated_at = u.updated_at, archived_at = u.archived_at, head = u.head, \
            client_head = u.client_head, revision = u.revision, epoch = u.epoch, last_at = u.last_at, last_event_at = u.last_event_at, \
            gate = u.gate, usage = u.usage, activity = u.activity, ready_at = u.ready_at, lease_until = u.lease_until, \
            lease_worker = CASE WHEN u.lease_until IS NULL THEN NULL ELSE s.lease_worker END, claims = u.claims, hands = u.hands, deleted = u.deleted \
        FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[], \
            $10::bigint[], $11::text[], $12::text[], $13::text[], $14::bigint[], $15::bigint[], $16::integer[], $17::text[], $18::boolean[]) \
            AS u(n, status, updated_at, archived_at, head, client_head, revision, epoch, last_at, last_event_at, gate, usage, activity, \
                ready_at, lease_until, claims, hands, deleted) \
        WHERE s.n = u.n",
    update_bodies: "UPDATE bodies b SET body = u.body FROM unnest($1::bigint[], $2::text[]) AS u(session, body) WHERE b.session = u.session",
    update_threads: "UPDATE threads t SET status = u.status, usage = u.usage, activity = u.activity, \
            archived_at = COALESCE(u.archived_at, t.archived_at), updated_at = GREATEST(t.updated_at, u.at) \
        FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[]) AS u(session, status, usage, activity, archived_at, at) \
        WHERE t.session = u.session AND t.parent IS NULL",
    delete_log: "DELETE FROM log WHERE session = ANY($1)",
    delete_threads: "DELETE FROM threads WHERE session = ANY($1)",
    delete_snapshots: "DELETE FROM snapshots WHERE session = ANY($1)",
    delete_bodies: "DELETE FROM bodies WHERE session = ANY($1)",
    delete_answers: "DELETE FROM answers WHERE session = ANY($1)",
    insert_log: "INSERT INTO log (session, seq, kind, event_id, thread, event_type, at, body, epoch) \
        SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::smallint[], $4::text[], $5::text[], $6::text[], $7::bigint[], $8::text[], $9::bigint[])",
    put_snapshots: "INSERT INTO snapshots (session, seq, version, body) SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::integer[], $4::bytea[]) \
        ON CONFLICT (session) DO UPDATE SET seq = excluded.seq, version = excluded.version, body = excluded.body",
    old_answers: "DELETE FROM answers WHERE at < $1",
    insert_answers: "INSERT INTO answers (workspace, operation, key, at, request_digest, status, body, session, events) \
        SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::text[], $6::integer[], $7::text[], $8::text[], $9::text[])",
    heartbeat: format!("INSERT INTO workers (name, lives_until) VALUES ($1, COALESCE($2, {CLOCK}) + $3) \
        ON CONFLICT (name) DO UPDATE SET lives_until = excluded.lives_until"),
    claim: format!("UPDATE sessions SET epoch = epoch + 1, claims = claims + 1, lease_worker = $1, lease_until = COALESCE($2, {CLOCK}) + $3 \
        WHERE n IN (SELECT n FROM sessions WHERE ready_at IS NOT NULL AND (lease_until IS NULL OR lease_until < COALESCE($2, {CLOCK})) \
            AND (hands IS NULL OR hands = $1 OR NOT EXISTS (SELECT 1 FROM workers w WHERE w.name = hands AND w.lives_until >= COALESCE($2, {CLOCK}))) \
            ORDER BY ready_at, n LIMIT $4 FOR NO KEY UPDATE SKIP LOCKED) \
        RETURNING {SESSION_COLUMNS}, claims, ready_at, n"),
}
