//! The system call filter of a sandbox: an allow-list, compiled to a search tree.
//! What is missing here is refused; a new kernel call stays out until somebody lists it.

mod calls;

use calls::{ALWAYS, LEGACY};

/// A program as the kernel takes it.
pub(crate) type Program = Vec<libc::sock_filter>;

/// Highest system call number this file has an opinion on; later ones do not exist for a sandbox.
const LAST_KNOWN: u32 = 470;

#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xc000_00b7;

/// `CLONE_NEW*`, the ones that `clone` takes.
const NEW_NAMESPACES: libc::c_int = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;
const TIOCLINUX: u32 = 0x541c;

/// The filter of every sandbox.
///
/// The kernel runs it once for every call number when it is installed, so it searches a tree instead
/// of a list: a list costs more than all other walls together.
pub(crate) fn program() -> Program {
    let load = |offset: usize| op(LOAD, 0, 0, u32::try_from(offset).unwrap_or(u32::MAX));
    let mut program = vec![
        load(std::mem::offset_of!(libc::seccomp_data, arch)),
        op(JUMP_EQUAL, 1, 0, AUDIT_ARCH),
        op(RETURN, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
        load(std::mem::offset_of!(libc::seccomp_data, nr)),
    ];
    program.extend(search(&spans()));
    program
}

/// What happens to a call.
#[derive(Clone, PartialEq)]
enum Fate {
    Allow,
    /// EPERM: a sandbox may not do this.
    Refuse,
    /// ENOSYS: libraries fall back to an older call.
    Absent,
    /// The process ends.
    Kill,
    /// Allowed if all conditions of one of these alternatives hold.
    Check(Vec<Vec<Condition>>),
}

/// A condition on the low half of an argument, the only half that the calls in question look at.
#[derive(Clone, PartialEq)]
struct Condition {
    argument: usize,
    mask: u32,
    value: u32,
    equal: bool,
}

fn masked(argument: usize, mask: u32, value: u32) -> Condition {
    Condition { argument, mask, value, equal: true }
}

fn is(argument: usize, value: impl TryInto<u32>) -> Condition {
    masked(argument, u32::MAX, value.try_into().unwrap_or(u32::MAX))
}

fn is_not(argument: usize, value: impl TryInto<u32>) -> Condition {
    Condition { equal: false, ..is(argument, value) }
}

/// Consecutive numbers with one fate: the first of each span, in order, starting at 0.
fn spans() -> Vec<(u32, Fate)> {
    let checked = checked();
    let fate = |nr: u32| {
        let call = i64::from(nr);
        if let Some((_, check)) = checked.iter().find(|(nr, _)| *nr == call) {
            Fate::Check(check.clone())
        } else if ALWAYS.contains(&call) || LEGACY.contains(&call) {
            Fate::Allow
        } else if call == libc::SYS_clone3 {
            // Its flags are in memory, where a filter cannot look.
            Fate::Absent
        } else {
            Fate::Refuse
        }
    };
    let mut spans: Vec<(u32, Fate)> = Vec::new();
    for nr in 0..=LAST_KNOWN {
        let fate = fate(nr);
        if spans.last().is_none_or(|(_, last)| *last != fate) {
            spans.push((nr, fate));
        }
    }
    spans.push((LAST_KNOWN + 1, Fate::Absent));
    // From here on the numbers are x32's, or negative.
    spans.push((0x4000_0000, Fate::Kill));
    spans
}

/// Calls that are allowed for some arguments.
fn checked() -> Vec<(i64, Vec<Vec<Condition>>)> {
    let personalities = [0, 0x8, 0x2_0000, 0x2_0008, u32::MAX];
    vec![
        (libc::SYS_socket, sockets()),
        (libc::SYS_socketpair, vec![vec![is(0, libc::AF_UNIX)]]),
        (libc::SYS_clone, vec![vec![masked(0, NEW_NAMESPACES.cast_unsigned(), 0)]]),
        (libc::SYS_ioctl, vec![vec![is_not(1, libc::TIOCSTI), is_not(1, TIOCLINUX)]]),
        (libc::SYS_personality, personalities.into_iter().map(|p| vec![is(0, p)]).collect()),
    ]
}

/// Unix sockets, TCP and UDP over IPv4 and IPv6, and route netlink. Nothing raw, no vsock, no packets.
fn sockets() -> Vec<Vec<Condition>> {
    const KIND: u32 = 0xf;
    let kind = |kind: libc::c_int| masked(1, KIND, kind.cast_unsigned());
    let mut allowed = Vec::new();
    for wanted in [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_SEQPACKET] {
        allowed.push(vec![is(0, libc::AF_UNIX), kind(wanted)]);
    }
    for family in [libc::AF_INET, libc::AF_INET6] {
        for (wanted, protocol) in [
            (libc::SOCK_STREAM, 0),
            (libc::SOCK_STREAM, libc::IPPROTO_TCP),
            (libc::SOCK_DGRAM, 0),
            (libc::SOCK_DGRAM, libc::IPPROTO_UDP),
        ] {
            allowed.push(vec![is(0, family), kind(wanted), is(2, protocol)]);
        }
    }
    allowed.push(vec![is(0, libc::AF_NETLINK), is(2, libc::NETLINK_ROUTE)]);
    allowed
}

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
const JUMP: u32 = libc::BPF_JMP | libc::BPF_JA;
const JUMP_AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
const JUMP_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

fn op(code: u32, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: u16::try_from(code).unwrap_or(u16::MAX), jt, jf, k }
}

