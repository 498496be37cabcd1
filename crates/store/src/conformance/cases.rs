//! The cases, each named after the promise it holds a store to.

use super::fixture::{
    PATIENCE, append, at, by, claimed, document, event, log, message, names, new_session, put,
    record, session_id, thread_id, workspace,
};
use crate::{
    Answer, AnswerKey, Author, CommitError, DocumentQuery, EventQuery, Expect, Order, RecordKind,
    SessionChange, SessionQuery, SharedStore, Snapshot, Write,
};
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::{task::JoinSet, time::timeout};
use vaquero_types::{
    EventId,
    gate::{Awaits, GateChange},
    session::Status,
    usage::Usage,
};

pub(super) async fn documents_are_kept_with_their_revisions(store: SharedStore) {
    store.commit(vec![put(document("x", 1), Expect::Absent)], at(1)).await.expect("created");
    let kept =
        store.document(&workspace("a"), "thing", "x").await.expect("readable").expect("there");
    assert_eq!(kept.revision, 1);
    let again = store.commit(vec![put(document("x", 1), Expect::Absent)], at(1)).await;
    assert!(matches!(again, Err(CommitError::Changed)));
    store.commit(vec![put(document("x", 1), Expect::Revision(1))], at(2)).await.expect("replaced");
    let stale = store.commit(vec![put(document("x", 1), Expect::Revision(1))], at(2)).await;
    assert!(matches!(stale, Err(CommitError::Changed)));
    let missing = store.commit(vec![put(document("y", 1), Expect::Revision(1))], at(2)).await;
    assert!(matches!(missing, Err(CommitError::NotFound)));
    assert_eq!(store.document(&workspace("b"), "thing", "x").await.expect("readable"), None);
    let remove = Write::DeleteDocument {
        workspace: workspace("a"),
        kind: "thing".to_owned(),
        id: "x".to_owned(),
        expect: Expect::Revision(2),
    };
    store.commit(vec![remove], at(3)).await.expect("removed");
    assert_eq!(store.document(&workspace("a"), "thing", "x").await.expect("readable"), None);
}

pub(super) async fn unique_keys_hold_within_a_workspace_and_kind(store: SharedStore) {
    let named = |id: &str, owner: &str| crate::Document {
        workspace: workspace(owner),
        unique_key: Some("name".to_owned()),
        ..document(id, 1)
    };
    store.commit(vec![put(named("x", "a"), Expect::Absent)], at(1)).await.expect("first");
    let second = store.commit(vec![put(named("y", "a"), Expect::Absent)], at(1)).await;
    assert!(matches!(second, Err(CommitError::Duplicate { key }) if key == "name"));
    store
        .commit(vec![put(named("y", "b"), Expect::Absent)], at(1))
        .await
        .expect("another workspace");
    store.commit(vec![put(named("x", "a"), Expect::Any)], at(2)).await.expect("its own key");
    let found = store.document_by_key(&workspace("b"), "thing", "name").await.expect("readable");
    assert_eq!(found.map(|found| found.id), Some("y".to_owned()));
}

pub(super) async fn documents_page_without_gaps(store: SharedStore) {
    for number in 0..7 {
        let mut made = document(&format!("d{number}"), i64::from(number / 2));
        made.archived_at = (number == 3).then(|| at(9));
        store.commit(vec![put(made, Expect::Absent)], at(1)).await.expect("created");
    }
    let mut query = DocumentQuery {
        order: Order::Descending,
        ..DocumentQuery::new(workspace("a"), "thing", 2)
    };
    let mut seen = Vec::new();
    loop {
        let page = store.documents(&query).await.expect("readable");
        seen.extend(page.documents.iter().map(|document| document.id.clone()));
        let Some(last) = page.documents.last().filter(|_| page.more) else { break };
        query.cursor = Some((last.created_at, last.id.clone()));
    }
    assert_eq!(seen, ["d6", "d5", "d4", "d2", "d1", "d0"]);
    let bounded = DocumentQuery {
        from: Some(at(1)),
        until: Some(at(2)),
        cursor: None,
        limit: 10,
        include_archived: true,
        ..query
    };
    assert_eq!(store.documents(&bounded).await.expect("readable").documents.len(), 4);
}

