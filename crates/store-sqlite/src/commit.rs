//! What each write does to the tables, and the conditions under which it may. Runs on the writer thread, inside a savepoint.

use crate::{
    rows::{SESSION_COLUMNS, failed, int, json, kind_number, natural, session},
    writer::Effects,
};
use rusqlite::{Connection, OptionalExtension, ToSql, params};
use std::time::Duration;
use vaquero_store::{
    Answer, AnswerKey, Append, Author, Claimed, CommitError, Committed, Document, Expect, Lease,
    NewRecord, Record, RecordKind, Restored, Seq, SessionChange, SessionRow, Snapshot, StoreError,
    WorkerName, Write,
};
use vaquero_types::{
    SessionId, Timestamp, WorkspaceId, gate::Gate, session::Status, thread::Thread,
};

/// How long an answer holds its idempotency key.
const ANSWER_AGE: Duration = Duration::from_secs(24 * 3600);

fn execute(db: &Connection, sql: &str, values: &[&dyn ToSql]) -> Result<usize, CommitError> {
    let mut statement = db.prepare_cached(sql).map_err(failed)?;
    Ok(statement.execute(values).map_err(failed)?)
}

pub(crate) fn apply(
    db: &Connection,
    writes: Vec<Write>,
    now: Timestamp,
    effects: &mut Effects,
) -> Result<Committed, CommitError> {
    let mut committed = Committed::default();
    for write in writes {
        match write {
            Write::PutDocument { document, expect } => put_document(db, &document, expect)?,
            Write::DeleteDocument { workspace, kind, id, expect } => {
                check(db, &workspace, &kind, &id, expect)?;
                let sql = "DELETE FROM documents WHERE workspace = ?1 AND kind = ?2 AND id = ?3";
                execute(db, sql, params![workspace.as_str(), kind, id])?;
            }
            Write::CheckDocument { workspace, kind, id, expect } => {
                check(db, &workspace, &kind, &id, expect)?;
            }
            Write::CreateSession { row, thread } => {
                create_session(db, &row, &[thread])?;
            }
            Write::RestoreSession(restored) => restore_session(db, &restored, now, effects)?,
            Write::Append(append) => {
                committed.appended.push(self::append(db, append, now, effects)?)
            }
            Write::DeleteSession { session, revision, record } => {
                delete_session(db, &session, revision, &record, now, effects)?;
            }
            Write::PutSnapshot { session, snapshot } => put_snapshot(db, &session, &snapshot)?,
            Write::PutAnswer { key, answer } => put_answer(db, &key, &answer, now)?,
        }
    }
    Ok(committed)
}

fn revision(
    db: &Connection,
    workspace: &WorkspaceId,
    kind: &str,
    id: &str,
) -> Result<Option<u64>, CommitError> {
    let sql = "SELECT revision FROM documents WHERE workspace = ?1 AND kind = ?2 AND id = ?3";
    let mut statement = db.prepare_cached(sql).map_err(failed)?;
    let found = statement
        .query_row(params![workspace.as_str(), kind, id], |row| natural(row, "revision"))
        .optional();
    Ok(found.map_err(failed)?)
}

fn check(
    db: &Connection,
    workspace: &WorkspaceId,
    kind: &str,
    id: &str,
    expect: Expect,
) -> Result<Option<u64>, CommitError> {
    let found = revision(db, workspace, kind, id)?;
    match (expect, found) {
        (Expect::Any, _) | (Expect::Absent, None) => Ok(found),
        (Expect::Revision(wanted), Some(found)) if found == wanted => Ok(Some(found)),
        (Expect::Revision(_), None) => Err(CommitError::NotFound),
        (Expect::Absent | Expect::Revision(_), Some(_)) => Err(CommitError::Changed),
    }
}

fn put_document(db: &Connection, document: &Document, expect: Expect) -> Result<(), CommitError> {
    let found = check(db, &document.workspace, &document.kind, &document.id, expect)?;
    if let Some(key) = &document.unique_key {
        let sql = "SELECT 1 FROM documents WHERE workspace = ?1 AND kind = ?2 AND unique_key = ?3 AND id <> ?4";
        let mut statement = db.prepare_cached(sql).map_err(failed)?;
        let values = params![document.workspace.as_str(), document.kind, key, document.id];
        if statement.exists(values).map_err(failed)? {
            return Err(CommitError::Duplicate { key: key.clone() });
        }
    }
    execute(
        db,
        "INSERT OR REPLACE INTO documents (workspace, kind, id, parent, unique_key, created_at, archived_at, revision, body) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        params![
            document.workspace.as_str(),
            document.kind,
            document.id,
            document.parent,
            document.unique_key,
            document.created_at.as_micros(),
            document.archived_at.map(Timestamp::as_micros),
            int(found.unwrap_or(0) + 1),
            document.body,
        ],
    )?;
    Ok(())
}

