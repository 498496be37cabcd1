//! The notes themselves: JSON, no longer than PostgreSQL lets a notification be. Deltas of an event are numbered, so that one that was lost takes the rest of its event with
//! it instead of leaving a hole in it.

use lru::LruCache;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, num::NonZeroUsize};
use vaquero_store::{Delta, Seq};
use vaquero_types::{EventId, SessionId, ThreadId};

/// PostgreSQL refuses notifications of 8,000 bytes.
const LONGEST: usize = 7_900;
/// Most characters of text in one note: even if each takes six bytes in JSON, it fits.
const PIECE: usize = 1_000;
/// Events whose deltas are kept count of.
const EVENTS: NonZeroUsize = NonZeroUsize::new(4_096).expect("it is not zero");

/// Something to tell.
#[derive(Debug)]
pub(super) enum Telling {
    Grown(Vec<(SessionId, Seq)>),
    Ready,
    Following(Vec<SessionId>),
    Delta(Numbered),
}

/// Something that was told.
#[derive(Debug, PartialEq)]
pub(super) enum Heard {
    Grown(SessionId, Seq),
    Ready,
    Followed(Vec<SessionId>),
    Delta(SessionId, Delta),
}

/// A delta on its way.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Numbered {
    session: SessionId,
    thread: ThreadId,
    event: EventId,
    number: u64,
    #[serde(flatten)]
    what: What,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum What {
    Start(String),
    Text { index: usize, text: String },
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Note {
    from: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    grown: BTreeMap<SessionId, Seq>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    ready: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    following: Vec<SessionId>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    deltas: Vec<Numbered>,
}

/// Writes and reads notes.
#[derive(Debug)]
pub(super) struct Notes {
    /// Who we are: our own notes come back to us.
    own: String,
    /// The next number of each event's deltas, as sent.
    sent: LruCache<EventId, u64>,
    /// The same, as received.
    received: LruCache<EventId, u64>,
}

impl Notes {
    pub(super) fn new() -> Self {
        let own = getrandom::u64().unwrap_or_else(|_| u64::from(std::process::id()));
        let (sent, received) = (LruCache::new(EVENTS), LruCache::new(EVENTS));
        Self { own: format!("{own:x}"), sent, received }
    }

    /// A delta as others should hear it, if they follow its event from its start.
    pub(super) fn telling(
        &mut self,
        session: &SessionId,
        delta: &Delta,
        followed: bool,
    ) -> Option<Telling> {
        let (thread, event, what) = match delta {
            Delta::Start { thread, event, event_type } => {
                if !followed {
                    return None;
                }
                self.sent.put(event.clone(), 0);
                (thread, event, What::Start((*event_type).to_owned()))
            }
            Delta::Text { thread, event, index, text } => {
                (thread, event, What::Text { index: *index, text: text.to_string() })
            }
        };
        let next = self.sent.get_mut(event)?;
        let number = *next;
        *next += 1;
        let (session, thread, event) = (session.clone(), thread.clone(), event.clone());
        Some(Telling::Delta(Numbered { session, thread, event, number, what }))
    }

    /// Everything there is to tell, in as few notes as it takes.
    pub(super) fn write(&self, all: Vec<Telling>) -> Vec<String> {
        let mut grown: BTreeMap<SessionId, Seq> = BTreeMap::new();
        let (mut ready, mut following, mut deltas) = (false, Vec::new(), Vec::new());
        for telling in all {
            match telling {
                Telling::Grown(sessions) => {
                    for (session, head) in sessions {
                        let known = grown.entry(session).or_default();
                        *known = head.max(*known);
                    }
                }
                Telling::Ready => ready = true,
                Telling::Following(sessions) => following.extend(sessions),
                Telling::Delta(delta) => deltas.extend(pieces(delta)),
            }
        }
        let note = |note: Note| Note { from: self.own.clone(), ..note };
        let mut notes = Vec::new();
        // Wake-ups first: others wait for them.
        let mut rest: Vec<_> = grown.into_iter().collect();
        while !rest.is_empty() || ready {
            let grown = take(&mut rest, |(session, _)| session.as_str().len() + 30);
            notes.push(note(Note { grown: grown.into_iter().collect(), ready, ..Note::default() }));
            ready = false;
        }
        while !following.is_empty() {
            let following = take(&mut following, |session| session.as_str().len() + 8);
            notes.push(note(Note { following, ..Note::default() }));
        }
        while !deltas.is_empty() {
            let deltas = take(&mut deltas, |delta| {
                serde_json::to_string(delta).map_or(LONGEST, |text| text.len() + 1)
            });
            notes.push(note(Note { deltas, ..Note::default() }));
        }
        notes.iter().filter_map(|note| serde_json::to_string(note).ok()).collect()
    }

    /// What a note says; nothing if it is our own or from a release that says it otherwise.
    pub(super) fn read(&mut self, text: &str) -> Vec<Heard> {
        let Ok(note) = serde_json::from_str::<Note>(text) else { return Vec::new() };
        if note.from == self.own {
            return Vec::new();
        }
        let mut heard: Vec<Heard> =
            note.grown.into_iter().map(|(session, head)| Heard::Grown(session, head)).collect();
        if note.ready {
            heard.push(Heard::Ready);
        }
        if !note.following.is_empty() {
            heard.push(Heard::Followed(note.following));
        }
        heard.extend(note.deltas.into_iter().filter_map(|delta| self.receive(delta)));
        heard
    }

    fn receive(&mut self, delta: Numbered) -> Option<Heard> {
        let Numbered { session, thread, event, number, what } = delta;
        let delta = match what {
            What::Start(word) => {
                let event_type =
                    ["agent.message", "agent.thinking"].into_iter().find(|known| *known == word)?;
                self.received.put(event.clone(), 1);
                Delta::Start { thread, event, event_type }
            }
            What::Text { index, text } => {
                let expected = self.received.get_mut(&event)?;
                // A piece of the one before has its number.
                if number != *expected && number + 1 != *expected {
                    self.received.pop(&event);
                    return None;
                }
                *expected = number + 1;
                Delta::Text { thread, event, index, text: text.into() }
            }
        };
        Some(Heard::Delta(session, delta))
    }
}

/// A delta whose text is too long for one note, in pieces that share its number.
fn pieces(delta: Numbered) -> Vec<Numbered> {
    let What::Text { index, text } = &delta.what else { return vec![delta] };
    let characters: Vec<char> = text.chars().collect();
    if characters.len() <= PIECE {
        return vec![delta];
    }
    let piece = |part: &[char]| {
        let what = What::Text { index: *index, text: part.iter().collect() };
        Numbered { what, ..delta.clone() }
    };
    characters.chunks(PIECE).map(piece).collect()
}

/// As many as fit into a note, at least one.
fn take<T>(rest: &mut Vec<T>, size: impl Fn(&T) -> usize) -> Vec<T> {
    let mut bytes = 200;
    let mut count = 0;
    for item in rest.iter() {
        bytes += size(item);
        if count > 0 && bytes > LONGEST {
            break;
        }
        count += 1;
    }
    rest.drain(..count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(n: usize) -> SessionId {
        SessionId::from_wire(format!("sesn_{n:024}"))
    }

    fn start() -> Delta {
        let (thread, event) = (ThreadId::from_wire("sthr_1"), EventId::from_wire("sevt_1"));
        Delta::Start { thread, event, event_type: "agent.message" }
    }

    fn text(text: &str) -> Delta {
        let (thread, event) = (ThreadId::from_wire("sthr_1"), EventId::from_wire("sevt_1"));
        Delta::Text { thread, event, index: 0, text: text.into() }
    }

    fn texts(heard: &[Heard]) -> String {
        let text = |heard: &Heard| match heard {
            Heard::Delta(_, Delta::Text { text, .. }) => Some(text.to_string()),
            _ => None,
        };
        heard.iter().filter_map(text).collect()
    }

    #[test]
    fn many_things_fit_into_notes_of_the_longest_length() {
        let (writer, mut reader) = (Notes::new(), Notes::new());
        let all = (0..500).map(|n| Telling::Grown(vec![(session(n), 7)])).collect();
        let notes = writer.write(all);
        assert!(notes.len() > 1 && notes.iter().all(|note| note.len() < 8_000));
        let heard: usize = notes.iter().map(|note| reader.read(note).len()).sum();
        assert_eq!(heard, 500);
        let mut own = writer;
        assert!(notes.iter().all(|note| own.read(note).is_empty()), "our own come back to us");
        assert!(reader.read("something else").is_empty());
    }

    #[test]
    fn long_text_comes_whole_and_in_order() {
        let (mut writer, mut reader) = (Notes::new(), Notes::new());
        let long: String = "\u{1}ü".repeat(5_000);
        let all = [start(), text("a"), text(&long), text("z")];
        let all = all.iter().filter_map(|delta| writer.telling(&session(1), delta, true)).collect();
        let notes = writer.write(all);
        assert!(notes.iter().all(|note| note.len() < 8_000));
        let heard: Vec<Heard> = notes.iter().flat_map(|note| reader.read(note)).collect();
        assert_eq!(texts(&heard), format!("a{long}z"));
    }

    #[test]
    fn a_lost_delta_takes_the_rest_of_its_event_with_it() {
        let (mut writer, mut reader) = (Notes::new(), Notes::new());
        let mut heard = Vec::new();
        for (place, delta) in [start(), text("a"), text("b"), text("c")].iter().enumerate() {
            let telling = writer.telling(&session(1), delta, true).expect("it is followed");
            if place != 2 {
                let notes = writer.write(vec![telling]);
                heard.extend(notes.iter().flat_map(|note| reader.read(note)));
            }
        }
        assert_eq!(texts(&heard), "a");
        let (mut late, mut reader) = (Notes::new(), Notes::new());
        assert!(late.telling(&session(1), &start(), false).is_none());
        assert!(late.telling(&session(1), &text("a"), true).is_none(), "it was joined too late");
        let telling = writer.telling(&session(1), &text("d"), true).expect("it is followed");
        let notes = writer.write(vec![telling]);
        assert!(reader.read(&notes[0]).is_empty(), "its start was not heard");
    }
}
