//! What the tests start as launcher and hand, and what plays a hand that has been taken over. No user
//! ever runs it.

use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use vaquero_hand::protocol::{Op, Outcome, Reply, Request, Response, VERSION, encode, read_frame};

/// Generations from here on get a hand that lies, each in its own way.
const HOSTILE: u64 = 666_000;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let command = args.next().unwrap_or_default();
    let args: Vec<_> = args.collect();
    let generation = args
        .iter()
        .skip_while(|a| *a != "--generation")
        .nth(1)
        .and_then(|g| g.to_str()?.parse::<u64>().ok());
    let code = match (command.to_str(), generation) {
        (Some("launcher"), _) => vaquero_sandbox::launcher_main(args),
        (Some("hand"), Some(generation)) if generation >= HOSTILE => hostile(generation),
        (Some("hand"), _) => vaquero_sandbox::hand_main(args),
        _ => 2,
    };
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

/// Takes connections as an honest hand would, greets, and then misbehaves.
fn hostile(generation: u64) -> i32 {
    #[expect(unsafe_code, reason = "the control socket is handed over by number")]
    // SAFETY: the launcher put it there for this process, and nothing else here uses it.
    let control = unsafe { OwnedFd::from_raw_fd(3) };
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0; 8];
        let flags = RecvFlags::CMSG_CLOEXEC;
        match recvmsg(&control, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, flags) {
            Ok(got) if got.bytes > 0 => {}
            _ => return 0,
        }
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(streams) = message {
                for stream in streams {
                    let stream = UnixStream::from(stream);
                    std::thread::spawn(move || misbehave(stream, generation));
                }
            }
        }
    }
}

fn misbehave(mut stream: UnixStream, generation: u64) -> Option<()> {
    while let Ok(Some(frame)) = read_frame(&mut stream) {
        let request: Request = serde_json::from_slice(&frame).ok()?;
        let id = request.id;
        let reply = |reply| encode(&Response { id, outcome: Outcome::Ok(reply) }).ok();
        if matches!(request.op, Op::Hello { .. }) {
            let claimed = if generation == HOSTILE { 1 } else { generation };
            let hello = Reply::Hello { version: VERSION, generation: claimed, pid: 1 };
            stream.write_all(&reply(hello)?).ok()?;
            continue;
        }
        match generation - HOSTILE {
            // Floods with answers nobody asked for.
            1 => loop {
                stream.write_all(&reply(Reply::Ack {})?).ok()?;
            },
            // Announces the largest frame there is and sends it slowly, for ever.
            2 => {
                stream.write_all(&u32::MAX.to_be_bytes()).ok()?;
            }
            // Says what is no JSON.
            3 => {
                stream.write_all(&[0, 0, 0, 4]).ok()?;
                stream.write_all(b"\xff{[,").ok()?;
            }
            // Answers another question.
            4 => stream.write_all(&reply(Reply::Cancel {})?).ok()?,
            // Sends a list that would take a hundred times its size in memory.
            5 => {
                let junk = format!("{{\"id\":{id},\"ok\":[{}]}}", vec!["1"; 15 << 20].join(","));
                stream.write_all(&u32::try_from(junk.len()).ok()?.to_be_bytes()).ok()?;
                stream.write_all(junk.as_bytes()).ok()?;
            }
            // Hangs up in the middle of a frame.
            _ => {
                stream.write_all(&[0, 0, 1, 0, b'{']).ok()?;
                return None;
            }
        }
    }
    None
}
