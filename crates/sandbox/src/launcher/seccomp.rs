//! The system call filter of a sandbox: an allow-list, compiled to a search tree.
//! What is missing here is refused; a new kernel call stays out until somebody lists it.

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

/// Calls newer than the C library's tables; their numbers are the same on every architecture.
mod recent {
    pub(super) const CACHESTAT: i64 = 451;
    pub(super) const FCHMODAT2: i64 = 452;
    pub(super) const MAP_SHADOW_STACK: i64 = 453;
    pub(super) const FUTEX_WAKE: i64 = 454;
    pub(super) const FUTEX_WAIT: i64 = 455;
    pub(super) const FUTEX_REQUEUE: i64 = 456;
    pub(super) const MSEAL: i64 = 462;
    pub(super) const SETXATTRAT: i64 = 463;
    pub(super) const GETXATTRAT: i64 = 464;
    pub(super) const LISTXATTRAT: i64 = 465;
    pub(super) const REMOVEXATTRAT: i64 = 466;
}

/// Calls allowed whatever their arguments, on every architecture.
const ALWAYS: &[i64] = &[
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_brk,
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_chdir,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_connect,
    libc::SYS_copy_file_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fchdir,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_fgetxattr,
    libc::SYS_flistxattr,
    libc::SYS_flock,
    libc::SYS_fremovexattr,
    libc::SYS_fsetxattr,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_futex,
    libc::SYS_futex_waitv,
    libc::SYS_get_mempolicy,
    libc::SYS_get_robust_list,
    libc::SYS_getcpu,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getgroups,
    libc::SYS_getitimer,
    libc::SYS_getpeername,
    libc::SYS_getpgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getpriority,
    libc::SYS_getrandom,
    libc::SYS_getresgid,
    libc::SYS_getresuid,
    libc::SYS_getrlimit,
    libc::SYS_getrusage,
    libc::SYS_getsid,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    libc::SYS_getxattr,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_rm_watch,
    libc::SYS_io_cancel,
    libc::SYS_io_destroy,
    libc::SYS_io_getevents,
    libc::SYS_io_setup,
    libc::SYS_io_submit,
    libc::SYS_ioprio_get,
    libc::SYS_ioprio_set,
    libc::SYS_kill,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_restrict_self,
    libc::SYS_lgetxattr,
    libc::SYS_linkat,
    libc::SYS_listen,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_lremovexattr,
    libc::SYS_lseek,
    libc::SYS_lsetxattr,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_memfd_create,
    libc::SYS_mincore,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_mlockall,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mq_getsetattr,
    libc::SYS_mq_notify,
    libc::SYS_mq_open,
    libc::SYS_mq_timedreceive,
    libc::SYS_mq_timedsend,
    libc::SYS_mq_unlink,
    libc::SYS_mremap,
    libc::SYS_msgctl,
    libc::SYS_msgget,
    libc::SYS_msgrcv,
    libc::SYS_msgsnd,
    libc::SYS_msync,
    libc::SYS_munlock,
    libc::SYS_munlockall,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_pipe2,
    libc::SYS_pkey_alloc,
    libc::SYS_pkey_free,
    libc::SYS_pkey_mprotect,
    libc::SYS_ppoll,
    libc::SYS_prctl,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_prlimit64,
    libc::SYS_pselect6,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_read,
    libc::SYS_readahead,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_remap_file_pages,
    libc::SYS_removexattr,
    libc::SYS_renameat2,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getattr,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_rr_get_interval,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_setattr,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setscheduler,
    libc::SYS_sched_yield,
    libc::SYS_seccomp,
    libc::SYS_semctl,
    libc::SYS_semget,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_sendfile,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_setfsgid,
    libc::SYS_setfsuid,
    libc::SYS_setgid,
    libc::SYS_setgroups,
    libc::SYS_setitimer,
    libc::SYS_setpgid,
    libc::SYS_setpriority,
    libc::SYS_setregid,
    libc::SYS_setresgid,
    libc::SYS_setresuid,
    libc::SYS_setreuid,
    libc::SYS_setrlimit,
    libc::SYS_setsid,
    libc::SYS_setsockopt,
    libc::SYS_setuid,
    libc::SYS_setxattr,
    libc::SYS_shmat,
    libc::SYS_shmctl,
    libc::SYS_shmdt,
    libc::SYS_shmget,
    libc::SYS_shutdown,
    libc::SYS_sigaltstack,
    libc::SYS_signalfd4,
    libc::SYS_splice,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_symlinkat,
    libc::SYS_sync,
    libc::SYS_sync_file_range,
    libc::SYS_syncfs,
    libc::SYS_sysinfo,
    libc::SYS_tee,
    libc::SYS_tgkill,
    libc::SYS_timer_create,
    libc::SYS_timer_delete,
    libc::SYS_timer_getoverrun,
    libc::SYS_timer_gettime,
    libc::SYS_timer_settime,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_gettime,
    libc::SYS_timerfd_settime,
    libc::SYS_times,
    libc::SYS_tkill,
    libc::SYS_truncate,
    libc::SYS_umask,
    libc::SYS_uname,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    libc::SYS_vmsplice,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_write,
    libc::SYS_writev,
    recent::CACHESTAT,
    recent::FCHMODAT2,
    recent::FUTEX_REQUEUE,
    recent::FUTEX_WAIT,
    recent::FUTEX_WAKE,
    recent::GETXATTRAT,
    recent::LISTXATTRAT,
    recent::MAP_SHADOW_STACK,
    recent::MSEAL,
    recent::REMOVEXATTRAT,
    recent::SETXATTRAT,
];

/// Older spellings that only x86-64 still has.
#[cfg(target_arch = "x86_64")]
const LEGACY: &[i64] = &[
    libc::SYS_access,
    libc::SYS_alarm,
    libc::SYS_arch_prctl,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_creat,
    libc::SYS_dup2,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd,
    libc::SYS_fork,
    libc::SYS_futimesat,
    libc::SYS_getdents,
    libc::SYS_getpgrp,
    libc::SYS_inotify_init,
    libc::SYS_lchown,
    libc::SYS_link,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_mknod,
    libc::SYS_open,
    libc::SYS_pause,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_rmdir,
    libc::SYS_select,
    libc::SYS_signalfd,
    libc::SYS_stat,
    libc::SYS_symlink,
    libc::SYS_time,
    libc::SYS_unlink,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_vfork,
];

/// No other architecture has older spellings on top.
#[cfg(not(target_arch = "x86_64"))]
const LEGACY: &[i64] = &[libc::SYS_renameat];

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
