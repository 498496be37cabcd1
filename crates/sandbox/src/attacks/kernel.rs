//! Calling into the kernel for what a sandbox has no business with.

use std::fmt::Write as _;

use super::{Arena, Attack, attack, check, perl, perl_on_host};

pub(super) const ATTACKS: &[Attack] = &[
    attack!(13, "change mounts", mounts),
    attack!(14, "make or enter namespaces", namespaces),
    attack!(15, "look into other processes", other_processes),
    attack!(16, "use kernel keyrings", keyrings),
    attack!(17, "reach the kernel's large surfaces", surfaces),
    attack!(18, "administer the machine", administer),
    attack!(19, "call through the i386 and x32 tables", other_tables),
    attack!(20, "type into a terminal", terminals),
    attack!(21, "gain privileges by setuid", setuid),
    attack!(22, "open sockets of other families", sockets),
];

/// A call: its name, its number, its arguments as Perl writes them.
type Call = (&'static str, i64, &'static str);

/// Performs each call in a child of its own and prints `name errno`.
fn program(calls: &[Call]) -> String {
    let mut text = String::from("$| = 1; my $r; sub str { my $s = shift; $s }\n");
    for (name, number, arguments) in calls {
        let comma = if arguments.is_empty() { "" } else { ", " };
        writeln!(
            text,
            "if (my $p = fork) {{ waitpid $p, 0; print \"{name} signal \", $? & 127, \"\\n\" if $? & 127; }} else {{ \
             $r = syscall({number}{comma}{arguments}); print \"{name} \", ($r == -1 ? $!+0 : \"ok\"), \"\\n\"; exit 0 }}"
        )
        .expect("writing to a string does not fail");
    }
    text
}

/// The calls must all fail inside with one of these errors, and, as root, go another way on the host.
async fn refused(arena: &Arena<'_>, calls: &[Call], errors: &[i32]) -> Result<(), String> {
    let text = program(calls);
    let inside = arena.inside(&perl(&text)).await?;
    let host = if arena.host_is_root { perl_on_host(&text)? } else { String::new() };
    let find = |said: &str, name: &str| {
        said.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned))
    };
    for (name, _, _) in calls {
        let got = find(&inside, name).ok_or_else(|| format!("{name} said nothing: {inside}"))?;
        let refused = errors.iter().any(|e| e.to_string() == got);
        check(refused, || format!("{name} inside: {got}"))?;
        if let Some(on_host) = find(&host, name) {
            // A kernel built without it has nothing to refuse.
            let absent = on_host == libc::ENOSYS.to_string();
            check(absent || on_host != got, || format!("{name} fails on the host as well: {got}"))?;
        }
    }
    Ok(())
}

async fn mounts(arena: &Arena<'_>) -> Result<(), String> {
    // Arguments that no kernel accepts, so that the host is not changed.
    let calls = [
        ("mount", libc::SYS_mount, "str('none'), str('/nonexistent-target'), str('tmpfs'), 0, 0"),
        ("umount2", libc::SYS_umount2, "str('/nonexistent-target'), 0"),
        (
            "pivot_root",
            libc::SYS_pivot_root,
            "str('/nonexistent-target'), str('/nonexistent-target')",
        ),
        ("move_mount", libc::SYS_move_mount, "-1, str(''), -1, str(''), 0"),
        ("open_tree", libc::SYS_open_tree, "-100, str('/nonexistent-target'), 1"),
        ("fsopen", libc::SYS_fsopen, "str('nonexistent-fs'), 0"),
        ("fsmount", libc::SYS_fsmount, "-1, 0, 0"),
        ("fspick", libc::SYS_fspick, "-100, str('/nonexistent-target'), 0"),
        ("mount_setattr", libc::SYS_mount_setattr, "-1, str(''), 0, 0, 0"),
        ("chroot", libc::SYS_chroot, "str('/nonexistent-target')"),
    ];
    refused(arena, &calls, &[libc::EPERM]).await
}

async fn namespaces(arena: &Arena<'_>) -> Result<(), String> {
    let calls = [
        ("unshare_user", libc::SYS_unshare, "0x10000000"),
        ("unshare_mount", libc::SYS_unshare, "0x00020000"),
        ("unshare_net", libc::SYS_unshare, "0x40000000"),
        ("setns", libc::SYS_setns, "-1, 0"),
        ("clone_user", libc::SYS_clone, "0x10000000|17, 0, 0, 0, 0"),
        ("clone_net", libc::SYS_clone, "0x40000000|17, 0, 0, 0, 0"),
    ];
    refused(arena, &calls, &[libc::EPERM]).await?;
    let clone3 = [("clone3", libc::SYS_clone3, "str(''), 0")];
    let inside = arena.inside(&perl(&program(&clone3))).await?;
    check(inside.trim() == format!("clone3 {}", libc::ENOSYS), || inside)
}

