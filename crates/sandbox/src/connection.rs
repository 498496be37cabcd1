//! One stream to one hand: requests out, answers in, matched by id.
//! The other end is hostile: every frame must answer something that was asked and fit what was asked for.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vaquero_hand::protocol::{Fence, MAX_FRAME, Op, RefusalCode, Request, encode};

use crate::answer::{self, Answer};
use crate::error::SandboxError;

/// Answers without content.
const SMALL: usize = 16 << 10;
/// A tool's result: a 20 MiB PDF in base64, and room.
pub(crate) const RESULT: usize = 40 << 20;
/// A list of pages: a hundred bytes each, and as many as half a million entries can make.
const PAGES: usize = 8 << 20;
/// A page or a part: a mebibyte or somewhat more, in base64.
const PIECE: usize = 4 << 20;
/// Frames up to this size are read without asking for a share of the memory for large ones.
const MODEST: usize = 256 << 10;
/// From its first byte, a frame has to be complete within this time.
const FRAME_TIMEOUT: Duration = Duration::from_mins(1);

/// What all connections of a provider share.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    /// Runs the connections' tasks.
    pub(crate) tasks: TaskTracker,
    /// KiB of memory that large frames may take at the same time, over all sandboxes.
    pub(crate) large: Arc<Semaphore>,
}

/// How much memory large frames may take together, in KiB.
pub(crate) const LARGE_KIB: usize = 256 << 10;

/// Why a connection ended.
#[derive(Debug, Clone)]
enum End {
    Gone(String),
    Broken(String),
}

impl End {
    fn error(&self) -> SandboxError {
        match self {
            Self::Gone(what) => SandboxError::gone(what.clone()),
            Self::Broken(what) => SandboxError::Protocol(what.clone()),
        }
    }
}

struct Expected {
    answer: oneshot::Sender<Result<Answer, SandboxError>>,
    /// The largest frame that can answer it.
    most: usize,
}

#[derive(Default)]
struct State {
    expected: HashMap<u64, Expected>,
    end: Option<End>,
    /// Requests that somebody waits for.
    busy: usize,
    last_used: Option<Instant>,
}

/// A stream to a hand.
pub(crate) struct Connection {
    state: Arc<Mutex<State>>,
    next: AtomicU64,
    frames: mpsc::Sender<Vec<u8>>,
    closed: CancellationToken,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("closed", &self.closed.is_cancelled())
            .finish_non_exhaustive()
    }
}