fn create_session(
    db: &Connection,
    row: &SessionRow,
    threads: &[Thread],
) -> Result<i64, CommitError> {
    let made = execute(
        db,
        "INSERT INTO sessions (id, workspace, status, agent, agent_version, environment, primary_thread, created_at, updated_at, archived_at, gate, usage, activity) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13) ON CONFLICT (id) DO NOTHING",
        params![
            row.id.as_str(),
            row.workspace.as_str(),
            row.status.as_str(),
            row.agent.as_str(),
            int(row.agent_version),
            row.environment.as_str(),
            row.primary_thread.as_str(),
            row.created_at.as_micros(),
            row.updated_at.as_micros(),
            row.archived_at.map(Timestamp::as_micros),
            json(&row.gate),
            json(&row.usage),
            json(&row.activity),
        ],
    )?;
    if made == 0 {
        return Err(CommitError::Changed);
    }
    let number = db.last_insert_rowid();
    execute(db, "INSERT INTO bodies (session, body) VALUES (?1, ?2)", params![number, row.body])?;
    for thread in threads {
        insert_thread(db, number, thread)?;
    }
    Ok(number)
}

fn insert_thread(db: &Connection, number: i64, thread: &Thread) -> Result<(), CommitError> {
    execute(
        db,
        "INSERT INTO threads (id, session, parent, status, created_at, updated_at, archived_at, usage, activity) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        params![
            thread.id.as_str(),
            number,
            thread.parent.as_ref().map(vaquero_types::ThreadId::as_str),
            thread.status.as_str(),
            thread.created_at.as_micros(),
            thread.updated_at.as_micros(),
            thread.archived_at.map(Timestamp::as_micros),
            json(&thread.usage),
            json(&thread.activity),
        ],
    )?;
    Ok(())
}

/// A session with everything it had elsewhere.
fn restore_session(
    db: &Connection,
    restored: &Restored,
    now: Timestamp,
    effects: &mut Effects,
) -> Result<(), CommitError> {
    let Restored { row, threads, records, ready } = restored;
    let number = create_session(db, row, threads)?;
    let mut tail = Tail { number, ..Tail::default() };
    for record in records {
        place(db, &tail, record)?;
        tail.last_at = record.at.as_micros();
        if record.new.kind == RecordKind::Event {
            tail.last_event_at = tail.last_at;
        }
    }
    execute(
        db,
        "UPDATE sessions SET head = ?2, client_head = ?3, last_at = ?4, last_event_at = ?5, ready_at = ?6 WHERE n = ?1",
        params![
            number,
            int(row.head),
            int(row.client_head),
            tail.last_at,
            tail.last_event_at,
            ready.then_some(now.as_micros()),
        ],
    )?;
    effects.ready |= *ready;
    effects.grown.push((row.id.clone(), row.head, Vec::new()));
    Ok(())
}

/// The columns an append checks and moves on.
#[derive(Default)]
struct Tail {
    number: i64,
    head: Seq,
    client_head: Seq,
    revision: u64,
    epoch: u64,
    last_at: i64,
    last_event_at: i64,
    gate: String,
    primary_thread: String,
}

fn tail(db: &Connection, session: &SessionId) -> Result<Option<Tail>, CommitError> {
    let sql = "SELECT n, head, client_head, revision, epoch, last_at, last_event_at, gate, primary_thread FROM sessions WHERE id = ?1 AND deleted = 0";
    let mut statement = db.prepare_cached(sql).map_err(failed)?;
    let found = statement
        .query_row([session.as_str()], |row| {
            Ok(Tail {
                number: row.get(0)?,
                head: natural(row, "head")?,
                client_head: natural(row, "client_head")?,
                revision: natural(row, "revision")?,
                epoch: natural(row, "epoch")?,
                last_at: row.get(5)?,
                last_event_at: row.get(6)?,
                gate: row.get(7)?,
                primary_thread: row.get(8)?,
            })
        })
        .optional();
    Ok(found.map_err(failed)?)
}