pub(super) async fn a_refused_commit_changes_nothing(store: SharedStore) {
    store.commit(vec![put(document("x", 1), Expect::Absent)], at(1)).await.expect("created");
    let mixed = vec![
        new_session("s", 1),
        append(
            "s",
            Author::Client { revision: 1 },
            vec![event("s", "1")],
            SessionChange::default(),
        ),
        put(document("x", 1), Expect::Absent),
    ];
    assert!(matches!(store.commit(mixed, at(2)).await, Err(CommitError::Changed)));
    assert_eq!(store.session(&session_id("s")).await.expect("readable"), None);
    assert_eq!(store.position(&session_id("s")).await.expect("readable"), None);
}

pub(super) async fn sequence_and_time_only_go_forward(store: SharedStore) {
    store.commit(vec![new_session("s", 1)], at(1)).await.expect("created");
    for (number, second) in [(1, 10), (2, 5), (3, 5), (4, 11)] {
        let row = store.session(&session_id("s")).await.expect("readable").expect("there");
        let author = Author::Client { revision: row.revision };
        let records = vec![event("s", &number.to_string())];
        store
            .commit(vec![append("s", author, records, SessionChange::default())], at(second))
            .await
            .expect("appended");
    }
    let records = log(&store, "s").await;
    assert_eq!(records.iter().map(|record| record.seq).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert!(records.windows(2).all(|pair| pair[0].at < pair[1].at), "strictly later each time");
    assert_eq!(records[0].at, at(10));
    assert_eq!(records[3].at, at(11));
}

pub(super) async fn appends_are_idempotent_even_after_the_lease_is_lost(store: SharedStore) {
    store.commit(vec![new_session("s", 1)], at(1)).await.expect("created");
    message(&store, "s", "m", 2).await.expect("accepted");
    let lease = claimed(&store, 3).await;
    let write = || {
        append("s", by(&lease), vec![event("s", "1"), event("s", "2")], SessionChange::default())
    };
    let first = store.commit(vec![write()], at(4)).await.expect("appended");
    let second = store.commit(vec![write()], at(5)).await.expect("repeated");
    assert_eq!(first, second);
    let later = claimed(&store, 1_000).await;
    assert!(later.epoch > lease.epoch);
    assert_eq!(store.commit(vec![write()], at(1_001)).await.expect("repeated"), first);
    assert_eq!(log(&store, "s").await.len(), 3);
}

pub(super) async fn clients_are_checked_against_the_revision(store: SharedStore) {
    store.commit(vec![new_session("s", 1)], at(1)).await.expect("created");
    message(&store, "s", "m", 2).await.expect("accepted");
    let stale = append(
        "s",
        Author::Client { revision: 1 },
        vec![event("s", "1")],
        SessionChange::default(),
    );
    assert!(matches!(store.commit(vec![stale], at(3)).await, Err(CommitError::Changed)));
    let before = store.session(&session_id("s")).await.expect("readable").expect("there").revision;
    let lease = claimed(&store, 3).await;
    store
        .commit(
            vec![append("s", by(&lease), vec![event("s", "2")], SessionChange::default())],
            at(4),
        )
        .await
        .expect("appended");
    let after = store.session(&session_id("s")).await.expect("readable").expect("there").revision;
    assert_eq!(before, after, "a brain's plain events do not disturb clients");
    let gate = vec![GateChange::Open(EventId::from_wire("sevt_2"), Awaits::CustomResult)];
    let change = SessionChange { gate, ..SessionChange::default() };
    store
        .commit(vec![append("s", by(&lease), vec![event("s", "3")], change)], at(5))
        .await
        .expect("appended");
    let row = store.session(&session_id("s")).await.expect("readable").expect("there");
    assert!(row.revision > after);
    assert_eq!(row.gate.unanswered(), [EventId::from_wire("sevt_2")]);
}

fn all_events() -> EventQuery {
    EventQuery {
        session: session_id("s"),
        thread: None,
        types: Vec::new(),
        after: None,
        from: None,
        before: None,
        until: None,
        descending: false,
        cursor: None,
        limit: 100,
    }
}

/// Four events, two of them once queued, and two that still are.
async fn mixed_log(store: &SharedStore) {
    store.commit(vec![new_session("s", 1)], at(1)).await.expect("created");
    message(store, "s", "m1", 2).await.expect("accepted");
    let lease = claimed(store, 3).await;
    let taken = record("s", RecordKind::Event, "m1", "user.message");
    let private = record("s", RecordKind::Transcript, "t1", "transcript");
    let records = vec![taken, private, event("s", "e1")];
    store
        .commit(vec![append("s", by(&lease), records, SessionChange::default())], at(4))
        .await
        .expect("appended");
    message(store, "s", "m2", 5).await.expect("accepted");
    message(store, "s", "m3", 6).await.expect("accepted");
    let change = SessionChange::default();
    store
        .commit(vec![append("s", by(&lease), vec![event("s", "e2")], change)], at(7))
        .await
        .expect("appended");
}

pub(super) async fn events_are_listed_once_with_queued_ones_last(store: SharedStore) {
    mixed_log(&store).await;
    let page = store.events(&all_events()).await.expect("readable");
    assert_eq!(names(&page.records), ["m1", "e1", "e2", "m2", "m3"]);
    assert_eq!(page.next, None);
    assert_eq!(page.records[0].new.kind, RecordKind::Event);
    let newest_first = EventQuery { descending: true, ..all_events() };
    let page = store.events(&newest_first).await.expect("readable");
    assert_eq!(names(&page.records), ["e2", "e1", "m1", "m2", "m3"]);
    for descending in [false, true] {
        let mut query = EventQuery { limit: 2, descending, ..all_events() };
        let mut seen = Vec::new();
        loop {
            let page = store.events(&query).await.expect("readable");
            seen.extend(names(&page.records));
            query.cursor = page.next;
            if page.next.is_none() {
                break;
            }
        }
        let unique: BTreeSet<&String> = seen.iter().collect();
        assert_eq!((seen.len(), unique.len()), (5, 5), "paged: {seen:?}");
    }
    let first =
        store.event(&session_id("s"), &EventId::from_wire("sevt_m1")).await.expect("readable");
    assert_eq!(first.expect("there").new.kind, RecordKind::Received, "as it was accepted");
}

pub(super) async fn a_page_survives_events_being_processed(store: SharedStore) {
    mixed_log(&store).await;
    let query = EventQuery { limit: 4, ..all_events() };
    let page = store.events(&query).await.expect("readable");
    assert_eq!(names(&page.records), ["m1", "e1", "e2", "m2"]);
    let lease = claimed(&store, 100).await;
    let taken = record("s", RecordKind::Event, "m3", "user.message");
    store
        .commit(vec![append("s", by(&lease), vec![taken], SessionChange::default())], at(101))
        .await
        .expect("appended");
    let rest = store.events(&EventQuery { cursor: page.next, ..query }).await.expect("readable");
    assert_eq!(
        names(&rest.records),
        ["m3"],
        "what was processed since is found by its processed record"
    );
}

pub(super) async fn events_filter_by_type_thread_and_time(store: SharedStore) {
    mixed_log(&store).await;
    let of_type = EventQuery { types: vec!["user.message".to_owned()], ..all_events() };
    assert_eq!(names(&store.events(&of_type).await.expect("readable").records), ["m1", "m2", "m3"]);
    let elsewhere = EventQuery { thread: Some(thread_id("other")), ..all_events() };
    assert!(store.events(&elsewhere).await.expect("readable").records.is_empty());
    let late = EventQuery { from: Some(at(7)), ..all_events() };
    assert_eq!(
        names(&store.events(&late).await.expect("readable").records),
        ["e2"],
        "queued events have no time"
    );
    let early = EventQuery { before: Some(at(7)), ..all_events() };
    assert_eq!(names(&store.events(&early).await.expect("readable").records), ["m1", "e1"]);
}

pub(super) async fn a_deleted_session_leaves_a_tombstone(store: SharedStore) {
    mixed_log(&store).await;
    let id = session_id("s");
    let row = store.session(&id).await.expect("readable").expect("there");
    let lease = claimed(&store, 100).await;
    let delete = |revision| Write::DeleteSession {
        session: id.clone(),
        revision,
        record: record("s", RecordKind::Event, "gone", "session.deleted"),
    };
    let stale = store.commit(vec![delete(row.revision + 7)], at(101)).await;
    assert!(matches!(stale, Err(CommitError::Changed)));
    let waiting = Arc::clone(&store);
    let waiter = {
        let id = id.clone();
        async move { waiting.wait_past(&id, row.head).await }
    };
    let deletion = store.commit(vec![delete(row.revision)], at(102));
    let (waited, deleted) = tokio::join!(timeout(PATIENCE, waiter), deletion);
    deleted.expect("deleted");
    waited.expect("woken").expect("readable");
    assert_eq!(store.session(&id).await.expect("readable"), None);
    assert!(store.threads(&id).await.expect("readable").is_empty());
    assert!(store.events(&all_events()).await.expect("readable").records.is_empty());
    let left = store.read(&id, row.head, usize::MAX).await.expect("readable");
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].new.event_type, "session.deleted");
    assert!(left[0].seq > row.head);
    assert!(store.position(&id).await.expect("readable").expect("known").deleted);
    let late = append("s", by(&lease), vec![event("s", "late")], SessionChange::default());
    assert!(matches!(store.commit(vec![late], at(103)).await, Err(CommitError::LeaseLost { .. })));
    let kept = store.kept_by(&"w".to_owned(), &[session_id("s")]).await.expect("readable");
    assert!(kept.is_empty());
    timeout(PATIENCE, store.wait_past(&id, left[0].seq))
        .await
        .expect("never blocks again")
        .expect("readable");
}

