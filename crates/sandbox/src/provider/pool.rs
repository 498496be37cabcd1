//! Sandboxes that are ready before anybody asks for one: those that environments want kept, and a few like the one that was asked for last. A spare has run nothing and belongs to nobody; a
//! new session gets it, with its empty files, by a change of names.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::spec::variables;
use super::{Inner, lock};
use crate::engine::{Engine, Layer, Line, Made, Order, SPARE};
use crate::error::SandboxError;
use crate::seam::{Limits, PoolState, SandboxKey, SandboxSpec, Trust, WarmPool};

/// Nobody must have waited for a sandbox for so long before one is made that nobody waits for.
const QUIET: Duration = Duration::from_millis(10);
/// But where somebody always waits, no longer than this.
const PATIENCE: Duration = Duration::from_secs(1);
/// Spares that are made at the same time.
const AT_ONCE: usize = 4;
/// How often what is ready is compared with what lives, and what could not be made is tried again.
const ROUND: Duration = Duration::from_secs(30);
/// The least between two looks at what is too old.
const BREATH: Duration = Duration::from_secs(1);
/// When what could not be installed is tried again, if no session asks for it before.
const REINSTALL: Duration = Duration::from_mins(5);

/// What a spare is like: only one of the very same kind will do.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Kind {
    /// Whose it is, if an environment has a pool of its own.
    pool: Option<String>,
    limits: Limits,
    env: BTreeMap<String, String>,
    network: bool,
    /// It trusts an authority of its own, so that it can have the use of secrets.
    trusts: bool,
    layer: Option<Layer>,
    image: Option<String>,
}

impl Kind {
    /// Of a new session's first sandbox. Those of an environment's pool are for sessions with secrets and without.
    pub(super) fn of(spec: &SandboxSpec, layer: Option<Layer>) -> Option<Self> {
        let secrets = spec.outbound.as_ref().is_some_and(|outbound| outbound.vaults.is_some());
        (spec.generation == 1).then(|| Self {
            pool: spec.pool.as_ref().map(|pool| pool.name.clone()),
            limits: spec.limits,
            env: variables(spec),
            network: spec.outbound.is_some(),
            trusts: secrets || (spec.outbound.is_some() && spec.pool.is_some()),
            layer,
            image: spec.image.clone(),
        })
    }

    fn order<'a>(&'a self, key: &'a SandboxKey, trust: Option<Trust>) -> Order<'a> {
        Order {
            key,
            generation: 1,
            limits: self.limits,
            env: &self.env,
            network: self.network,
            trust,
            layer: self.layer.clone(),
            image: self.image.as_deref(),
        }
    }

    fn pool(&self) -> &str {
        self.pool.as_deref().unwrap_or("server")
    }
}

/// A sandbox that nobody has yet.
#[derive(Debug)]
struct Spare {
    key: SandboxKey,
    line: Line,
    kind: Kind,
    since: Instant,
}

/// A pool that an environment wants kept.
#[derive(Debug)]
struct Kept {
    spec: SandboxSpec,
    pool: WarmPool,
    given: u64,
    made_anew: u64,
    /// No more are made before, since one could not be, or something has to be installed first.
    not_before: Option<Instant>,
}

#[derive(Debug, Default)]
struct State {
    ready: Vec<Spare>,
    /// What was asked for last, and until when nobody need ask for the like.
    last: Option<(Kind, Instant)>,
    kept: BTreeMap<String, Kept>,
    /// Pools that were kept until now.
    given_up: Vec<String>,
}

/// How many of a kind there are to be, and how old each may become.
struct Wanted {
    kind: Kind,
    size: usize,
    max_age: Option<Duration>,
    /// Those that are missing may be made.
    may_grow: bool,
}

/// Those that are ready, and what is wanted of them.
#[derive(Debug, Default)]
pub(super) struct Pool {
    state: Mutex<State>,
    stirred: Arc<Notify>,
    /// Sandboxes that somebody waits for.
    waited_for: AtomicUsize,
    made: AtomicU64,
}