/// Where a record already stands.
fn made_before(
    db: &Connection,
    number: i64,
    record: &NewRecord,
) -> Result<Option<(Seq, Timestamp)>, CommitError> {
    let sql = "SELECT seq, at FROM log WHERE session = ?1 AND event_id = ?2 AND kind = ?3";
    let mut statement = db.prepare_cached(sql).map_err(failed)?;
    let found = statement
        .query_row(params![number, record.event_id.as_str(), kind_number(record.kind)], |row| {
            Ok((natural(row, "seq")?, Timestamp::from_micros(row.get(1)?)))
        })
        .optional();
    Ok(found.map_err(failed)?)
}

fn append(
    db: &Connection,
    append: Append,
    now: Timestamp,
    effects: &mut Effects,
) -> Result<Vec<(Seq, Timestamp)>, CommitError> {
    let Append { session, author, records, change } = append;
    let Some(mut tail) = tail(db, &session)? else {
        return Err(match author {
            Author::Client { .. } => CommitError::NotFound,
            Author::Worker { .. } => CommitError::LeaseLost { session },
        });
    };
    let before = records
        .iter()
        .map(|record| made_before(db, tail.number, record))
        .collect::<Result<Vec<_>, _>>()?;
    if !records.is_empty() && before.iter().all(Option::is_some) {
        return Ok(before.into_iter().flatten().collect());
    }
    permit(&session, &author, &tail)?;
    let by_client = matches!(author, Author::Client { .. }) && !records.is_empty();
    let mut placed = Vec::with_capacity(records.len());
    let mut grown = Vec::with_capacity(records.len());
    for (new, before) in records.into_iter().zip(before) {
        if let Some(place) = before {
            placed.push(place);
        } else {
            let (seq, at) = insert(db, &mut tail, &new, now)?;
            placed.push((seq, at));
            grown.push(Record { seq, at, new });
        }
    }
    if by_client {
        tail.client_head = tail.head;
    }
    effects.ready |= change.ready == Some(true);
    update_row(db, &tail, &change, by_client, now)?;
    effects.grown.push((session, tail.head, grown));
    Ok(placed)
}

fn permit(session: &SessionId, author: &Author, tail: &Tail) -> Result<(), CommitError> {
    match author {
        Author::Client { revision } if *revision != tail.revision => Err(CommitError::Changed),
        Author::Worker { epoch, .. } if *epoch != tail.epoch => {
            Err(CommitError::LeaseLost { session: session.clone() })
        }
        Author::Worker { seen: Some(seen), .. } if *seen < tail.client_head => {
            Err(CommitError::Grown)
        }
        Author::Client { .. } | Author::Worker { .. } => Ok(()),
    }
}

fn insert(
    db: &Connection,
    tail: &mut Tail,
    record: &NewRecord,
    now: Timestamp,
) -> Result<(Seq, Timestamp), CommitError> {
    tail.head += 1;
    let mut at = now.as_micros().max(tail.last_at);
    if record.kind == RecordKind::Event {
        at = at.max(tail.last_event_at + 1);
        tail.last_event_at = at;
    }
    tail.last_at = at;
    let at = Timestamp::from_micros(at);
    place(db, tail, &Record { seq: tail.head, at, new: record.clone() })?;
    Ok((tail.head, at))
}

fn place(db: &Connection, tail: &Tail, record: &Record) -> Result<(), CommitError> {
    execute(
        db,
        "INSERT INTO log (session, seq, kind, event_id, thread, event_type, at, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        params![
            tail.number,
            int(record.seq),
            kind_number(record.new.kind),
            record.new.event_id.as_str(),
            record.new.thread.as_str(),
            record.new.event_type,
            record.at.as_micros(),
            &*record.new.body,
        ],
    )
    .map(drop)
}

