//! Reaching for what is the host's: its files, its environment, its descriptors, its processes.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};

use super::{Arena, Attack, attack, check, perl, perl_on_host};

pub(super) const ATTACKS: &[Attack] = &[
    attack!(1, "read a file of the host", marker),
    attack!(1, "read the host's password hashes", shadow),
    attack!(2, "go through /proc/1/root", proc_root),
    attack!(3, "use PID 1's environ, mem and exe", proc_one),
    attack!(4, "find a variable of the host", environment),
    attack!(5, "find an inherited descriptor", descriptors),
    attack!(6, "make device nodes", mknod),
    attack!(7, "find a device of the host", devices),
    attack!(8, "open the kernel's control files for writing", control_files),
    attack!(9, "read the kernel's memory, keys and log", kernel_files),
    attack!(23, "connect to the host's unix sockets", unix_sockets),
    attack!(24, "see and signal the host's processes", processes),
    attack!(25, "meet another sandbox", neighbours),
];

async fn marker(arena: &Arena<'_>) -> Result<(), String> {
    let dir = std::env::temp_dir().join(format!("vaquero-marker-{}", std::process::id()));
    fs::create_dir_all(&dir).map_err(|e| e.to_string())?;
    let (file, secret) = (dir.join("marker"), format!("host-secret-{}", std::process::id()));
    fs::write(&file, &secret).map_err(|e| e.to_string())?;
    let path = file.display();
    let script = format!(
        "cat {path} /proc/self/root{path} /proc/$$/root{path} /workspace/../../../..{path} 2>&1; \
         find / -xdev -name marker 2>/dev/null; grep -rs {secret} /tmp /mnt /home /root /run /var; echo end"
    );
    let said = arena.inside(&script).await;
    fs::remove_dir_all(&dir).map_err(|e| e.to_string())?;
    let said = said?;
    check(!said.contains(&secret) && said.contains("end"), || said)
}

async fn shadow(arena: &Arena<'_>) -> Result<(), String> {
    check(fs::metadata("/etc/shadow").is_ok(), || "the host has no /etc/shadow".to_owned())?;
    let said = arena
        .inside("for f in /etc/shadow /etc/gshadow /root/.ssh /lost+found /sys/kernel /sys/class /boot/*; do ls -d $f 2>/dev/null; done; echo end")
        .await?;
    check(said.trim() == "end", || said)
}

async fn proc_root(arena: &Arena<'_>) -> Result<(), String> {
    // Another process of the sandbox has a usable root link, and it must be the sandbox's own root.
    let script = "sleep 60 & cat /proc/1/root/etc/shadow /proc/$!/root/etc/shadow 2>&1; \
        [ $(stat -Lc %d:%i /proc/$!/root) = $(stat -Lc %d:%i /) ] && echo same; kill $!";
    let said = arena.inside(script).await?;
    check(said.contains("same") && !said.contains("root:"), || said)
}

async fn proc_one(arena: &Arena<'_>) -> Result<(), String> {
    let program = r#"
        for my $file (qw(environ mem maps auxv stack)) {
            if (open(my $f, "<", "/proc/1/$file") && sysread($f, my $b, 1)) { print "$file readable\n" }
        }
        for my $link (qw(exe cwd root fd/0 fd/3 ns/mnt)) {
            print "$link resolves\n" if defined readlink "/proc/1/$link";
        }
        print "exe writable\n" if open(my $f, "+<", "/proc/1/exe");
        print "mem writable\n" if open(my $g, "+<", "/proc/1/mem");
        print "self readable\n" if open(my $h, "<", "/proc/self/environ");
        print "end\n";"#;
    let said = arena.inside(&perl(program)).await?;
    // Its own environ shows that the file is there to be read at all.
    check(said.trim() == "self readable\nend", || said)
}

async fn environment(arena: &Arena<'_>) -> Result<(), String> {
    let host: BTreeSet<String> =
        std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()).collect();
    check(host.iter().any(|n| n.starts_with("CARGO")), || "the host has no CARGO_*".to_owned())?;
    let said = arena.inside("env; cat /proc/self/environ | tr '\\0' '\\n'").await?;
    let expected = [
        "HOSTNAME", "PATH", "HOME", "LANG", "TERM", "PWD", "OLDPWD", "SHLVL", "_", "PS1", "PS2",
        "ALLOWED",
    ];
    let named = !said.contains("HOSTNAME=") || said.contains("HOSTNAME=sandbox\n");
    check(named, || format!("the host's name: {said}"))?;
    let foreign: Vec<&str> = said
        .lines()
        .filter_map(|line| Some(line.split_once('=')?.0))
        .filter(|name| !expected.contains(name))
        .collect();
    check(said.contains("ALLOWED=yes") && foreign.is_empty(), || format!("{foreign:?} in {said}"))
}