/// Somebody waits for a sandbox, for as long as the value lives.
pub(super) struct Waiting<'a>(&'a Pool);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waited_for.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pool {
    pub(super) fn wait(&self) -> Waiting<'_> {
        self.waited_for.fetch_add(1, Ordering::Relaxed);
        Waiting(self)
    }

    /// The pools of environments, all of them.
    pub(super) fn keep(&self, specs: Vec<SandboxSpec>) {
        let mut state = lock(&self.state);
        let mut before = std::mem::take(&mut state.kept);
        for spec in specs {
            let Some(pool) = spec.pool.clone() else { continue };
            let known = before.remove(&pool.name);
            let (given, made_anew) =
                known.as_ref().map_or((0, 0), |kept| (kept.given, kept.made_anew));
            let not_before =
                known.filter(|kept| kept.spec == spec).and_then(|kept| kept.not_before);
            let kept = Kept { spec, given, made_anew, not_before, pool: pool.clone() };
            state.kept.insert(pool.name, kept);
        }
        state.given_up.extend(before.into_keys());
        self.stirred.notify_one();
    }

    /// One like this was asked for, or will be.
    fn note_last(&self, kind: Kind, idle: Duration) {
        lock(&self.state).last = Some((kind, Instant::now() + idle));
        self.stirred.notify_one();
    }

    fn take(&self, kind: &Kind) -> Option<Spare> {
        let mut state = lock(&self.state);
        // The oldest first.
        let at = state.ready.iter().position(|spare| spare.kind == *kind)?;
        Some(state.ready.remove(at))
    }

    /// What has become of a new session's wish.
    fn count(&self, kind: &Kind, given: bool) {
        let mut state = lock(&self.state);
        let Some(kept) = kind.pool.as_ref().and_then(|name| state.kept.get_mut(name)) else {
            return;
        };
        if given {
            kept.given += 1;
        } else {
            kept.made_anew += 1;
        }
    }

    /// Spares that are not wanted, are too old, or too many. Where it is not known what is wanted now, they stay.
    fn surplus(&self, wanted: &[Wanted]) -> Vec<Spare> {
        let mut left: Vec<usize> = wanted.iter().map(|wanted| wanted.size).collect();
        let mut state = lock(&self.state);
        let newest_first = state.ready.drain(..).rev().collect::<Vec<_>>();
        let unknown = |pool: &Option<String>| {
            let known = wanted.iter().any(|wanted| wanted.kind.pool == *pool);
            !known && pool.as_ref().is_some_and(|name| state.kept.contains_key(name))
        };
        let (mut kept, surplus): (Vec<_>, Vec<_>) = newest_first.into_iter().partition(|spare| {
            let Some(at) = wanted.iter().position(|wanted| wanted.kind == spare.kind) else {
                return unknown(&spare.kind.pool);
            };
            if wanted[at].max_age.is_some_and(|age| spare.since.elapsed() >= age) || left[at] == 0 {
                return false;
            }
            left[at] -= 1;
            true
        });
        kept.reverse();
        state.ready = kept;
        surplus
    }

    /// The kinds of which there are too few, each as often.
    fn missing(&self, wanted: &[Wanted]) -> Vec<Kind> {
        let state = lock(&self.state);
        let missing = wanted.iter().filter(|wanted| wanted.may_grow).flat_map(|wanted| {
            let there = state.ready.iter().filter(|spare| spare.kind == wanted.kind).count();
            std::iter::repeat_n(wanted.kind.clone(), wanted.size.saturating_sub(there))
        });
        missing.take(AT_ONCE).collect()
    }

    /// Waits until nobody waits for a sandbox, or too long.
    async fn quiet(&self) {
        let begun = Instant::now();
        loop {
            tokio::time::sleep(QUIET).await;
            if self.waited_for.load(Ordering::Relaxed) == 0 || begun.elapsed() >= PATIENCE {
                return;
            }
        }
    }

    /// One could not be made.
    fn forgo(&self, kind: &Kind) {
        let mut state = lock(&self.state);
        match &kind.pool {
            Some(name) => {
                drop(state);
                self.hold(name, Some(ROUND));
            }
            // Until somebody asks for one again.
            None => drop(state.last.take_if(|(last, _)| last == kind)),
        }
    }

    /// Has no more made for an environment for so long.
    fn hold(&self, name: &str, hold: Option<Duration>) {
        if let Some(kept) = lock(&self.state).kept.get_mut(name) {
            kept.not_before = hold.map(|hold| Instant::now() + hold);
        }
    }

    /// How long nothing is to be done, if nothing stirs.
    fn pause(&self) -> Duration {
        let state = lock(&self.state);
        let ages = state.ready.iter().filter_map(|spare| {
            let kept = state.kept.get(spare.kind.pool.as_ref()?)?;
            Some(spare.since + kept.pool.max_age)
        });
        let next = ages.chain(state.last.iter().map(|(_, until)| *until)).min();
        let until = |at: Instant| at.saturating_duration_since(Instant::now());
        next.map_or(ROUND, |at| until(at).clamp(BREATH, ROUND))
    }

    fn drain(&self) -> Vec<Spare> {
        let mut state = lock(&self.state);
        (state.last, state.kept) = (None, BTreeMap::new());
        std::mem::take(&mut state.ready)
    }

    /// The pools of environments, as they are.
    pub(super) fn states(&self) -> Vec<PoolState> {
        let state = lock(&self.state);
        let of = |(name, kept): (&String, &Kept)| {
            let ready = || {
                let spares = state.ready.iter();
                spares.filter(|spare| spare.kind.pool.as_ref() == Some(name))
            };
            PoolState {
                name: name.clone(),
                size: kept.pool.size,
                ready: ready().count(),
                oldest: ready().map(|spare| spare.since.elapsed()).max(),
                given: kept.given,
                made_anew: kept.made_anew,
            }
        };
        state.kept.iter().map(of).collect()
    }
}