fn errno(number: libc::c_int) -> u32 {
    libc::SECCOMP_RET_ERRNO | number.cast_unsigned()
}

/// A binary search over the spans, with the call's number loaded.
fn search(spans: &[(u32, Fate)]) -> Program {
    let [(_, only)] = spans else {
        let (low, high) = spans.split_at(spans.len() / 2);
        let low_half = search(low);
        let skip = u32::try_from(low_half.len()).unwrap_or(u32::MAX);
        // A conditional jump reaches 255 instructions, the other one anywhere.
        let mut program = vec![op(JUMP_AT_LEAST, 0, 1, high[0].0), op(JUMP, 0, 0, skip)];
        program.extend(low_half);
        program.extend(search(high));
        return program;
    };
    match only {
        Fate::Allow => vec![op(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW)],
        Fate::Refuse => vec![op(RETURN, 0, 0, errno(libc::EPERM))],
        Fate::Absent => vec![op(RETURN, 0, 0, errno(libc::ENOSYS))],
        Fate::Kill => vec![op(RETURN, 0, 0, libc::SECCOMP_RET_KILL_PROCESS)],
        Fate::Check(alternatives) => {
            let mut program: Program = alternatives.iter().flat_map(|a| alternative(a)).collect();
            program.push(op(RETURN, 0, 0, errno(libc::EPERM)));
            program
        }
    }
}