fn update_row(
    db: &Connection,
    tail: &Tail,
    change: &SessionChange,
    by_client: bool,
    now: Timestamp,
) -> Result<(), CommitError> {
    let gate = if change.gate.is_empty() {
        None
    } else {
        let mut gate: Gate = serde_json::from_str(&tail.gate).map_err(|_| StoreError::Corrupt {
            what: format!("sessions.gate of row {}", tail.number),
        })?;
        change.gate.iter().for_each(|step| gate.apply(step));
        Some(json(&gate))
    };
    let decisive = by_client
        || change.status.is_some()
        || gate.is_some()
        || change.body.is_some()
        || change.archived_at.is_some();
    let revision = tail.revision + u64::from(decisive);
    let status = change.status.map(Status::as_str);
    let usage = change.usage.as_ref().map(json);
    let activity = change.activity.as_ref().map(json);
    let archived = change.archived_at.map(Timestamp::as_micros);
    let touched = decisive || usage.is_some();
    execute(
        db,
        "UPDATE sessions SET head = ?2, client_head = ?3, revision = ?4, last_at = ?5, last_event_at = ?6, \
         status = COALESCE(?7, status), gate = COALESCE(?8, gate), usage = COALESCE(?9, usage), activity = COALESCE(?10, activity), \
         archived_at = COALESCE(?11, archived_at), updated_at = CASE WHEN ?12 THEN MAX(?13, updated_at) ELSE updated_at END, \
         claims = CASE WHEN ?14 THEN 0 ELSE claims END, hands = COALESCE(?15, hands) WHERE n = ?1",
        params![
            tail.number,
            int(tail.head),
            int(tail.client_head),
            int(revision),
            tail.last_at,
            tail.last_event_at,
            status,
            gate,
            usage,
            activity,
            archived,
            touched,
            now.as_micros(),
            change.progress,
            change.hands,
        ],
    )?;
    if let Some(body) = &change.body {
        execute(db, "UPDATE bodies SET body = ?2 WHERE session = ?1", params![tail.number, body])?;
    }
    match change.ready {
        Some(true) => {
            let sql = "UPDATE sessions SET ready_at = COALESCE(ready_at, ?2) WHERE n = ?1";
            execute(db, sql, params![tail.number, now.as_micros()])?;
        }
        Some(false) => {
            let sql = "UPDATE sessions SET ready_at = NULL, lease_worker = NULL, lease_until = NULL, claims = 0 WHERE n = ?1";
            execute(db, sql, params![tail.number])?;
        }
        None => {}
    }
    if status.is_some() || usage.is_some() || activity.is_some() || archived.is_some() {
        execute(
            db,
            "UPDATE threads SET status = COALESCE(?2, status), usage = COALESCE(?3, usage), activity = COALESCE(?4, activity), \
             archived_at = COALESCE(?5, archived_at), updated_at = MAX(?6, updated_at) WHERE id = ?1",
            params![tail.primary_thread, status, usage, activity, archived, now.as_micros()],
        )?;
    }
    Ok(())
}

fn delete_session(
    db: &Connection,
    session: &SessionId,
    revision: u64,
    record: &NewRecord,
    now: Timestamp,
    effects: &mut Effects,
) -> Result<(), CommitError> {
    let Some(mut tail) = tail(db, session)? else { return Err(CommitError::NotFound) };
    if tail.revision != revision {
        return Err(CommitError::Changed);
    }
    execute(db, "DELETE FROM log WHERE session = ?1", params![tail.number])?;
    execute(db, "DELETE FROM threads WHERE session = ?1", params![tail.number])?;
    execute(db, "DELETE FROM snapshots WHERE session = ?1", params![tail.number])?;
    execute(db, "DELETE FROM bodies WHERE session = ?1", params![tail.number])?;
    execute(db, "DELETE FROM answers WHERE session = ?1", params![session.as_str()])?;
    insert(db, &mut tail, record, now)?;
    execute(
        db,
        "UPDATE sessions SET deleted = 1, head = ?2, epoch = epoch + 1, lease_worker = NULL, lease_until = NULL, ready_at = NULL, \
         gate = '[]', usage = '{}', activity = '{}' WHERE n = ?1",
        params![tail.number, int(tail.head)],
    )?;
    effects.grown.push((session.clone(), Seq::MAX, Vec::new()));
    Ok(())
}

fn put_snapshot(
    db: &Connection,
    session: &SessionId,
    snapshot: &Snapshot,
) -> Result<(), CommitError> {
    execute(
        db,
        "INSERT OR REPLACE INTO snapshots (session, seq, version, body) SELECT n, ?2, ?3, ?4 FROM sessions WHERE id = ?1 AND deleted = 0",
        params![session.as_str(), int(snapshot.seq), snapshot.version, snapshot.body],
    )?;
    Ok(())
}

