//! Deletes sessions that nobody has used for as long as the operator keeps them, as a client would.

use crate::World;
use std::time::Duration;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use vaquero_store::{CommitError, NewRecord, RecordKind, SessionRow, StoreError, Write, sandboxes};
use vaquero_types::{EventId, event::server};

/// How often to look.
const EVERY: Duration = Duration::from_secs(60);
/// Sessions read at once.
const PAGE: usize = 100;

/// How long sessions are kept after they changed last; without a bound, for good.
#[derive(Clone, Copy, Debug, Default)]
pub struct Retention {
    /// Archived ones.
    pub archived: Option<Duration>,
    /// Idle ones that are not archived.
    pub idle: Option<Duration>,
}

/// Runs until `stop`.
pub(crate) async fn run(world: World, retention: Retention, stop: CancellationToken) {
    let mut rounds = tokio::time::interval(EVERY);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(rounds.tick()).await.is_some() {
        for (archived, age) in [(true, retention.archived), (false, retention.idle)] {
            let Some(age) = age else { continue };
            match round(&world, archived, age).await {
                Ok(0) => {}
                Ok(deleted) => {
                    tracing::info!(deleted, archived, "deleted sessions that were kept long enough")
                }
                Err(error) => tracing::warn!(%error, "cannot delete old sessions; will try again"),
            }
        }
    }
}

async fn round(world: &World, archived: bool, age: Duration) -> Result<usize, StoreError> {
    let before = world.clock.now().minus(age);
    let mut deleted = 0;
    loop {
        let rows = world.store.outdated(archived, before, PAGE).await?;
        let found = rows.len();
        let mut gone = 0;
        for row in rows {
            gone += usize::from(delete(world, row).await?);
        }
        deleted += gone;
        // A full page of sessions that others are changing would come back for ever.
        if found < PAGE || gone == 0 {
            return Ok(deleted);
        }
    }
}

async fn delete(world: &World, row: SessionRow) -> Result<bool, StoreError> {
    let now = world.clock.now();
    let event = server::session_deleted();
    let record = NewRecord {
        kind: RecordKind::Event,
        event_id: EventId::new(world.ids.next(now)),
        thread: row.primary_thread.clone(),
        event_type: event.event_type.to_owned(),
        body: event.body.into(),
    };
    let mut writes = sandboxes::without_checkpoints(&row);
    writes.push(Write::DeleteSession { session: row.id, revision: row.revision, record });
    match world.store.commit(writes, now).await {
        Ok(_) => Ok(true),
        Err(CommitError::Store(error)) => Err(error),
        // It was used meanwhile, or is gone.
        Err(_) => Ok(false),
    }
}