async fn descriptors(arena: &Arena<'_>) -> Result<(), String> {
    let program = r#"
        opendir(my $d, "/proc/self/fd"); my @fds = sort { $a <=> $b } grep { /\d/ } readdir $d;
        # Perl's own program file and the directory being read are its own.
        for (@fds) { my $l = readlink("/proc/self/fd/$_") // next;
            print "$_ $l\n" if $_ > 2 && $l !~ m{^/proc/\d+/fd$} && $l !~ m{^pipe:} && $l ne "/dev/null" && $l !~ m{^/tmp/sh-thd}; }
        print "end\n";"#;
    let said = arena
        .inside(&format!(
            "{}\nfor f in /proc/$$/fd/*; do readlink $f; done | grep -E 'socket:|memfd|launcher|\\.log'",
            perl(program)
        ))
        .await?;
    check(said.trim() == "end", || said)
}

async fn mknod(arena: &Arena<'_>) -> Result<(), String> {
    // S_IFBLK 8:0 and S_IFCHR 1:1, the first disk and the machine's memory.
    let program = r#"for ([0060600, 8<<8], [0020600, (1<<8)|1]) {
        my $p = ($ARGV[0] // "/workspace") . "/node";
        my $r = syscall(133, $p, $_->[0], $_->[1]); print $r == 0 ? "made" : "errno " . ($!+0), "\n"; unlink $p; }"#;
    if arena.host_is_root && cfg!(target_arch = "x86_64") {
        let dir = std::env::temp_dir().display().to_string();
        let host =
            perl_on_host(&program.replace("$ARGV[0] // \"/workspace\"", &format!("'{dir}'")))?;
        check(host == "made\nmade", || format!("on the host: {host}"))?;
    }
    let said = arena.inside(&perl(program)).await?;
    check(said.trim() == "errno 1\nerrno 1", || said)
}

async fn devices(arena: &Arena<'_>) -> Result<(), String> {
    let said = arena
        .inside(
            "for f in /dev/* /dev/shm/*; do [ -L $f ] || { [ -c $f -o -b $f ] && echo $f; }; done",
        )
        .await?;
    let allowed =
        ["/dev/full", "/dev/null", "/dev/random", "/dev/tty", "/dev/urandom", "/dev/zero"];
    let named = !said.contains("HOSTNAME=") || said.contains("HOSTNAME=sandbox\n");
    check(named, || format!("the host's name: {said}"))?;
    let foreign: Vec<&str> = said.lines().filter(|l| !allowed.contains(l)).collect();
    check(said.contains("/dev/null") && foreign.is_empty(), || format!("{foreign:?}"))
}

/// Opens each file for writing and says how that went; nothing is written.
const OPEN_FOR_WRITING: &str = r#"use Fcntl; for (qw(
    /proc/sys/kernel/core_pattern /proc/sysrq-trigger /proc/sys/kernel/hotplug /proc/sys/kernel/modprobe
    /sys/kernel/uevent_helper /proc/sys/kernel/pid_max /proc/sys/vm/overcommit_memory /proc/sys/fs/file-max
    /sys/fs/cgroup/memory/release_agent /sys/fs/cgroup/cgroup.procs /proc/irq/default_smp_affinity)) {
        print sysopen(my $f, $_, O_WRONLY) ? "opened $_\n" : ""; } print "end\n";"#;

async fn control_files(arena: &Arena<'_>) -> Result<(), String> {
    if arena.host_is_root {
        let host = perl_on_host(OPEN_FOR_WRITING)?;
        check(host.contains("opened /proc/sys/kernel/core_pattern"), || format!("host: {host}"))?;
    }
    let said = arena.inside(&perl(OPEN_FOR_WRITING)).await?;
    check(said.trim() == "end", || said)
}

async fn kernel_files(arena: &Arena<'_>) -> Result<(), String> {
    let script = "for f in /proc/kcore /proc/keys /proc/key-users /proc/kmsg /dev/kmsg /dev/mem /proc/kallsyms \
        /proc/timer_list /proc/1/stack; do timeout 2 head -c 1 $f 2>/dev/null | wc -c; done | sort -u; dmesg 2>&1 | wc -l";
    let host_has = fs::metadata("/proc/kcore").is_ok() || fs::metadata("/proc/keys").is_ok();
    check(host_has, || "the host has neither kcore nor keys".to_owned())?;
    let said = arena.inside(script).await?;
    // Nothing to read anywhere, and one line of refusal from dmesg.
    check(matches!(said.trim(), "0\n1" | "0\n0"), || said)
}