fn put_answer(
    db: &Connection,
    key: &AnswerKey,
    answer: &Answer,
    now: Timestamp,
) -> Result<(), CommitError> {
    let oldest = now.as_micros() - i64::try_from(ANSWER_AGE.as_micros()).unwrap_or(i64::MAX);
    execute(db, "DELETE FROM answers WHERE at < ?1", params![oldest])?;
    let (session, events) = match &answer.events {
        Some((session, events)) => (Some(session.as_str().to_owned()), Some(json(events))),
        None => (None, None),
    };
    let made = execute(
        db,
        "INSERT INTO answers (workspace, operation, key, at, request_digest, status, body, session, events) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT DO NOTHING",
        params![
            key.workspace.as_str(),
            key.operation,
            key.key,
            now.as_micros(),
            answer.request_digest,
            answer.status,
            answer.body,
            session,
            events,
        ],
    )?;
    if made == 0 { Err(CommitError::Answered) } else { Ok(()) }
}

fn until(now: Timestamp, ttl: Duration) -> i64 {
    now.plus(ttl).as_micros()
}

/// A session that worker `?2` could claim at `?1`.
const CLAIMABLE: &str = "ready_at IS NOT NULL AND (lease_until IS NULL OR lease_until < ?1) AND (hands IS NULL OR hands = ?2 \
    OR NOT EXISTS (SELECT 1 FROM workers WHERE name = hands AND lives_until >= ?1))";

pub(crate) fn heartbeat(
    db: &Connection,
    worker: &WorkerName,
    ttl: Duration,
    now: Timestamp,
) -> Result<(), CommitError> {
    let sql = "INSERT OR REPLACE INTO workers (name, lives_until) VALUES (?1, ?2)";
    execute(db, sql, params![worker, until(now, ttl)]).map(drop)
}

pub(crate) fn claim(
    db: &Connection,
    worker: &WorkerName,
    ttl: Duration,
    now: Timestamp,
    effects: &mut Effects,
) -> Result<Option<Claimed>, StoreError> {
    let sql = format!(
        "UPDATE sessions SET epoch = epoch + 1, claims = claims + 1, lease_worker = ?2, lease_until = ?3 \
         WHERE n = (SELECT n FROM sessions WHERE {CLAIMABLE} ORDER BY ready_at LIMIT 1) RETURNING {SESSION_COLUMNS}, claims"
    );
    let mut statement = db.prepare_cached(&sql).map_err(failed)?;
    let claimed = statement
        .query_row(params![now.as_micros(), worker, until(now, ttl)], |found| {
            let row = session(found)?;
            let lease = Lease {
                session: row.id.clone(),
                workspace: row.workspace.clone(),
                epoch: row.epoch,
                claims: found.get("claims")?,
            };
            Ok(Claimed { lease, row })
        })
        .optional()
        .map_err(failed)?;
    if claimed.is_some() {
        // Whoever is next in line looks as well, if there is more to find.
        let sql = format!("SELECT 1 FROM sessions WHERE {CLAIMABLE} LIMIT 1");
        let mut statement = db.prepare_cached(&sql).map_err(failed)?;
        effects.ready |= statement.exists(params![now.as_micros(), worker]).map_err(failed)?;
    }
    Ok(claimed)
}

pub(crate) fn renew(
    db: &Connection,
    lease: &Lease,
    ttl: Duration,
    now: Timestamp,
) -> Result<(), CommitError> {
    let sql = "UPDATE sessions SET lease_until = ?3 WHERE id = ?1 AND epoch = ?2 AND deleted = 0 AND lease_worker IS NOT NULL";
    let kept =
        execute(db, sql, params![lease.session.as_str(), int(lease.epoch), until(now, ttl)])?;
    if kept == 0 { Err(CommitError::LeaseLost { session: lease.session.clone() }) } else { Ok(()) }
}

pub(crate) fn release(db: &Connection, lease: &Lease, handover: bool) -> Result<(), CommitError> {
    let sql = "UPDATE sessions SET lease_worker = NULL, lease_until = NULL, claims = MAX(0, claims - ?3) \
        WHERE id = ?1 AND epoch = ?2 AND deleted = 0 AND lease_worker IS NOT NULL";
    let values = params![lease.session.as_str(), int(lease.epoch), i64::from(handover)];
    if execute(db, sql, values)? == 0 {
        Err(CommitError::LeaseLost { session: lease.session.clone() })
    } else {
        Ok(())
    }
}
