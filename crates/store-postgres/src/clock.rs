//! The database's time: what servers go by whose own clocks differ.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};
use tokio_postgres::{Client, Error};
use vaquero_types::{Clock, Timestamp};

/// This machine's clock, set right by how far it was off when the database was last asked.
pub(crate) struct DatabaseClock {
    own: Arc<dyn Clock>,
    /// Microseconds the database is ahead.
    ahead: AtomicI64,
}

impl DatabaseClock {
    pub(crate) fn new(own: Arc<dyn Clock>) -> Self {
        Self { own, ahead: AtomicI64::new(0) }
    }

    /// Asks the database for its time.
    pub(crate) async fn set(&self, client: &Client) -> Result<(), Error> {
        let before = self.own.now();
        let row = client.query_one(&format!("SELECT {}", crate::statements::CLOCK), &[]).await?;
        let after = self.own.now();
        let middle = i64::midpoint(before.as_micros(), after.as_micros());
        self.ahead.store(row.get::<_, i64>(0) - middle, Ordering::Relaxed);
        Ok(())
    }
}

impl Clock for DatabaseClock {
    fn now(&self) -> Timestamp {
        let ahead = self.ahead.load(Ordering::Relaxed);
        Timestamp::from_micros(self.own.now().as_micros() + ahead)
    }
}

impl std::fmt::Debug for DatabaseClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DatabaseClock").field("ahead", &self.ahead).finish_non_exhaustive()
    }
}
