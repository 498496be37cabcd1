//! The hand's outer loop: it takes connections from the control descriptor, checks fences and answers requests. When the control descriptor closes, it ends, and
//! with it everything in the sandbox.

use crate::{
    calls::{Calls, Waiter},
    pack::{self, Packer},
    processes::Processes,
    protocol::{
        Op, Outcome, Refusal, RefusalCode, Reply, Request, Response, State, VERSION, encode,
        read_frame,
    },
    tools::{self, Places},
};
use base64::Engine as _;
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
    process::{DumpableBehavior, set_dumpable_behavior},
};
use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::{self, IoSliceMut, Read, Seek, SeekFrom, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, FromRawFd, OwnedFd, RawFd},
        unix::{
            ffi::OsStrExt,
            fs::{FileTypeExt, OpenOptionsExt},
            net::UnixStream,
        },
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// How a hand is started.
#[derive(Debug)]
pub struct HandArgs {
    /// The number of a `SOCK_SEQPACKET` socket that this process owns; each message on it brings a fresh connection.
    pub control: RawFd,
    /// The sandbox generation this hand serves.
    pub generation: u64,
    /// Where relative paths start.
    pub workdir: PathBuf,
    /// Where results too large to show are kept.
    pub spill: PathBuf,
}

/// Serves until the control descriptor closes.
pub fn main(args: HandArgs) -> i32 {
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    #[expect(unsafe_code, reason = "the control descriptor is handed over by number")]
    // SAFETY: the launcher opened it for this process and nothing else in the process knows of it.
    let control = unsafe { OwnedFd::from_raw_fd(args.control) };
    if rustix::io::fcntl_setfd(&control, rustix::io::FdFlags::CLOEXEC).is_err() {
        return 2;
    }
    let processes = Processes::start();
    let workspace = args.workdir.clone();
    let places = Places { workdir: args.workdir, spill: args.spill };
    let hand = Arc::new(Hand {
        generation: args.generation,
        highest_epoch: Mutex::new(0),
        packer: Arc::new(Mutex::new(Packer::new(workspace.clone()))),
        workspace,
        calls: Calls::new(places, processes),
    });
    loop {
        match next_connection(&control) {
            Ok(Some((connection, beside))) => {
                let hand = Arc::clone(&hand);
                let spawned =
                    std::thread::Builder::new().name("connection".to_owned()).spawn(move || {
                        hand.serve(connection);
                        drop(beside);
                    });
                drop(spawned);
            }
            Ok(None) => return 0,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                // The launcher's end may have made the shared description non-blocking.
                let _ = poll(&mut [PollFd::new(&control, PollFlags::IN)], None);
            }
            Err(_) => return 1,
        }
    }
}