/// Keeps as many ready as are wanted.
pub(super) async fn watch<E: Engine>(inner: Weak<Inner<E>>) {
    let mut compared = Instant::now();
    loop {
        let Some(strong) = inner.upgrade() else { return };
        let (stirred, pause) = (Arc::clone(&strong.pool.stirred), strong.pool.pause());
        drop(strong);
        tokio::select! {
            () = stirred.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
        let Some(inner) = inner.upgrade() else { return };
        if compared.elapsed() >= ROUND {
            compared = Instant::now();
            inner.compare_spares().await;
        }
        inner.tend().await;
    }
}

impl<E: Engine> Inner<E> {
    /// One like this was asked for, or will be soon: the next is made while whoever will want it still thinks.
    pub(super) fn expect_another(&self, kind: Kind) {
        if kind.pool.is_none() && self.habits.spares > 0 && self.engine.capabilities().keeps_ready {
            self.pool.note_last(kind, self.habits.idle_stop);
        }
    }

    /// A spare of that kind, which is the session's from now on.
    pub(super) async fn claim(&self, kind: &Kind, key: &SandboxKey) -> Option<Line> {
        let spare = self.pool.take(kind)?;
        self.pool.stirred.notify_one();
        if self.engine.has_files(&key.session).await {
            lock(&self.pool.state).ready.push(spare);
            return None;
        }
        match self.engine.give(&spare.key, key).await {
            Ok(()) => Some(spare.line),
            Err(error) => {
                tracing::warn!(spare = %spare.key, %error, "a spare sandbox cannot be used");
                self.end_spare(&spare.key).await;
                None
            }
        }
    }

    /// A new session has a sandbox after so long.
    pub(super) fn measure(&self, kind: &Kind, given: bool, took: Duration) {
        self.pool.count(kind, given);
        let labels = [
            ("provider", self.engine.capabilities().name.to_owned()),
            ("pool", kind.pool().to_owned()),
            ("from", if given { "pool" } else { "new" }.to_owned()),
        ];
        metrics::histogram!("vaquero_sandbox_claim_seconds", &labels).record(took.as_secs_f64());
    }

    async fn tend(self: &Arc<Self>) {
        let wanted = self.wanted().await;
        for spare in self.pool.surplus(&wanted) {
            drop(spare.line);
            self.end_spare(&spare.key).await;
        }
        self.report();
        let missing = self.pool.missing(&wanted);
        if !missing.is_empty() {
            self.pool.quiet().await;
            join_all(missing.into_iter().map(|kind| self.make_spare(kind))).await;
            // There may be more to make, or others by now.
            self.pool.stirred.notify_one();
        }
    }

    fn report(&self) {
        let given_up = std::mem::take(&mut lock(&self.pool.state).given_up);
        let given_up = given_up.into_iter().map(|name| (name, 0, 0, Duration::ZERO));
        let kept = self.pool.states().into_iter().map(|pool| {
            let ready = u32::try_from(pool.ready).unwrap_or(u32::MAX);
            (pool.name, pool.size, ready, pool.oldest.unwrap_or_default())
        });
        for (name, size, ready, oldest) in given_up.chain(kept) {
            let labels = [("provider", self.engine.capabilities().name.to_owned()), ("pool", name)];
            metrics::gauge!("vaquero_sandbox_pool_size", &labels).set(size);
            metrics::gauge!("vaquero_sandbox_pool_ready", &labels).set(ready);
            metrics::gauge!("vaquero_sandbox_pool_oldest_seconds", &labels).set(oldest);
        }
    }

    /// What is wanted now. What has to be installed first is begun.
    async fn wanted(self: &Arc<Self>) -> Vec<Wanted> {
        let (last, specs) = {
            let mut state = lock(&self.pool.state);
            let now = Instant::now();
            state.last.take_if(|(_, until)| now >= *until);
            let due = |kept: &Kept| kept.not_before.is_none_or(|at| now >= at);
            let specs: Vec<_> =
                state.kept.values().map(|kept| (kept.spec.clone(), due(kept))).collect();
            (state.last.clone(), specs)
        };
        let size = usize::try_from(self.habits.spares).unwrap_or(usize::MAX);
        let last = last.map(|(kind, _)| Wanted { kind, size, max_age: None, may_grow: true });
        let mut wanted: Vec<_> = last.into_iter().collect();
        for (spec, may_grow) in specs {
            let Some(pool) = &spec.pool else { continue };
            match self.ready_layer(&spec).await {
                Ok(Some(layer)) => {
                    let Some(kind) = Kind::of(&spec, layer) else { continue };
                    let size = usize::try_from(pool.size).unwrap_or(usize::MAX);
                    let max_age = Some(pool.max_age);
                    wanted.push(Wanted { kind, size, max_age, may_grow });
                }
                Ok(None) if may_grow => {
                    self.pool.hold(&pool.name, Some(ROUND));
                    let (inner, spec, name) = (Arc::clone(self), spec.clone(), pool.name.clone());
                    self.shared.tasks.spawn(async move {
                        // Why it could not be made is said by whoever makes it.
                        let made = inner.layer(&spec).await;
                        inner.pool.hold(&name, made.is_err().then_some(REINSTALL));
                        inner.pool.stirred.notify_one();
                    });
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(pool = pool.name, %error, "a warm pool cannot be filled");
                }
            }
        }
        wanted
    }

    async fn make_spare(&self, kind: Kind) {
        let number = self.pool.made.fetch_add(1, Ordering::Relaxed);
        let key = SandboxKey::default_of(format!("{SPARE}{}-{number}", std::process::id()));
        let made = match self.authority(kind.trusts) {
            Ok(trust) => self.engine.create(&kind.order(&key, trust)).await,
            Err(error) => Err(error),
        };
        let made = match made {
            Ok(Made::Line(line)) => {
                let since = Instant::now();
                lock(&self.pool.state).ready.push(Spare { key, line, kind, since });
                return;
            }
            Ok(Made::Alive(_)) => SandboxError::gone("it is there already"),
            Ok(Made::Not(error)) | Err(error) => error,
        };
        tracing::warn!(pool = kind.pool(), error = %made, "a spare sandbox cannot be made");
        self.pool.forgo(&kind);
        self.end_spare(&key).await;
    }

    /// Forgets spares that do not live any more.
    async fn compare_spares(&self) {
        let before: BTreeSet<SandboxKey> =
            lock(&self.pool.state).ready.iter().map(|spare| spare.key.clone()).collect();
        if before.is_empty() {
            return;
        }
        let Ok(living) = self.engine.list().await else { return };
        let living: BTreeSet<SandboxKey> = living.into_iter().map(|(key, _)| key).collect();
        let dead = {
            let mut state = lock(&self.pool.state);
            let dead =
                |spare: &mut Spare| before.contains(&spare.key) && !living.contains(&spare.key);
            state.ready.extract_if(.., dead).collect::<Vec<_>>()
        };
        for spare in dead {
            tracing::warn!(spare = %spare.key, "a spare sandbox has ended by itself");
            self.end_spare(&spare.key).await;
        }
    }

    pub(super) async fn end_spare(&self, key: &SandboxKey) {
        let ended = self.engine.end(key).await;
        if let Err(error) = ended.and(self.engine.discard(&key.session).await) {
            tracing::warn!(spare = %key, %error, "a spare sandbox stays behind");
        }
    }

    /// Ends all spares.
    pub(super) async fn end_spares(&self) {
        for spare in self.pool.drain() {
            self.end_spare(&spare.key).await;
        }
    }

    /// Ends those of a server before.
    pub(super) async fn clear_spares(&self) {
        let living = self.engine.list().await.unwrap_or_default();
        let with_files = self.engine.with_files().await.unwrap_or_default();
        let others = living.into_iter().map(|(key, _)| key);
        let others = others.chain(with_files.into_iter().map(SandboxKey::default_of));
        let spares: BTreeSet<_> = others.filter(|key| key.session.starts_with(SPARE)).collect();
        for key in spares {
            self.end_spare(&key).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    fn kind(pool: Option<&str>, image: &str) -> Kind {
        Kind {
            pool: pool.map(str::to_owned),
            limits: Limits::default(),
            env: BTreeMap::new(),
            network: true,
            trusts: false,
            layer: None,
            image: Some(image.to_owned()),
        }
    }

    fn wanted(kind: Kind, size: usize) -> Wanted {
        Wanted { kind, size, max_age: Some(HOUR), may_grow: true }
    }

    fn pool(ready: &[(&str, Kind, Duration)]) -> Pool {
        let pool = Pool::default();
        let spare = |(name, kind, age): &(&str, Kind, Duration)| Spare {
            key: SandboxKey::default_of(*name),
            line: Line {
                read: Box::new(tokio::io::empty()),
                write: Box::new(tokio::io::sink()),
                arrivals: None,
                kept: None,
            },
            kind: kind.clone(),
            since: Instant::now().checked_sub(*age).expect("the clock has run for an hour"),
        };
        lock(&pool.state).ready = ready.iter().map(spare).collect();
        pool
    }

    fn keep(pool: &Pool, name: &str) {
        let warm = WarmPool { name: name.to_owned(), size: 2, max_age: HOUR };
        let spec = SandboxSpec { pool: Some(warm), ..SandboxSpec::new(1, 1, Limits::default()) };
        pool.keep(vec![spec]);
    }

    fn names(spares: &[Spare]) -> Vec<&str> {
        spares.iter().map(|spare| spare.key.session.as_str()).collect()
    }

    #[tokio::test]
    async fn what_is_too_old_too_many_or_of_another_kind_goes() {
        let (now, old) = (Duration::ZERO, HOUR);
        let (a, b) = (kind(Some("env"), "a"), kind(Some("env"), "b"));
        let pool = pool(&[
            ("old", a.clone(), old),
            ("first", a.clone(), now),
            ("second", a.clone(), now),
            ("third", a.clone(), now),
            ("other", b, now),
            ("nobody's", kind(None, "a"), now),
        ]);
        keep(&pool, "env");
        let wanted = [wanted(a.clone(), 2)];
        assert_eq!(names(&pool.surplus(&wanted)), ["nobody's", "other", "first", "old"]);
        assert!(pool.missing(&wanted).is_empty());
        assert_eq!(pool.take(&a).map(|spare| spare.key.session).as_deref(), Some("second"));
        assert_eq!(pool.missing(&wanted), [a]);
    }

    #[tokio::test]
    async fn those_that_are_ready_stay_while_no_more_can_be_made() {
        let a = kind(Some("env"), "a");
        let pool = pool(&[("ready", a.clone(), Duration::ZERO)]);
        keep(&pool, "env");
        assert!(pool.surplus(&[]).is_empty(), "what is wanted cannot be found out just now");
        let stuck = [Wanted { may_grow: false, ..wanted(a, 2) }];
        assert!(pool.surplus(&stuck).is_empty() && pool.missing(&stuck).is_empty());
        pool.keep(Vec::new());
        assert_eq!(names(&pool.surplus(&[])), ["ready"]);
    }
}