fn locked(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    // Nothing panics while it holds the lock; if something did, the map is still a map.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Connection {
    /// Takes over a stream.
    pub(crate) fn open(
        read: impl AsyncRead + Send + Unpin + 'static,
        write: impl AsyncWrite + Send + Unpin + 'static,
        shared: &Shared,
    ) -> Self {
        let (frames, queue) = mpsc::channel(64);
        let state =
            Arc::new(Mutex::new(State { last_used: Some(Instant::now()), ..State::default() }));
        let closed = CancellationToken::new();
        let reader = Reader {
            state: Arc::clone(&state),
            closed: closed.clone(),
            large: Arc::clone(&shared.large),
            read,
        };
        shared.tasks.spawn(reader.run());
        shared.tasks.spawn(write_frames(write, queue, closed.clone()));
        Self { state, next: AtomicU64::new(1), frames, closed }
    }

    /// Whether it can still carry requests.
    pub(crate) fn is_open(&self) -> bool {
        locked(&self.state).end.is_none()
    }

    /// Whether it ended because the hand broke the protocol.
    pub(crate) fn is_broken(&self) -> bool {
        matches!(locked(&self.state).end, Some(End::Broken(_)))
    }

    /// Resolves when it has ended.
    pub(crate) fn ended(&self) -> impl Future<Output = ()> + Send + 'static {
        self.closed.clone().cancelled_owned()
    }

    /// For how long nobody has waited for anything; `None` while somebody does.
    pub(crate) fn idle(&self) -> Option<Duration> {
        let state = locked(&self.state);
        (state.busy == 0).then(|| state.last_used.map_or(Duration::ZERO, |at| at.elapsed()))
    }

    /// Ends it: whoever waits is told that the sandbox is gone.
    pub(crate) fn close(&self, why: &str) {
        finish(&self.state, &self.closed, &End::Gone(why.to_owned()));
    }

    /// Ends it as broken.
    fn give_up(&self, why: String) {
        finish(&self.state, &self.closed, &End::Broken(why));
    }

    /// Asks, and waits for the answer. No answer in time breaks the connection.
    pub(crate) async fn ask(
        &self,
        fence: Fence,
        op: Op,
        timeout: Duration,
    ) -> Result<Answer, SandboxError> {
        let most = most_for(&op);
        let name = name_of(&op);
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let frame = encode(&Request { id, fence, op })
            .map_err(|_| SandboxError::Invalid("the request is larger than a frame".to_owned()))?;
        let (answer, answered) = oneshot::channel();
        let _busy = self.expect(id, Expected { answer, most })?;
        let exchange = async {
            if self.frames.send(frame).await.is_err() {
                self.close("its stream is closed");
            }
            answered.await.unwrap_or_else(|_| Err(SandboxError::gone("its stream is closed")))
        };
        match tokio::time::timeout(timeout, exchange).await {
            Ok(Ok(Answer::Refused(refusal))) => Err(refused(refusal.code, &refusal.message)),
            Ok(answer) => answer,
            Err(_) => {
                let why = format!("no answer to {name} within {} s", timeout.as_secs());
                self.give_up(why.clone());
                Err(SandboxError::Gone { what: why })
            }
        }
    }

    fn expect(&self, id: u64, expected: Expected) -> Result<Busy<'_>, SandboxError> {
        let mut state = locked(&self.state);
        if let Some(end) = &state.end {
            return Err(end.error());
        }
        state.expected.insert(id, expected);
        state.busy += 1;
        Ok(Busy(&self.state))
    }

    /// Breaks the connection over an answer that does not fit its question.
    pub(crate) fn mismatch(&self, asked: &str) -> SandboxError {
        let why = format!("the answer to {asked} is of another kind");
        self.give_up(why.clone());
        SandboxError::Protocol(why)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.close("nobody uses the connection any more");
    }
}

/// Counts a waiting request, and notes when it ended however it did.
struct Busy<'a>(&'a Mutex<State>);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let mut state = locked(self.0);
        state.busy -= 1;
        state.last_used = Some(Instant::now());
    }
}

fn finish(state: &Mutex<State>, closed: &CancellationToken, end: &End) {
    let waiting = {
        let mut state = locked(state);
        if state.end.is_some() {
            return;
        }
        state.end = Some(end.clone());
        std::mem::take(&mut state.expected)
    };
    closed.cancel();
    for (_, expected) in waiting {
        // Whoever gave up waiting does not need to know.
        drop(expected.answer.send(Err(end.error())));
    }
}

fn refused(code: RefusalCode, message: &str) -> SandboxError {
    match code {
        RefusalCode::StaleFence => SandboxError::StaleFence,
        RefusalCode::Acked => SandboxError::Acked,
        RefusalCode::BadRequest
        | RefusalCode::UnknownCall
        | RefusalCode::Io
        | RefusalCode::TooLarge => SandboxError::Refused(message.to_owned()),
    }
}

fn most_for(op: &Op) -> usize {
    match op {
        Op::Run { .. } | Op::Status { .. } => RESULT,
        Op::ReadFile { limit, .. } => {
            let bytes = usize::try_from(*limit).unwrap_or(MAX_FRAME);
            bytes.div_ceil(3).saturating_mul(4).saturating_add(SMALL).min(MAX_FRAME)
        }
        Op::Pack {} => PAGES,
        Op::Page { .. } | Op::Part { .. } => PIECE,
        Op::Hello { .. }
        | Op::Ack { .. }
        | Op::Cancel { .. }
        | Op::WriteFile { .. }
        | Op::PutPart { .. }
        | Op::Unpack { .. } => SMALL,
    }
}

