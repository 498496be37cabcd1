//! The first round trip: everything the rules want to know, locked against whoever else writes.

use super::{BEGIN, Failure, Param, Query, Work};
use crate::{
    rows::{Columns, kind, state},
    statements::Statements,
};
use futures::FutureExt;
use std::collections::{BTreeSet, HashMap};
use tokio_postgres::{Client, Error, Row};
use vaquero_store::{
    AnswerKey, StoreError,
    workset::{ANSWER_AGE, DocumentKey, Found, Needs, Session, WorkSet},
};
use vaquero_types::{EventId, SessionId, Timestamp, WorkspaceId};

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    pub(super) set: WorkSet,
    /// The numbers of sessions, those that will be made included.
    pub(super) numbers: Numbers,
    pub(super) transaction: Option<String>,
    /// Documents that the database has.
    pub(super) stored: BTreeSet<DocumentKey>,
    /// The database's clock.
    pub(super) now: Timestamp,
}

/// Sessions have numbers in the tables: they are shorter than their names.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    known: HashMap<SessionId, i64>,
    free: Vec<i64>,
}

impl Numbers {
    /// The number of a session; one that is new gets a fresh one.
    pub(super) fn of(&mut self, session: &SessionId) -> i64 {
        if let Some(number) = self.known.get(session) {
            return *number;
        }
        let number = self.free.pop().expect("as many numbers were fetched as sessions are made");
        self.known.insert(session.clone(), number);
        number
    }
}

/// Document keys as columns.
pub(super) fn columns<'a>(keys: impl Iterator<Item = &'a DocumentKey>) -> [Vec<String>; 3] {
    let mut columns = [Vec::new(), Vec::new(), Vec::new()];
    for (workspace, kind, name) in keys {
        columns[0].push(workspace.as_str().to_owned());
        columns[1].push(kind.clone());
        columns[2].push(name.clone());
    }
    columns
}

fn params(columns: &[Vec<String>; 3]) -> [Param<'_>; 3] {
    [&columns[0], &columns[1], &columns[2]]
}

pub(super) async fn load(
    client: &Client,
    statements: &Statements,
    needs: &Needs,
    works: &[&Work],
) -> Result<Loaded, Failure> {
    let s = statements;
    let shared = columns(needs.documents.iter().filter(|(_, changes)| !**changes).map(|(k, _)| k));
    let locked = columns(needs.documents.iter().filter(|(_, changes)| **changes).map(|(k, _)| k));
    let unique = columns(needs.unique_keys.iter());
    let sessions: Vec<&str> = needs.sessions.iter().map(SessionId::as_str).collect();
    let (owners, events): (Vec<&str>, Vec<&str>) =
        needs.records.iter().map(|(session, event)| (session.as_str(), event.as_str())).unzip();
    let answers: [Vec<&str>; 3] = [
        needs.answers.iter().map(|key| key.workspace.as_str()).collect(),
        needs.answers.iter().map(|key| key.operation.as_str()).collect(),
        needs.answers.iter().map(|key| key.key.as_str()).collect(),
    ];
    let oldest = oldest_answer(works);
    let new = i32::try_from(needs.new_sessions).unwrap_or(i32::MAX);
    let none = || -> Query<'_, Vec<Row>> { async { Ok(Vec::new()) }.boxed() };
    let documents = [params(&shared), params(&locked), params(&unique)];
    let of_sessions: [Param<'_>; 1] = [&sessions];
    let of_records: [Param<'_>; 2] = [&owners, &events];
    let of_answers: [Param<'_>; 4] = [&answers[0], &answers[1], &answers[2], &oldest];
    let of_new: [Param<'_>; 1] = [&new];
    let run = |wanted: bool, statement, params| -> Query<'_, Vec<Row>> {
        if wanted { client.query(statement, params).boxed() } else { none() }
    };
    let queries = vec![
        client.batch_execute(BEGIN).map(|done| done.map(|()| Vec::new())).boxed(),
        client.query(&s.begin, &[]).boxed(),
        run(!shared[0].is_empty(), &s.share_documents, &documents[0]),
        run(!locked[0].is_empty(), &s.lock_documents, &documents[1]),
        run(!unique[0].is_empty(), &s.holders, &documents[2]),
        run(!sessions.is_empty(), &s.lock_sessions, &of_sessions),
        run(!owners.is_empty(), &s.made, &of_records),
        run(!answers[0].is_empty(), &s.answered, &of_answers),
        run(new > 0, &s.numbers, &of_new),
    ];
    let results: Vec<Result<Vec<Row>, Error>> = futures::future::join_all(queries).await;
    let rows = results.into_iter().collect::<Result<Vec<_>, _>>().map_err(Failure::Before)?;
    Ok(understand(&rows)?)
}

/// The oldest instant at which an answer still holds its key. The caller's clock will do: a day is long against the difference of two clocks.
fn oldest_answer(works: &[&Work]) -> i64 {
    let age = i64::try_from(ANSWER_AGE.as_micros()).unwrap_or(i64::MAX);
    let now = works.iter().find_map(|work| match work {
        Work::Commit { now, .. } => Some(now.as_micros()),
        _ => None,
    });
    now.unwrap_or(0).saturating_sub(age)
}

fn understand(rows: &[Vec<Row>]) -> Result<Loaded, StoreError> {
    let [_, begun, shared, locked, holders, sessions, made, answered, new] = rows else {
        return Err(StoreError::Closed);
    };
    let mut loaded = Loaded::default();
    for row in begun {
        let mut columns = Columns::of(row);
        loaded.transaction = Some(columns.get()?);
        loaded.now = columns.instant()?;
    }
    for row in shared.iter().chain(locked) {
        let mut columns = Columns::of(row);
        let key: DocumentKey =
            (columns.id(WorkspaceId::from_wire)?, columns.get()?, columns.get()?);
        let found = Found { revision: columns.natural()?, unique_key: columns.get()? };
        loaded.stored.insert(key.clone());
        loaded.set.documents.insert(key, found);
    }
    for row in holders {
        let mut columns = Columns::of(row);
        let key = (columns.id(WorkspaceId::from_wire)?, columns.get()?, columns.get()?);
        loaded.set.holders.insert(key, columns.get()?);
    }
    for row in sessions {
        let mut columns = Columns::of(row);
        let number = columns.get()?;
        let id = columns.id(SessionId::from_wire)?;
        loaded.numbers.known.insert(id.clone(), number);
        loaded.set.sessions.insert(id, Session::found(state(&mut columns)?));
    }
    for row in made {
        let mut columns = Columns::of(row);
        let session = columns.id(SessionId::from_wire)?;
        let event = columns.id(EventId::from_wire)?;
        let kind = kind(columns.get()?);
        let place = (columns.natural()?, columns.instant()?);
        if let Some(session) = loaded.set.sessions.get_mut(&session) {
            session.made.insert((event, kind), place);
        }
    }
    for row in answered {
        let mut columns = Columns::of(row);
        let workspace = columns.id(WorkspaceId::from_wire)?;
        let key = AnswerKey { workspace, operation: columns.get()?, key: columns.get()? };
        loaded.set.answered.insert(key);
    }
    for row in new {
        loaded.numbers.free.push(Columns::of(row).get()?);
    }
    Ok(loaded)
}
