//! The network of a sandbox with a way out: still only loopback, but whatever its programs send to any IPv4 address ends at one of three sockets, which the launcher hands to the
//! server. Runs in the child, in its new network namespace, before it gives up the powers this takes.

use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

use super::mounts::Step;
use super::wire;

/// Where the proxy listens; programs are told by variables.
pub(crate) const PROXY_PORT: u16 = 3128;
/// Where connections to anywhere end up.
const CATCH_ALL_PORT: u16 = 3129;
const NAMES_PORT: u16 = 53;

/// `AF_INET`, `IPPROTO_TCP` and `IPPROTO_UDP` as messages have them.
const INET: u8 = 2;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// How many sockets there are.
pub(crate) const SOCKETS: usize = 3;

/// Makes the sockets and turns all traffic to them: proxy, catch-all, name server.
pub(crate) fn open() -> Result<[OwnedFd; SOCKETS], Step> {
    let at = |step: &'static str| move |error: io::Error| (step, error);
    let here = Ipv4Addr::LOCALHOST;
    let proxy = TcpListener::bind((here, PROXY_PORT)).map_err(at("listen as a proxy"))?;
    let catch_all = TcpListener::bind((here, CATCH_ALL_PORT)).map_err(at("listen for all"))?;
    let names = UdpSocket::bind((here, NAMES_PORT)).map_err(at("listen as a name server"))?;
    route_everything_here().map_err(at("route all addresses to loopback"))?;
    redirect().map_err(at("redirect connections with nf_tables"))?;
    Ok([proxy.into(), catch_all.into(), names.into()])
}

/// Hands the sockets to the launcher.
pub(crate) fn hand_over(to: impl AsFd, sockets: &[OwnedFd]) -> io::Result<()> {
    let sockets: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
    wire::send_bytes(to, b"s", &sockets)
}

/// Every address is this host's own, as far as the sandbox can tell.
fn route_everything_here() -> io::Result<()> {
    const LOCAL_TABLE: u8 = 255;
    const BY_BOOT: u8 = 3;
    const ON_HOST: u8 = 254;
    const LOCAL: u8 = 2;
    const INTERFACE: u16 = 4;
    /// The first interface of a namespace.
    const LOOPBACK: u32 = 1;
    let mut message = Message::new(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_ACK, 1);
    message.put(&[INET, 0, 0, 0, LOCAL_TABLE, BY_BOOT, ON_HOST, LOCAL, 0, 0, 0, 0]);
    message.attribute(INTERFACE, &LOOPBACK.to_ne_bytes());
    exchange(None, &message.finish())
}

/// Connections to anything but loopback go to the catch-all, questions to name servers to ours.
fn redirect() -> io::Result<()> {
    const BATCH_BEGIN: u16 = 16;
    const BATCH_END: u16 = 17;
    const NEW_TABLE: u16 = 0;
    const NEW_CHAIN: u16 = 3;
    const OUTPUT: u32 = 3;
    const SOURCE_NAT_MINUS: i32 = -100;
    const NETWORK: u32 = 1;
    const TRANSPORT: u32 = 2;
    const L4_PROTOCOL: u32 = 16;
    let mut table = nft(NEW_TABLE, 0, 1);
    table.attribute(1, b"egress\0");
    let mut chain = nft(NEW_CHAIN, libc::NLM_F_CREATE, 2);
    chain.attribute(1, b"egress\0");
    chain.attribute(3, b"out\0");
    chain.attribute(7, b"nat\0");
    chain.nested(4, |hook| {
        hook.attribute(1, &OUTPUT.to_be_bytes());
        hook.attribute(2, &SOURCE_NAT_MINUS.to_be_bytes());
    });
    let own = rule(3, |rule| {
        rule.expression("payload", |e| e.load(NETWORK, 16, 1));
        rule.expression("cmp", |e| e.equals(&[127]));
        rule.expression("immediate", Message::accept);
    });
    let names = rule(4, |rule| {
        rule.expression("meta", |e| e.meta(L4_PROTOCOL));
        rule.expression("cmp", |e| e.equals(&[UDP]));
        rule.expression("payload", |e| e.load(TRANSPORT, 2, 2));
        rule.expression("cmp", |e| e.equals(&NAMES_PORT.to_be_bytes()));
        rule.redirect(NAMES_PORT);
    });
    let rest = rule(5, |rule| {
        rule.expression("meta", |e| e.meta(L4_PROTOCOL));
        rule.expression("cmp", |e| e.equals(&[TCP]));
        rule.redirect(CATCH_ALL_PORT);
    });
    let mut batch = boundary(BATCH_BEGIN, 0);
    for message in [table, chain, own, names, rest] {
        batch.extend(message.finish());
    }
    batch.extend(boundary(BATCH_END, 6));
    exchange(Some(netlink::NETFILTER), &batch)
}