pub(super) async fn answers_hold_their_key_for_a_day(store: SharedStore) {
    let day = Duration::from_secs(24 * 3600);
    let key = |name: &str| AnswerKey {
        workspace: workspace("a"),
        operation: "POST /v1/things".to_owned(),
        key: name.to_owned(),
    };
    let answer =
        Answer { request_digest: "d".to_owned(), status: 200, body: "{}".to_owned(), events: None };
    let keep = || Write::PutAnswer { key: key("k"), answer: answer.clone() };
    store.commit(vec![keep()], at(10)).await.expect("kept");
    assert_eq!(store.answer(&key("k"), at(11), day).await.expect("readable"), Some(answer.clone()));
    assert_eq!(store.answer(&key("other"), at(11), day).await.expect("readable"), None);
    let twice = vec![put(document("x", 1), Expect::Absent), keep()];
    assert!(matches!(store.commit(twice, at(12)).await, Err(CommitError::Answered)));
    assert_eq!(store.document(&workspace("a"), "thing", "x").await.expect("readable"), None);
    assert_eq!(store.answer(&key("k"), at(10 + 90_000), day).await.expect("readable"), None);
    store.commit(vec![keep()], at(10 + 90_000)).await.expect("free again");
}

pub(super) async fn sessions_filter_and_page(store: SharedStore) {
    for number in 0..6 {
        store
            .commit(vec![new_session(&format!("s{number}"), number)], at(number))
            .await
            .expect("created");
    }
    let archive = SessionChange {
        archived_at: Some(at(9)),
        status: Some(Status::Terminated),
        ..SessionChange::default()
    };
    store
        .commit(vec![append("s2", Author::Client { revision: 1 }, Vec::new(), archive)], at(9))
        .await
        .expect("archived");
    let query = SessionQuery {
        workspace: workspace("a"),
        agent: None,
        agent_version: None,
        statuses: Vec::new(),
        after: None,
        from: None,
        before: None,
        until: None,
        include_archived: false,
        order: Order::Ascending,
        cursor: None,
        limit: 2,
    };
    let first = store.sessions(&query).await.expect("readable");
    assert!(first.more);
    let last = first.sessions.last().expect("two of them");
    let next = SessionQuery { cursor: Some((last.created_at, last.id.clone())), ..query.clone() };
    let next = store.sessions(&next).await.expect("readable").sessions;
    let ids: Vec<&str> = first.sessions.iter().chain(&next).map(|row| row.id.as_str()).collect();
    assert_eq!(ids, ["sesn_s0", "sesn_s1", "sesn_s3", "sesn_s4"]);
    let terminated = SessionQuery {
        statuses: vec![Status::Terminated],
        include_archived: true,
        ..query.clone()
    };
    assert_eq!(store.sessions(&terminated).await.expect("readable").sessions.len(), 1);
    let between =
        SessionQuery { after: Some(at(0)), until: Some(at(3)), limit: 10, ..query.clone() };
    assert_eq!(store.sessions(&between).await.expect("readable").sessions.len(), 2);
    let elsewhere = SessionQuery { workspace: workspace("b"), ..query };
    assert!(store.sessions(&elsewhere).await.expect("readable").sessions.is_empty());
}

