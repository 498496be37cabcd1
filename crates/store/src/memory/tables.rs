//! Between the tables and the set that decides.

use super::{Kept, Tables};
use crate::{
    Seq,
    workset::{ANSWER_AGE, Found, Needs, Put, Session, WorkSet},
};
use vaquero_types::{SessionId, Timestamp};

impl Tables {
    /// Reads what `needs` names.
    pub(super) fn load(&mut self, needs: &Needs, now: Timestamp) -> WorkSet {
        let mut set = WorkSet::default();
        for key in needs.documents.keys() {
            let Some(document) = self.documents.get(key) else { continue };
            let found =
                Found { revision: document.revision, unique_key: document.unique_key.clone() };
            set.documents.insert(key.clone(), found);
        }
        for (key, document) in &self.documents {
            let Some(unique) = &document.unique_key else { continue };
            let held = (key.0.clone(), key.1.clone(), unique.clone());
            if needs.unique_keys.contains(&held) {
                set.holders.insert(held, document.id.clone());
            }
        }
        for id in &needs.sessions {
            let Some(kept) = self.sessions.get(id) else { continue };
            let mut session = Session::found(kept.state.clone());
            for record in &kept.log {
                if needs.records.contains(&(id.clone(), record.new.event_id.clone())) {
                    let place = (record.seq, record.at);
                    session.made.insert((record.new.event_id.clone(), record.new.kind), place);
                }
            }
            set.sessions.insert(id.clone(), session);
        }
        self.answers.retain(|_, (at, _)| now.since(*at) <= ANSWER_AGE);
        let answered = needs.answers.iter().filter(|key| self.answers.contains_key(key));
        set.answered = answered.cloned().collect();
        set
    }

    /// Writes what was decided; the sessions that grew, and to where.
    pub(super) fn save(&mut self, set: WorkSet) -> Vec<(SessionId, Seq)> {
        for (key, document) in set.put_documents {
            match document {
                Put::Written(document) => drop(self.documents.insert(key, document)),
                Put::Removed => drop(self.documents.remove(&key)),
            }
        }
        for (key, answer, at) in set.put_answers {
            self.answers.insert(key, (at, answer));
        }
        let mut grown = Vec::new();
        for (id, session) in set.sessions {
            if session.changed {
                let deleted = session.state.deleted;
                grown.push((id.clone(), if deleted { Seq::MAX } else { session.state.head }));
                if deleted {
                    self.forget_answers(&id);
                }
                self.save_session(id, session);
            }
        }
        for (id, snapshot) in set.put_snapshots {
            if let Some(kept) = self.sessions.get_mut(&id).filter(|kept| !kept.state.deleted) {
                kept.snapshot = Some(snapshot);
            }
        }
        grown
    }

    fn forget_answers(&mut self, session: &SessionId) {
        self.answers.retain(|_, (_, answer)| {
            answer.events.as_ref().is_none_or(|(owner, _)| owner != session)
        });
    }

    fn save_session(&mut self, id: SessionId, mut session: Session) {
        if let Some((row, threads)) = session.new.take() {
            let (state, log) = (session.state.clone(), Vec::new());
            self.sessions.insert(id.clone(), Kept { row, state, threads, log, snapshot: None });
        }
        let Some(kept) = self.sessions.get_mut(&id) else { return };
        if session.state.deleted {
            kept.log.clear();
            kept.threads.clear();
            kept.snapshot = None;
        }
        kept.log.extend(session.grown().iter().map(|grown| grown.record.clone()));
        kept.row.body = session.body.unwrap_or_else(|| std::mem::take(&mut kept.row.body));
        kept.state = session.state;
        kept.state.show(&mut kept.row);
        let (state, primary) = (&kept.state, &kept.row.primary_thread);
        let thread = kept.threads.iter_mut().find(|thread| thread.id == *primary);
        if let Some((thread, at)) = thread.zip(session.thread_changed_at) {
            thread.status = state.status;
            thread.usage = state.usage;
            thread.activity = state.activity;
            thread.archived_at = state.archived_at.or(thread.archived_at);
            thread.updated_at = thread.updated_at.max(at);
        }
    }
}