async fn unix_sockets(arena: &Arena<'_>) -> Result<(), String> {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
    let name = format!("vaquero-attack-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).map_err(|e| e.to_string())?;
    let _listener = UnixListener::bind_addr(&address).map_err(|e| e.to_string())?;
    UnixStream::connect_addr(&address).map_err(|e| format!("not even on the host: {e}"))?;
    let program = format!(
        r#"use Socket; socket(my $s, AF_UNIX, SOCK_STREAM, 0) or die;
        print connect($s, pack("Sa*", AF_UNIX, "\0{name}")) ? "connected\n" : "errno " . ($!+0) . "\n";"#
    );
    // One that nobody listens on is a name and no way out.
    let try_all = r#"use Socket; for my $path (split /\n/, `find / -type s 2>/dev/null`) { for my $kind (SOCK_STREAM, 5, SOCK_DGRAM) {
        socket(my $s, AF_UNIX, $kind, 0) or next; print "connected to $path\n" if connect($s, pack_sockaddr_un($path)); } }"#;
    let script =
        format!("{}\n{}\nls -d /run/dbus /run/systemd 2>/dev/null", perl(&program), perl(try_all));
    let said = arena.inside(&script).await?;
    let refused = format!("errno {}", libc::ECONNREFUSED);
    let denied = format!("errno {}", libc::EPERM);
    check(said.trim() == refused || said.trim() == denied, || said)
}

async fn processes(arena: &Arena<'_>) -> Result<(), String> {
    let mut host =
        Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().map_err(|e| e.to_string())?;
    let target = arena.target().await?;
    let seen = target.sh("cat /proc/[0-9]*/comm | sort -u; ls -d /proc/[0-9]* | wc -l").await?;
    // Kills the shell as well, so there may be no result worth having.
    let pid = host.id();
    let program = format!(
        r#"$SIG{{TERM}} = "IGNORE"; kill("KILL", {pid}); kill("KILL", -1); print "alive\n""#
    );
    let killed = target.sh(&perl(&program)).await;
    let host_lives = host.try_wait().map_err(|e| e.to_string())?.is_none();
    host.kill().and_then(|()| host.wait()).map_err(|e| e.to_string())?;
    check(host_lives, || "a process of the host was killed".to_owned())?;
    let killed = killed?;
    target.restart_shell().await?;
    let after = target.sh("echo after").await?;
    arena.destroy(target).await?;
    check(after.text.trim() == "after", || format!("{killed:?}, then {after:?}"))?;
    let count: u32 = seen.text.lines().last().and_then(|n| n.trim().parse().ok()).unwrap_or(99);
    check(count < 10, || seen.text)
}

async fn neighbours(arena: &Arena<'_>) -> Result<(), String> {
    let (one, two) = (arena.target().await?, arena.target().await?);
    let leave = r#"echo left > /tmp/left; echo left > /dev/shm/left; echo left > /workspace/left
        perl -e 'use IPC::SysV; print shmget(0x5151, 4096, 01666) ? "" : "no shm\n"' 2>/dev/null
        perl -MSocket -e 'socket(my $u, AF_UNIX, SOCK_STREAM, 0); bind($u, pack("Sa*", AF_UNIX, "\0vq")); listen($u, 1);
          socket(my $t, AF_INET, SOCK_STREAM, 0); bind($t, sockaddr_in(4545, INADDR_LOOPBACK)) or die; listen($t, 1); sleep 600' >/dev/null 2>&1 &
        for i in $(seq 400); do (exec 3<>/dev/tcp/127.0.0.1/4545) 2>/dev/null && break; sleep 0.05; done; head -1 /proc/self/uid_map"#;
    let look = r#"cat /tmp/left /dev/shm/left /workspace/left 2>/dev/null
        grep -q 20817 /proc/sysvipc/shm && echo shm
        perl -MSocket -e 'socket(my $u, AF_UNIX, SOCK_STREAM, 0); print "unix\n" if connect($u, pack("Sa*", AF_UNIX, "\0vq"));
          socket(my $t, AF_INET, SOCK_STREAM, 0); print "tcp\n" if connect($t, sockaddr_in(4545, INADDR_LOOPBACK));'
        head -1 /proc/self/uid_map"#;
    let left = one.sh(leave).await?.text;
    let found_at_home = one.sh(look).await?.text;
    let found = two.sh(look).await?.text;
    arena.destroy(one).await?;
    arena.destroy(two).await?;
    let at_home = ["left\nleft\nleft", "unix", "tcp"].iter().all(|w| found_at_home.contains(w));
    check(at_home, || format!("nothing to find: {left}\n{found_at_home}"))?;
    check(found.trim().lines().count() == 1, || found.clone())?;
    let ids = |text: &str| text.trim().lines().last().unwrap_or_default().to_owned();
    check(!arena.provider.capabilities().own_ids || ids(&found) != ids(&found_at_home), || {
        format!("shared ids: {found}")
    })
}