pub(super) async fn sessions_at_rest_grow_old(store: SharedStore) {
    for (name, second) in [("old", 10), ("busy", 10), ("new", 500), ("archived", 10)] {
        store.commit(vec![new_session(name, second)], at(second)).await.expect("created");
    }
    let change = |status, archived_at| SessionChange {
        status: Some(status),
        archived_at,
        ..SessionChange::default()
    };
    let client = || Author::Client { revision: 1 };
    let busy = append("busy", client(), Vec::new(), change(Status::Running, None));
    store.commit(vec![busy], at(11)).await.expect("changed");
    let archived =
        append("archived", client(), Vec::new(), change(Status::Terminated, Some(at(12))));
    store.commit(vec![archived], at(12)).await.expect("changed");
    let found = async |archived, before| {
        let rows = store.outdated(archived, at(before), 10).await.expect("readable");
        rows.into_iter().map(|row| row.id).collect::<Vec<_>>()
    };
    assert_eq!(found(false, 100).await, [session_id("old")]);
    assert_eq!(found(true, 100).await, [session_id("archived")]);
    assert_eq!(found(true, 12).await, []);
    assert_eq!(store.outdated(false, at(900), 1).await.expect("readable").len(), 1, "the limit");
}

pub(super) async fn status_changes_reach_the_primary_thread(store: SharedStore) {
    store.commit(vec![new_session("s", 1)], at(1)).await.expect("created");
    let usage = Usage { input_tokens: 3, ..Usage::default() };
    let change = SessionChange {
        status: Some(Status::Running),
        usage: Some(usage),
        ..SessionChange::default()
    };
    store
        .commit(
            vec![append("s", Author::Client { revision: 1 }, vec![event("s", "1")], change)],
            at(2),
        )
        .await
        .expect("appended");
    let row = store.session(&session_id("s")).await.expect("readable").expect("there");
    let threads = store.threads(&session_id("s")).await.expect("readable");
    assert_eq!((row.status, row.usage), (Status::Running, usage));
    assert_eq!((threads[0].status, threads[0].usage), (Status::Running, usage));
    assert_eq!((row.updated_at, threads[0].updated_at), (at(2), at(2)));
}