/// The connection the next control message brings, the last of its descriptors, and the others, which stay open as long as it does; none at its end.
fn next_connection(control: &OwnedFd) -> Result<Option<(UnixStream, Vec<OwnedFd>)>, Errno> {
    loop {
        let mut byte = [0; 64];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            control.as_fd(),
            &mut [IoSliceMut::new(&mut byte)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        let mut descriptors = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        if let Some(descriptor) = descriptors.pop() {
            return Ok(Some((UnixStream::from(descriptor), descriptors)));
        }
        if received.bytes == 0 {
            return Ok(None);
        }
    }
}

struct Hand {
    generation: u64,
    workspace: PathBuf,
    packer: Arc<Mutex<Packer>>,
    highest_epoch: Mutex<u64>,
    calls: Calls,
}

/// Most bytes one `read_file` answers with.
const READ_MAX: u64 = 16 << 20;

impl Hand {
    fn serve(self: Arc<Self>, connection: UnixStream) {
        let Ok(writer) = connection.try_clone() else { return };
        // A server that does not read loses its connection rather than holding up the hand.
        let _ = writer.set_write_timeout(Some(Duration::from_secs(30)));
        let writer = Arc::new(Mutex::new(writer));
        let mut reader = io::BufReader::new(connection);
        while let Ok(Some(frame)) = read_frame(&mut reader) {
            let Ok(request) = serde_json::from_slice::<Request>(&frame) else { return };
            self.take(request, &writer);
        }
    }

    fn take(&self, request: Request, writer: &Arc<Mutex<UnixStream>>) {
        let Request { id, fence, op } = request;
        let waiter = Waiter { id, writer: Arc::clone(writer) };
        if !self.current(fence.epoch, fence.generation) {
            waiter.answer(refuse(
                RefusalCode::StaleFence,
                "a newer epoch or another generation owns this sandbox",
            ));
            return;
        }
        match op {
            Op::Run { call_id, tool, input, timeout_ms } => {
                self.calls.run(call_id, tool, input, timeout_ms.map(Duration::from_millis), waiter);
            }
            Op::Hello { variables } => {
                self.calls.set_variables(variables);
                waiter.answer(Outcome::Ok(Reply::Hello {
                    version: VERSION,
                    generation: self.generation,
                    pid: std::process::id(),
                }));
            }
            Op::Status { call_id } => {
                let (state, result) = self.calls.status(&call_id);
                waiter.answer(Outcome::Ok(Reply::Status { state, result }));
            }
            Op::Ack { call_id } => {
                let outcome = if self.calls.status(&call_id).0 == State::Finished {
                    self.calls.ack(&call_id);
                    Outcome::Ok(Reply::Ack {})
                } else {
                    refuse(RefusalCode::UnknownCall, "there is no finished call of this id")
                };
                waiter.answer(outcome);
            }
            Op::Cancel { call_id } => {
                self.calls.cancel(&call_id);
                waiter.answer(Outcome::Ok(Reply::Cancel {}));
            }
            Op::ReadFile { path, offset, limit } => {
                waiter.answer(in_thread(move || read_file(&path, offset, limit)));
            }
            Op::WriteFile { path, data_b64, mode, append } => {
                waiter.answer(in_thread(move || write_file(&path, &data_b64, mode, append)));
            }
            op @ (Op::Pack {}
            | Op::Page { .. }
            | Op::Part { .. }
            | Op::PutPart { .. }
            | Op::Unpack { .. }) => {
                let (packer, workspace) = (Arc::clone(&self.packer), self.workspace.clone());
                // Packing a large workspace takes its time, and calls must not wait for it.
                std::thread::spawn(move || {
                    let mut packer = packer.lock().unwrap_or_else(PoisonError::into_inner);
                    let packed = pack(&mut packer, &workspace, op);
                    waiter.answer(packed.map_or_else(
                        |error| refuse(RefusalCode::Io, &error.to_string()),
                        Outcome::Ok,
                    ));
                });
            }
        }
    }

    fn current(&self, epoch: u64, generation: u64) -> bool {
        let mut highest = self.highest_epoch.lock().unwrap_or_else(PoisonError::into_inner);
        if generation != self.generation || epoch < *highest {
            return false;
        }
        *highest = epoch;
        true
    }
}

impl Waiter {
    /// Sends the answer; a connection that is gone loses nothing, its server asks again.
    pub(crate) fn answer(&self, outcome: Outcome) {
        let response = Response { id: self.id, outcome };
        let frame = encode(&response).or_else(|_| {
            let outcome = refuse(RefusalCode::TooLarge, "the answer is larger than a frame");
            encode(&Response { id: self.id, outcome })
        });
        let Ok(frame) = frame else { return };
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if writer.write_all(&frame).is_err() {
            let _ = writer.shutdown(std::net::Shutdown::Both);
        }
    }
}

pub(crate) fn refuse(code: RefusalCode, message: &str) -> Outcome {
    Outcome::Err(Refusal { code, message: message.to_owned() })
}

/// Files may be FIFOs or worse: a thread of its own, and no waiting for ever.
fn in_thread(work: impl FnOnce() -> io::Result<Reply> + Send + 'static) -> Outcome {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || drop(sender.send(work())));
    match receiver.recv_timeout(Duration::from_secs(20)) {
        Ok(Ok(reply)) => Outcome::Ok(reply),
        Ok(Err(error)) => refuse(RefusalCode::Io, &error.to_string()),
        Err(_) => refuse(RefusalCode::Io, "the file could not be reached in time"),
    }
}

fn pack(packer: &mut Packer, workspace: &Path, op: Op) -> io::Result<Reply> {
    let base64 = base64::engine::general_purpose::STANDARD;
    let decode = |text: &str| {
        base64.decode(text).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
    };
    let bytes = |bytes: Vec<u8>| Reply::Bytes { data_b64: base64.encode(bytes) };
    match op {
        Op::Page { index } => packer.page(usize::try_from(index).unwrap_or(usize::MAX)).map(bytes),
        Op::Part { path_b64, offset } => {
            pack::part(workspace, OsStr::from_bytes(&decode(&path_b64)?), offset).map(bytes)
        }
        Op::PutPart { path_b64, first, data_b64 } => {
            let (path, data) = (decode(&path_b64)?, decode(&data_b64)?);
            pack::put_part(workspace, OsStr::from_bytes(&path), first, &data)?;
            Ok(Reply::Put {})
        }
        Op::Unpack { data_b64 } => packer.unpack(&decode(&data_b64)?).map(|()| Reply::Put {}),
        _ => packer.pack().map(|pages| Reply::Pack { pages }),
    }
}

fn read_file(path: &str, offset: u64, limit: u64) -> io::Result<Reply> {
    let mut file = tools::open_regular(path.as_ref())?;
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(offset))?;
    let mut data = Vec::new();
    file.take(limit.min(READ_MAX)).read_to_end(&mut data)?;
    let eof = offset + data.len() as u64 >= size;
    let data_b64 = base64::engine::general_purpose::STANDARD.encode(data);
    Ok(Reply::ReadFile { data_b64, size, eof })
}

fn write_file(path: &str, data_b64: &str, mode: u32, append: bool) -> io::Result<Reply> {
    let data = base64::engine::general_purpose::STANDARD
        .decode(data_b64)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "the data is not base64"))?;
    let path = PathBuf::from(path);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut options = OpenOptions::new();
    options.write(true).create(true).append(append).truncate(!append).mode(mode & 0o7777);
    options.custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC);
    let mut file: File = options.open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_fifo() || kind.is_socket() || kind.is_char_device() || kind.is_block_device() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    file.write_all(&data)?;
    Ok(Reply::WriteFile { size: file.metadata()?.len() })
}