const NF_TABLES: u8 = 10;

/// The begin or end of a batch for `nf_tables`.
fn boundary(kind: u16, sequence: u32) -> Vec<u8> {
    let mut message = Message::new(kind, 0, sequence);
    message.put(&[0, 0, 0, NF_TABLES]);
    message.finish()
}

fn nft(kind: u16, flags: i32, sequence: u32) -> Message {
    let mut message =
        Message::new(u16::from(NF_TABLES) << 8 | kind, flags | libc::NLM_F_ACK, sequence);
    message.put(&[INET, 0, 0, 0]);
    message
}

fn rule(sequence: u32, build: impl FnOnce(&mut Message)) -> Message {
    const NEW_RULE: u16 = 6;
    let mut message = nft(NEW_RULE, libc::NLM_F_CREATE | libc::NLM_F_APPEND, sequence);
    message.attribute(1, b"egress\0");
    message.attribute(2, b"out\0");
    message.nested(4, build);
    message
}

/// A netlink message that grows.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: i32, sequence: u32) -> Self {
        let flags = u16::try_from(libc::NLM_F_REQUEST | flags).unwrap_or(0);
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        Self(bytes)
    }

    fn put(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.nested_as(kind, |message| message.put(value));
    }

    fn nested(&mut self, kind: u16, build: impl FnOnce(&mut Self)) {
        const NESTED: u16 = 0x8000;
        self.nested_as(kind | NESTED, build);
    }

    fn nested_as(&mut self, kind: u16, build: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.put(&[0, 0]);
        self.put(&kind.to_ne_bytes());
        build(self);
        let length = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }

    /// One expression of a rule. Each works on the first register.
    fn expression(&mut self, name: &str, data: impl FnOnce(&mut Self)) {
        self.nested(1, |element| {
            element.attribute(1, format!("{name}\0").as_bytes());
            element.nested(2, data);
        });
    }

    fn word(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    fn load(&mut self, base: u32, offset: u32, length: u32) {
        self.word(1, 1);
        self.word(2, base);
        self.word(3, offset);
        self.word(4, length);
    }

    fn meta(&mut self, key: u32) {
        self.word(2, key);
        self.word(1, 1);
    }

    fn equals(&mut self, value: &[u8]) {
        self.word(1, 1);
        self.word(2, 0);
        self.nested(3, |data| data.attribute(1, value));
    }

    fn accept(&mut self) {
        self.word(1, 0);
        self.nested(2, |data| data.nested(2, |verdict| verdict.word(1, 1)));
    }

    fn redirect(&mut self, port: u16) {
        self.expression("immediate", |e| {
            e.word(1, 1);
            e.nested(2, |data| data.attribute(1, &port.to_be_bytes()));
        });
        self.expression("redir", |e| {
            const WITH_PORT: u32 = 2;
            e.word(1, 1);
            e.word(3, WITH_PORT);
        });
    }
}

/// Sends messages and reads what the kernel says to each.
fn exchange(protocol: Option<rustix::net::Protocol>, messages: &[u8]) -> io::Result<()> {
    const HEADER: usize = 16;
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        protocol,
    )?;
    rustix::net::send(&socket, messages, SendFlags::empty())?;
    let mut buffer = vec![0; 16 << 10];
    let mut heard = false;
    // The kernel has answered before `send` returned.
    loop {
        let (read, _) = match rustix::net::recv(&socket, &mut buffer[..], RecvFlags::DONTWAIT) {
            Err(rustix::io::Errno::WOULDBLOCK) if heard => return Ok(()),
            other => other?,
        };
        let mut rest = &buffer[..read];
        while rest.len() >= HEADER + 4 {
            let word = |at: usize| <[u8; 4]>::try_from(&rest[at..at + 4]).unwrap_or_default();
            let length = usize::try_from(u32::from_ne_bytes(word(0))).unwrap_or(0);
            let kind = u16::from_ne_bytes([rest[4], rest[5]]);
            if i32::from(kind) == libc::NLMSG_ERROR {
                heard = true;
                match i32::from_ne_bytes(word(HEADER)) {
                    0 => {}
                    error => return Err(io::Error::from_raw_os_error(-error)),
                }
            }
            rest = rest.get(length.next_multiple_of(4).max(HEADER)..).unwrap_or_default();
        }
    }
}