async fn other_processes(arena: &Arena<'_>) -> Result<(), String> {
    let calls = [
        ("ptrace", libc::SYS_ptrace, "0x4206, $$ + 100000, 0, 0"),
        ("process_vm_readv", libc::SYS_process_vm_readv, "$$, 0, 0, 0, 0, 0"),
        ("process_vm_writev", libc::SYS_process_vm_writev, "$$, 0, 0, 0, 0, 0"),
        ("pidfd_getfd", libc::SYS_pidfd_getfd, "-1, 0, 0"),
        ("kcmp", libc::SYS_kcmp, "$$, $$, 2, 0, 0"),
        ("process_madvise", libc::SYS_process_madvise, "-1, 0, 0, 0, 0"),
    ];
    refused(arena, &calls, &[libc::EPERM]).await
}

async fn keyrings(arena: &Arena<'_>) -> Result<(), String> {
    let calls = [
        ("add_key", libc::SYS_add_key, "str('user'), str('vaquero-attack'), str('x'), 1, -3"),
        ("request_key", libc::SYS_request_key, "str('user'), str('vaquero-none'), 0, -3"),
        ("keyctl", libc::SYS_keyctl, "0, -3, 0"),
    ];
    refused(arena, &calls, &[libc::EPERM]).await
}

async fn surfaces(arena: &Arena<'_>) -> Result<(), String> {
    let calls = [
        ("io_uring_setup", libc::SYS_io_uring_setup, "0, 0"),
        ("io_uring_enter", libc::SYS_io_uring_enter, "-1, 0, 0, 0, 0, 0"),
        ("io_uring_register", libc::SYS_io_uring_register, "-1, 0, 0, 0"),
        ("bpf", libc::SYS_bpf, "9999, 0, 0"),
        ("perf_event_open", libc::SYS_perf_event_open, "0, 0, 0, 0, 0"),
        ("userfaultfd", libc::SYS_userfaultfd, "0"),
        ("fanotify_init", libc::SYS_fanotify_init, "0xffff, 0"),
        ("memfd_secret", libc::SYS_memfd_secret, "0xffff"),
    ];
    refused(arena, &calls, &[libc::EPERM]).await
}

async fn administer(arena: &Arena<'_>) -> Result<(), String> {
    // Again nothing a host would do: bad magic numbers, bad clocks, bad lengths.
    let calls = [
        ("open_by_handle_at", libc::SYS_open_by_handle_at, "-1, 0, 0"),
        (
            "name_to_handle_at",
            libc::SYS_name_to_handle_at,
            "-100, str('/nonexistent-target'), 0, 0, 0",
        ),
        ("init_module", libc::SYS_init_module, "0, 0, str('')"),
        ("finit_module", libc::SYS_finit_module, "-1, str(''), 0"),
        ("delete_module", libc::SYS_delete_module, "str('nonexistent_module'), 0"),
        ("kexec_load", libc::SYS_kexec_load, "0, 99999, 0, 0xffff"),
        ("reboot", libc::SYS_reboot, "1, 2, 3, 0"),
        ("clock_settime", libc::SYS_clock_settime, "999, 0"),
        ("settimeofday", libc::SYS_settimeofday, "1, 0"),
        ("sethostname", libc::SYS_sethostname, "str('x'), -1"),
        ("setdomainname", libc::SYS_setdomainname, "str('x'), -1"),
        ("swapon", libc::SYS_swapon, "str('/nonexistent-target'), 0"),
        ("swapoff", libc::SYS_swapoff, "str('/nonexistent-target')"),
        ("acct", libc::SYS_acct, "str('/nonexistent-target')"),
        ("syslog", libc::SYS_syslog, "9, 0, 0"),
        ("personality", libc::SYS_personality, "0x0040000"),
        #[cfg(target_arch = "x86_64")]
        ("iopl", libc::SYS_iopl, "99"),
        #[cfg(target_arch = "x86_64")]
        ("ioperm", libc::SYS_ioperm, "99999, 1, 1"),
        #[cfg(target_arch = "x86_64")]
        ("modify_ldt", libc::SYS_modify_ldt, "0, 0, 0"),
    ];
    refused(arena, &calls, &[libc::EPERM]).await
}

/// A whole program in 64-bit ELF that makes one call through the i386 gate and exits with 7.
fn i386_gate(call: u8) -> String {
    let mut elf: Vec<u8> = Vec::new();
    elf.extend(*b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    elf.extend(*b"\x02\0\x3e\0\x01\0\0\0");
    elf.extend(0x40_0078_u64.to_le_bytes());
    elf.extend(64_u64.to_le_bytes());
    elf.extend([0; 8]);
    elf.extend(*b"\0\0\0\0\x40\0\x38\0\x01\0\0\0\0\0\0\0");
    elf.extend(*b"\x01\0\0\0\x05\0\0\0");
    elf.extend(0_u64.to_le_bytes());
    elf.extend(0x40_0000_u64.to_le_bytes());
    elf.extend(0x40_0000_u64.to_le_bytes());
    elf.extend(4096_u64.to_le_bytes());
    elf.extend(4096_u64.to_le_bytes());
    elf.extend(4096_u64.to_le_bytes());
    // mov eax, call; int 0x80; mov edi, 7; mov eax, 60; syscall
    elf.extend([0xb8, call, 0, 0, 0, 0xcd, 0x80]);
    elf.extend(*b"\xbf\x07\0\0\0\xb8\x3c\0\0\0\x0f\x05");
    elf.resize(4096, 0);
    elf.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string does not fail");
        text
    })
}