pub(super) async fn nobody_waiting_for_growth_is_missed(store: SharedStore) {
    const RECORDS: u64 = 50;
    store.commit(vec![new_session("s", 1)], at(1)).await.expect("created");
    let mut followers = JoinSet::new();
    for _ in 0..20 {
        let store = Arc::clone(&store);
        followers.spawn(async move {
            let mut seen = 0;
            while seen < RECORDS {
                store.wait_past(&session_id("s"), seen).await.expect("readable");
                let records = store.read(&session_id("s"), seen, 64).await.expect("readable");
                seen = records.last().map_or(seen, |record| record.seq);
            }
        });
    }
    for number in 0..RECORDS {
        let row = store.session(&session_id("s")).await.expect("readable").expect("there");
        let author = Author::Client { revision: row.revision };
        let write =
            append("s", author, vec![event("s", &number.to_string())], SessionChange::default());
        store.commit(vec![write], at(2)).await.expect("appended");
        if number % 7 == 0 {
            tokio::task::yield_now().await;
        }
    }
    timeout(PATIENCE, followers.join_all()).await.expect("every follower reaches the end");
}

pub(super) async fn concurrent_appends_leave_no_gap(store: SharedStore) {
    const WRITERS: u64 = 16;
    const EACH: u64 = 20;
    store.commit(vec![new_session("s", 1)], at(1)).await.expect("created");
    message(&store, "s", "m", 2).await.expect("accepted");
    let lease = claimed(&store, 3).await;
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let (store, author) = (Arc::clone(&store), by(&lease));
        writers.spawn(async move {
            for number in 0..EACH {
                let records = vec![event("s", &format!("{writer}x{number}"))];
                let write = append("s", author.clone(), records, SessionChange::default());
                store.commit(vec![write], at(4)).await.expect("appended");
            }
        });
    }
    writers.join_all().await;
    let seqs: Vec<u64> = log(&store, "s").await.iter().map(|record| record.seq).collect();
    assert_eq!(seqs, (1..=WRITERS * EACH + 1).collect::<Vec<u64>>());
}

