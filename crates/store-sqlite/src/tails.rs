//! The newest records of sessions that have just grown, in memory: followers and brains that keep up never go to the disk. The writer adds what it has made
//! durable, and only that; whoever asks for more than is kept reads the database.

use lru::LruCache;
use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};
use vaquero_store::{Record, RecordKind, Seq};
use vaquero_types::{EventId, SessionId};

/// Most bytes of all sessions together.
const BYTES: usize = 16 << 20;
/// Most bytes of one session.
const SESSION_BYTES: usize = 1 << 20;
/// What a record takes beside its body.
const RECORD_BYTES: usize = 256;

/// The end of one session's log, without gaps.
#[derive(Debug, Default)]
struct Tail {
    records: VecDeque<Record>,
    bytes: usize,
}

#[derive(Debug)]
struct Kept {
    sessions: LruCache<SessionId, Tail>,
    bytes: usize,
}

/// The ends of logs.
#[derive(Debug)]
pub(crate) struct Tails(Mutex<Kept>);

fn weight(record: &Record) -> usize {
    RECORD_BYTES + record.new.body.len()
}

impl Default for Tails {
    fn default() -> Self {
        Self(Mutex::new(Kept { sessions: LruCache::unbounded(), bytes: 0 }))
    }
}

impl Tails {
    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds records that have just become durable, in order.
    pub(crate) fn grow(&self, session: &SessionId, records: Vec<Record>) {
        let mut kept = self.kept();
        let kept = &mut *kept;
        let tail = kept.sessions.get_or_insert_mut(session.clone(), Tail::default);
        let before = tail.bytes;
        for record in records {
            if tail.records.back().is_some_and(|last| last.seq + 1 != record.seq) {
                tail.records.clear();
                tail.bytes = 0;
            }
            tail.bytes += weight(&record);
            tail.records.push_back(record);
        }
        while tail.bytes > SESSION_BYTES && tail.records.len() > 1 {
            tail.bytes -= tail.records.pop_front().as_ref().map_or(0, weight);
        }
        kept.bytes = kept.bytes + tail.bytes - before;
        while kept.bytes > BYTES {
            let Some((_, oldest)) = kept.sessions.pop_lru() else { break };
            kept.bytes -= oldest.bytes;
        }
    }

    /// Forgets a session.
    pub(crate) fn forget(&self, session: &SessionId) {
        let mut kept = self.kept();
        if let Some(tail) = kept.sessions.pop(session) {
            kept.bytes -= tail.bytes;
        }
    }

    /// Where a session's log ends, if that is known here.
    pub(crate) fn head(&self, session: &SessionId) -> Option<Seq> {
        self.kept().sessions.peek(session)?.records.back().map(|record| record.seq)
    }

    /// A client event as it was received, if that was lately.
    pub(crate) fn received(&self, session: &SessionId, event: &EventId) -> Option<Record> {
        let kept = self.kept();
        let mut records = kept.sessions.peek(session)?.records.iter().rev();
        let first = |record: &&Record| {
            record.new.kind == RecordKind::Received && record.new.event_id == *event
        };
        records.find(first).cloned()
    }

    /// All records after `after`, up to `max_bytes` of bodies but at least one; none if not all of them are here.
    pub(crate) fn read(
        &self,
        session: &SessionId,
        after: Seq,
        max_bytes: usize,
    ) -> Option<Vec<Record>> {
        let mut kept = self.kept();
        let records = &kept.sessions.get(session)?.records;
        let first = records.front()?.seq;
        let skip = usize::try_from((after + 1).checked_sub(first)?).ok()?;
        let mut bytes = 0;
        let fitting = records.iter().skip(skip).take_while(|record| {
            let fits = bytes == 0 || bytes + record.new.body.len() <= max_bytes;
            bytes += record.new.body.len();
            fits
        });
        Some(fitting.cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vaquero_types::{ThreadId, Timestamp, record::NewRecord};

    fn record(seq: Seq, bytes: usize) -> Record {
        let new = NewRecord {
            kind: RecordKind::Event,
            event_id: EventId::from_wire(format!("sevt_{seq}")),
            thread: ThreadId::from_wire("sthr_1"),
            event_type: "agent.message".to_owned(),
            body: "x".repeat(bytes).into(),
        };
        Record { seq, at: Timestamp::from_micros(0), new }
    }

    fn seqs(found: Option<Vec<Record>>) -> Option<Vec<Seq>> {
        Some(found?.into_iter().map(|record| record.seq).collect())
    }

    #[test]
    fn it_answers_only_what_it_knows_whole() {
        let (tails, one) = (Tails::default(), SessionId::from_wire("sesn_1"));
        assert_eq!(tails.read(&one, 0, 100), None);
        tails.grow(&one, vec![record(5, 10), record(6, 10)]);
        assert_eq!(seqs(tails.read(&one, 3, 100)), None, "the fourth is missing");
        assert_eq!(seqs(tails.read(&one, 4, 100)), Some(vec![5, 6]));
        assert_eq!(seqs(tails.read(&one, 4, 1)), Some(vec![5]), "at least one");
        assert_eq!(seqs(tails.read(&one, 9, 100)), Some(vec![]));
        tails.grow(&one, vec![record(8, 10)]);
        assert_eq!(seqs(tails.read(&one, 6, 100)), None, "a gap begins anew");
        tails.forget(&one);
        assert_eq!(tails.head(&one), None);
    }

    #[test]
    fn it_stays_small() {
        let tails = Tails::default();
        let name = |n: usize| SessionId::from_wire(format!("sesn_{n}"));
        for n in 0..50 {
            tails.grow(&name(n), vec![record(1, SESSION_BYTES / 2), record(2, SESSION_BYTES)]);
        }
        assert_eq!(seqs(tails.read(&name(49), 1, usize::MAX)), Some(vec![2]));
        assert_eq!(tails.head(&name(0)), None);
        assert!(tails.kept().bytes <= BYTES);
    }
}