async fn other_tables(arena: &Arena<'_>) -> Result<(), String> {
    if !cfg!(target_arch = "x86_64") {
        return Ok(());
    }
    // i386's call 20 is getpid, as harmless as a call can be.
    let program = format!(
        r#"my $f = ($ENV{{GATE}} // "/workspace/gate"); open(my $o, ">", $f) or die; print $o pack("H*", "{}"); close $o;
        chmod 0755, $f; system $f; print "gate ", ($? & 127) || "exit " . ($? >> 8), "\n"; unlink $f;
        if (my $p = fork) {{ waitpid $p, 0; print "x32 ", ($? & 127), "\n" }} else {{ syscall(0x40000000 | 39); exit 0 }}
        my $r = syscall(39); print "native ", $r == $$ ? "ok" : "$!", "\n";"#,
        i386_gate(20)
    );
    let on_host = std::env::temp_dir().join(format!("vaquero-gate-{}", std::process::id()));
    let host = perl_on_host(&program.replace("$ENV{GATE}", &format!("'{}'", on_host.display())))?;
    check(host.contains("gate exit 7") && host.contains("x32 0"), || format!("host: {host}"))?;
    let inside = arena.inside(&perl(&program)).await?;
    let killed = libc::SIGSYS;
    check(inside.trim() == format!("gate {killed}\nx32 {killed}\nnative ok"), || inside)
}

async fn terminals(arena: &Arena<'_>) -> Result<(), String> {
    let program = r#"use Fcntl; use POSIX; $| = 1; $SIG{HUP} = "IGNORE"; POSIX::setsid(); sysopen(my $m, "/dev/ptmx", O_RDWR) or die "ptmx $!";
        my $n = pack("i", 0); ioctl($m, 0x40045431, $n) or die "unlock $!"; ioctl($m, 0x80045430, $n) or die "number $!";
        sysopen(my $s, "/dev/pts/" . unpack("i", $n), O_RDWR) or die "slave $!";
        for (0x5412, 0x541c, 0x100005412) { my $b = "x"; print ioctl($s, $_, $b) ? "typed" : $!+0, "\n"; }"#;
    let inside = arena.inside(&perl(program)).await?;
    let lines: Vec<&str> = inside.trim().lines().collect();
    check(lines == ["1", "1", "1"], || inside)
}

async fn setuid(arena: &Arena<'_>) -> Result<(), String> {
    let script = r#"cp /usr/bin/id /workspace/id && chmod 4755 /workspace/id; grep NoNewPrivs /proc/self/status
        setcap cap_sys_admin+ep /workspace/id 2>/dev/null
        perl -e '$) = $( = 65534; $> = $< = 65534; exit 3 if $> != 65534; exec "/workspace/id", "-u"'; echo "exit $?"
        grep -E 'CapBnd' /proc/self/status"#;
    let said = arena.inside(script).await?;
    check(said.contains("NoNewPrivs:\t1"), || said.clone())?;
    // With a single id there is nobody else to become; then the first line is all there is to show.
    let stayed = said.contains("65534\nexit 0") || said.contains("exit 3");
    check(stayed && said.contains("CapBnd:\t00000000000004fb"), || said)
}

async fn sockets(arena: &Arena<'_>) -> Result<(), String> {
    let calls = [
        ("vsock", libc::SYS_socket, "40, 1, 0"),
        ("alg", libc::SYS_socket, "38, 5, 0"),
        ("packet", libc::SYS_socket, "17, 3, 0"),
        ("raw_icmp", libc::SYS_socket, "2, 3, 1"),
        ("raw_icmp6", libc::SYS_socket, "10, 3, 58"),
        ("netfilter", libc::SYS_socket, "16, 3, 12"),
        ("uevent", libc::SYS_socket, "16, 3, 15"),
        ("generic", libc::SYS_socket, "16, 3, 16"),
        ("audit", libc::SYS_socket, "16, 3, 9"),
        ("xdp", libc::SYS_socket, "44, 3, 0"),
        ("vsock_pair", libc::SYS_socketpair, "40, 1, 0, str(pack('ii', 0, 0))"),
    ];
    refused(arena, &calls, &[libc::EPERM]).await?;
    // And what programs need still works.
    let allowed = [
        ("unix", libc::SYS_socket, "1, 1, 0"),
        ("tcp", libc::SYS_socket, "2, 1, 0"),
        ("udp6", libc::SYS_socket, "10, 2, 0"),
        ("route", libc::SYS_socket, "16, 3, 0"),
    ];
    let inside = arena.inside(&perl(&program(&allowed))).await?;
    check(inside.trim() == "unix ok\ntcp ok\nudp6 ok\nroute ok", || inside)
}