fn name_of(op: &Op) -> &'static str {
    match op {
        Op::Hello { .. } => "hello",
        Op::Run { .. } => "run",
        Op::Status { .. } => "status",
        Op::Ack { .. } => "ack",
        Op::Cancel { .. } => "cancel",
        Op::ReadFile { .. } => "read_file",
        Op::WriteFile { .. } => "write_file",
        Op::Pack {} => "pack",
        Op::Page { .. } => "page",
        Op::Part { .. } => "part",
        Op::PutPart { .. } => "put_part",
        Op::Unpack { .. } => "unpack",
    }
}

async fn write_frames(
    mut to: impl AsyncWrite + Unpin,
    mut queue: mpsc::Receiver<Vec<u8>>,
    closed: CancellationToken,
) {
    let write = async {
        while let Some(frame) = queue.recv().await {
            if to.write_all(&frame).await.is_err() {
                // The reader sees the same end and tells whoever waits.
                return;
            }
        }
    };
    closed.run_until_cancelled(write).await;
}

/// The reading side.
struct Reader<R> {
    state: Arc<Mutex<State>>,
    closed: CancellationToken,
    large: Arc<Semaphore>,
    read: R,
}

impl<R: AsyncRead + Send + Unpin> Reader<R> {
    async fn run(mut self) {
        let closed = self.closed.clone();
        let end = loop {
            match closed.run_until_cancelled(self.frame()).await {
                None => return,
                Some(Ok(())) => {}
                Some(Err(end)) => break end,
            }
        };
        if let End::Broken(why) = &end {
            tracing::warn!(why, "a sandbox broke the protocol and is cut off");
        }
        finish(&self.state, &self.closed, &end);
    }

    /// Reads one frame and hands it to whoever asked.
    async fn frame(&mut self) -> Result<(), End> {
        let length = self.read.read_u32().await.map_err(|_| gone())?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let most = {
            let state = locked(&self.state);
            if state.end.is_some() {
                // It answers somebody who has just let go of it.
                return Err(gone());
            }
            state.expected.values().map(|expected| expected.most).max()
        };
        match most {
            None => return Err(End::Broken("it speaks without being asked".to_owned())),
            Some(most) if length > most => {
                return Err(End::Broken(format!("a frame of {length} bytes where {most} is most")));
            }
            Some(_) => {}
        }
        let large = Arc::clone(&self.large);
        let share = match u32::try_from(length / 1024) {
            Ok(kib) if length > MODEST => {
                Some(large.acquire_many_owned(kib).await.map_err(|_| gone())?)
            }
            _ => None,
        };
        let body = tokio::time::timeout(FRAME_TIMEOUT, self.body(length)).await;
        let body = body.map_err(|_| End::Broken("a frame that does not end".to_owned()))??;
        let (id, answer) = parse(body).await.map_err(End::Broken)?;
        drop(share);
        self.deliver(id, answer, length)
    }

    async fn body(&mut self, length: usize) -> Result<Vec<u8>, End> {
        let mut body = Vec::new();
        let mut source = (&mut self.read).take(u64::try_from(length).unwrap_or(u64::MAX));
        // Grows with what has come, not with what was announced.
        source.read_to_end(&mut body).await.map_err(|_| gone())?;
        if body.len() == length { Ok(body) } else { Err(gone()) }
    }

    fn deliver(&self, id: u64, answer: Answer, length: usize) -> Result<(), End> {
        let expected = locked(&self.state).expected.remove(&id);
        match expected {
            Some(expected) if length <= expected.most => {
                // Whoever gave up waiting does not need it.
                drop(expected.answer.send(Ok(answer)));
                Ok(())
            }
            Some(expected) => {
                let end = End::Broken("a frame larger than its question allows".to_owned());
                drop(expected.answer.send(Err(end.error())));
                Err(end)
            }
            None => Err(End::Broken("it answers what was not asked".to_owned())),
        }
    }
}

fn gone() -> End {
    End::Gone("its stream has ended".to_owned())
}