/// Allows if every condition holds, else falls through to what follows.
fn alternative(conditions: &[Condition]) -> Program {
    let mut program = Program::new();
    for (at, condition) in conditions.iter().enumerate() {
        let offset = std::mem::offset_of!(libc::seccomp_data, args) + 8 * condition.argument;
        program.push(op(LOAD, 0, 0, u32::try_from(offset).unwrap_or(u32::MAX)));
        program.push(op(AND, 0, 0, condition.mask));
        // Past the rest of this alternative: three instructions per condition, and the return.
        let past = u8::try_from(3 * (conditions.len() - at - 1) + 1).unwrap_or(u8::MAX);
        let (jt, jf) = if condition.equal { (0, past) } else { (past, 0) };
        program.push(op(JUMP_EQUAL, jt, jf, condition.value));
    }
    program.push(op(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would do: the same instructions, run here.
    fn run(program: &Program, nr: u32, arch: u32, args: [u32; 6]) -> u32 {
        let (mut at, mut acc) = (0, 0_u32);
        loop {
            let i = program[at];
            at += 1;
            match u32::from(i.code) {
                LOAD => {
                    let args_at = std::mem::offset_of!(libc::seccomp_data, args);
                    acc = match usize::try_from(i.k).unwrap() {
                        0 => nr,
                        4 => arch,
                        offset => args[(offset - args_at) / 8],
                    };
                }
                AND => acc &= i.k,
                JUMP => at += usize::try_from(i.k).unwrap(),
                JUMP_AT_LEAST => at += usize::from(if acc >= i.k { i.jt } else { i.jf }),
                JUMP_EQUAL => at += usize::from(if acc == i.k { i.jt } else { i.jf }),
                RETURN => return i.k,
                other => panic!("instruction {other}"),
            }
        }
    }

    fn fate(nr: i64, args: [u32; 6]) -> u32 {
        run(&program(), u32::try_from(nr).unwrap(), AUDIT_ARCH, args)
    }

    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

    #[test]
    fn every_listed_call_is_allowed_and_no_other() {
        let program = program();
        assert!(program.len() < 4096, "{}", program.len());
        let checked = checked();
        for nr in 0..=LAST_KNOWN {
            let call = i64::from(nr);
            if checked.iter().any(|(nr, _)| *nr == call) {
                continue;
            }
            let listed = ALWAYS.contains(&call) || LEGACY.contains(&call);
            let fate = run(&program, nr, AUDIT_ARCH, [0; 6]);
            assert_eq!(fate == ALLOW, listed, "{nr}");
        }
    }

    #[test]
    fn numbers_of_other_tables_never_pass() {
        let program = program();
        let kill = libc::SECCOMP_RET_KILL_PROCESS;
        let read = u32::try_from(libc::SYS_read).unwrap();
        assert_eq!(run(&program, read, AUDIT_ARCH, [0; 6]), ALLOW);
        assert_eq!(run(&program, read, 0x4000_0003, [0; 6]), kill);
        assert_eq!(run(&program, read | 0x4000_0000, AUDIT_ARCH, [0; 6]), kill);
        assert_eq!(run(&program, u32::MAX, AUDIT_ARCH, [0; 6]), kill);
        assert_eq!(run(&program, 1000, AUDIT_ARCH, [0; 6]), errno(libc::ENOSYS));
        assert_eq!(fate(libc::SYS_clone3, [0; 6]), errno(libc::ENOSYS));
    }

    #[test]
    fn arguments_decide_where_they_matter() {
        let eperm = errno(libc::EPERM);
        let socket = |family: i32, kind: i32, protocol: i32| {
            let args = [family, kind, protocol, 0, 0, 0].map(i32::cast_unsigned);
            fate(libc::SYS_socket, args)
        };
        assert_eq!(socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0), ALLOW);
        assert_eq!(socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 6), ALLOW);
        assert_eq!(socket(libc::AF_INET6, libc::SOCK_DGRAM, 0), ALLOW);
        assert_eq!(socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE), ALLOW);
        for (family, kind, protocol) in [
            (libc::AF_VSOCK, libc::SOCK_STREAM, 0),
            (libc::AF_ALG, libc::SOCK_SEQPACKET, 0),
            (libc::AF_PACKET, libc::SOCK_RAW, 0),
            (libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP),
            (libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP),
            (libc::AF_INET, libc::SOCK_STREAM, 262),
            (libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER),
        ] {
            assert_eq!(socket(family, kind, protocol), eperm, "{family} {kind} {protocol}");
        }
        let thread = (libc::CLONE_VM | libc::CLONE_THREAD).cast_unsigned();
        assert_eq!(fate(libc::SYS_clone, [thread, 0, 0, 0, 0, 0]), ALLOW);
        let user = libc::CLONE_NEWUSER.cast_unsigned();
        assert_eq!(fate(libc::SYS_clone, [user, 0, 0, 0, 0, 0]), eperm);
        assert_eq!(fate(libc::SYS_ioctl, [0, 0x5401, 0, 0, 0, 0]), ALLOW);
        assert_eq!(fate(libc::SYS_ioctl, [0, 0x5412, 0, 0, 0, 0]), eperm);
        assert_eq!(fate(libc::SYS_ioctl, [0, TIOCLINUX, 0, 0, 0, 0]), eperm);
        assert_eq!(fate(libc::SYS_personality, [0; 6]), ALLOW);
        assert_eq!(fate(libc::SYS_personality, [0x40000, 0, 0, 0, 0, 0]), eperm);
    }

    #[test]
    fn dangerous_calls_are_not_listed() {
        for nr in [
            libc::SYS_mount,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_ptrace,
            libc::SYS_bpf,
            libc::SYS_keyctl,
            libc::SYS_io_uring_setup,
            libc::SYS_userfaultfd,
            libc::SYS_perf_event_open,
            libc::SYS_open_by_handle_at,
            libc::SYS_process_vm_readv,
            libc::SYS_pidfd_getfd,
        ] {
            assert_eq!(fate(nr, [0; 6]), errno(libc::EPERM), "{nr} must stay out");
        }
    }
}
