//! What the tests start as launcher and hand, and what plays the attacker inside. No user ever runs it.
#![allow(unsafe_code)]
use std::io::{IoSliceMut, Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use vaquero_hand::protocol::*;
fn main() -> std::process::ExitCode {
    let mut args = std::env::args_os().skip(1);
    let command = args.next().unwrap_or_default();
    let code = match command.to_str() {
        Some("launcher") => vaquero_sandbox::launcher_main(args),
        Some("hand") => hand(),
        _ => 2,
    };
    std::process::ExitCode::from(u8::try_from(code).unwrap_or(1))
}
fn hand() -> i32 {
    let control = unsafe { OwnedFd::from_raw_fd(3) };
    rustix::io::fcntl_setfd(&control, rustix::io::FdFlags::CLOEXEC).unwrap();
    let generation: u64 = std::env::args().last().unwrap().parse().unwrap();
    loop {
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut c = rustix::net::RecvAncillaryBuffer::new(&mut space);
        let mut b = [0; 16];
        rustix::event::poll(
            &mut [rustix::event::PollFd::new(&control, rustix::event::PollFlags::IN)],
            None,
        )
        .unwrap();
        let got = rustix::net::recvmsg(
            &control,
            &mut [IoSliceMut::new(&mut b)],
            &mut c,
            rustix::net::RecvFlags::CMSG_CLOEXEC,
        )
        .unwrap();
        if got.bytes == 0 {
            return 0;
        }
        for m in c.drain() {
            if let rustix::net::RecvAncillaryMessage::ScmRights(fds) = m {
                for fd in fds {
                    let mut s = std::os::unix::net::UnixStream::from(fd);
                    std::thread::spawn(move || {
                        while let Ok(Some(f)) = read_frame(&mut s) {
                            let r: Request = serde_json::from_slice(&f).unwrap();
                            let mut s2 = s.try_clone().unwrap();
                            std::thread::spawn(move || {
                                let reply = match r.op {
                                    Op::Hello {} => Reply::Hello { version: 1, generation, pid: 1 },
                                    Op::Run { input, .. } => {
                                        let o = std::process::Command::new("/bin/bash")
                                            .arg("-c")
                                            .arg(input["command"].as_str().unwrap())
                                            .output()
                                            .unwrap();
                                        Reply::Run {
                                            result: ToolResult::text(
                                                String::from_utf8_lossy(&o.stdout).into_owned()
                                                    + &String::from_utf8_lossy(&o.stderr),
                                            ),
                                        }
                                    }
                                    _ => Reply::Ack {},
                                };
                                let f = encode(&Response { id: r.id, outcome: Outcome::Ok(reply) })
                                    .unwrap();
                                s2.write_all(&f).unwrap();
                            });
                        }
                    });
                }
            }
        }
    }
}