/// Large frames are read off the threads that serve everyone else.
async fn parse(body: Vec<u8>) -> Result<(u64, Answer), String> {
    if body.len() <= MODEST {
        return answer::read(&body);
    }
    tokio::task::spawn_blocking(move || answer::read(&body))
        .await
        .unwrap_or_else(|_| Err("an answer that cannot be read".to_owned()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::{Read, Write};

    use vaquero_hand::protocol::{Outcome, Reply, Response, read_frame};

    use super::*;

    const FENCE: Fence = Fence { epoch: 1, generation: 1 };
    const LONG: Duration = Duration::from_secs(20);

    fn hello() -> Op {
        Op::Hello { variables: BTreeMap::new() }
    }

    fn pair() -> (Connection, std::os::unix::net::UnixStream) {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let shared =
            Shared { tasks: TaskTracker::new(), large: Arc::new(Semaphore::new(LARGE_KIB)) };
        ours.set_nonblocking(true).unwrap();
        let (read, write) = tokio::net::UnixStream::from_std(ours).unwrap().into_split();
        (Connection::open(read, write, &shared), theirs)
    }

    fn answer_to(request: &[u8], reply: Reply) -> Vec<u8> {
        let request: Request = serde_json::from_slice(request).unwrap();
        encode(&Response { id: request.id, outcome: Outcome::Ok(reply) }).unwrap()
    }

    #[tokio::test]
    async fn answers_are_matched_out_of_order() {
        let (connection, mut hand) = pair();
        let hand = std::thread::spawn(move || {
            let first = read_frame(&mut hand).unwrap().unwrap();
            let second = read_frame(&mut hand).unwrap().unwrap();
            for request in [second, first] {
                let id = serde_json::from_slice::<Request>(&request).unwrap().id;
                let hello = Reply::Hello { version: 1, generation: id, pid: 1 };
                hand.write_all(&answer_to(&request, hello)).unwrap();
            }
            hand
        });
        let ask = || connection.ask(FENCE, hello(), LONG);
        let (one, two) = tokio::join!(ask(), ask());
        let generation = |a: Result<Answer, SandboxError>| {
            let Answer::Hello { generation, .. } = a.unwrap() else { panic!("no greeting") };
            generation
        };
        assert_eq!((generation(one), generation(two)), (1, 2));
        drop(hand.join().unwrap());
        connection.ended().await;
        assert!(matches!(ask().await, Err(SandboxError::Gone { .. })));
        assert!(!connection.is_broken());
    }

    #[tokio::test]
    async fn a_flood_that_nobody_asked_for_cuts_the_connection() {
        let (connection, mut hand) = pair();
        let flood = std::thread::spawn(move || {
            let frame = encode(&serde_json::json!({"id": 1, "ok": {"op": "ack"}})).unwrap();
            while hand.write_all(&frame).is_ok() {}
            hand.read(&mut [0]).unwrap_or(0)
        });
        connection.ended().await;
        assert!(connection.is_broken());
        assert!(matches!(
            connection.ask(FENCE, hello(), LONG).await,
            Err(SandboxError::Protocol(_))
        ));
        assert_eq!(flood.join().unwrap(), 0);
    }

    #[tokio::test]
    async fn a_frame_larger_than_its_question_allows_is_refused_before_it_is_read() {
        let (connection, mut hand) = pair();
        let hand = std::thread::spawn(move || {
            read_frame(&mut hand).unwrap().unwrap();
            hand.write_all(&u32::try_from(SMALL + 1).unwrap().to_be_bytes()).unwrap();
            hand
        });
        let error = connection.ask(FENCE, hello(), LONG).await.unwrap_err();
        assert!(matches!(error, SandboxError::Protocol(_)), "{error}");
        drop(hand.join().unwrap());
    }

    #[tokio::test]
    async fn silence_breaks_the_connection() {
        let (connection, _hand) = pair();
        let error = connection.ask(FENCE, hello(), Duration::from_millis(50)).await.unwrap_err();
        assert!(matches!(error, SandboxError::Gone { .. }), "{error}");
        assert!(connection.is_broken());
    }
}