pub(super) async fn a_session_is_restored_as_it_was(store: SharedStore) {
    mixed_log(&store).await;
    let id = session_id("s");
    let mut row = store.session(&id).await.expect("readable").expect("there");
    let threads = store.threads(&id).await.expect("readable");
    let records = log(&store, "s").await;
    let again = |row: &crate::SessionRow| {
        Write::RestoreSession(crate::Restored {
            row: row.clone(),
            threads: threads.clone(),
            records: records.clone(),
            ready: true,
        })
    };
    let twice = store.commit(vec![again(&row)], at(900)).await;
    assert!(matches!(twice, Err(CommitError::Changed)));
    row.id = session_id("copy");
    row.primary_thread = thread_id("copy");
    let mut copied = crate::Restored {
        row: row.clone(),
        threads: threads.clone(),
        records: records.clone(),
        ready: true,
    };
    copied.threads[0].id = thread_id("copy");
    store.commit(vec![Write::RestoreSession(copied)], at(900)).await.expect("restored");
    assert_eq!(log(&store, "copy").await, records, "with the instants it had");
    let kept = store.session(&row.id).await.expect("readable").expect("there");
    assert_eq!((kept.head, kept.client_head, kept.epoch), (row.head, row.client_head, 0));
    assert_eq!((kept.gate, kept.usage, kept.body), (row.gate, row.usage, row.body));
    let lease = loop {
        let lease = claimed(&store, 1_000).await;
        if lease.session == row.id {
            break lease;
        }
    };
    store
        .commit(
            vec![append("copy", by(&lease), vec![event("copy", "next")], SessionChange::default())],
            at(1_001),
        )
        .await
        .expect("it goes on");
    assert_eq!(log(&store, "copy").await.last().map(|record| record.seq), Some(row.head + 1));
}

pub(super) async fn snapshots_are_kept_for_living_sessions(store: SharedStore) {
    store.commit(vec![new_session("s", 1)], at(1)).await.expect("created");
    let keep = |seq| Write::PutSnapshot {
        session: session_id("s"),
        snapshot: Snapshot { seq, version: 1, body: vec![1, 2, 3] },
    };
    store.commit(vec![keep(1)], at(2)).await.expect("kept");
    store.commit(vec![keep(2)], at(3)).await.expect("replaced");
    let kept = store.snapshot(&session_id("s")).await.expect("readable").expect("there");
    assert_eq!((kept.seq, kept.body), (2, vec![1, 2, 3]));
    assert_eq!(store.snapshot(&session_id("none")).await.expect("readable"), None);
}
