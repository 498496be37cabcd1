//! Reaching any other machine, or the host by its own addresses. A sandbox without a network has none of them.

use std::net::{TcpListener, TcpStream, UdpSocket};

use super::{Arena, Attack, attack, check, perl};
use crate::seam::Networking;

pub(super) const ATTACKS: &[Attack] = &[
    attack!(26, "connect to the host's loopback", loopback),
    attack!(27, "reach metadata services, private networks and gateways", addresses),
    attack!(28, "send datagrams and pings anywhere", datagrams),
    attack!(27, "go around the way out", around),
    attack!(37, "change the way out or take its place", change),
];

async fn loopback(arena: &Arena<'_>) -> Result<(), String> {
    let v4 = TcpListener::bind("127.0.0.1:0").map_err(|e| e.to_string())?;
    let port = v4.local_addr().map_err(|e| e.to_string())?.port();
    // A host may be without IPv6; then there is only one address to try.
    let _v6 = TcpListener::bind(("::1", port));
    TcpStream::connect(("127.0.0.1", port)).map_err(|e| format!("not even on the host: {e}"))?;
    let script = format!(
        "for h in 127.0.0.1 ::1 localhost 0.0.0.0 127.1.2.3; do (exec 3<>/dev/tcp/$h/{port}) 2>/dev/null && echo reached $h; done; \
         perl -MSocket -e 'socket(my $s, AF_INET, SOCK_STREAM, 0); connect($s, sockaddr_in({port}, INADDR_LOOPBACK)) or print $!+0, \"\\n\"'"
    );
    let said = arena.inside(&script).await?;
    check(said.trim() == libc::ECONNREFUSED.to_string(), || said)
}

async fn addresses(arena: &Arena<'_>) -> Result<(), String> {
    let program = r#"use Socket qw(:all);
        for (qw(169.254.169.254 10.0.0.1 172.16.0.1 172.17.0.1 192.168.0.1 192.168.1.1 100.64.0.1 8.8.8.8 1.1.1.1)) {
            socket(my $s, AF_INET, SOCK_STREAM, 0); alarm 5;
            print "$_ ", connect($s, sockaddr_in(80, inet_aton($_))) ? "reached" : $!+0, "\n"; }
        for (qw(fd00:ec2::254 fe80::1 2001:4860:4860::8888)) {
            socket(my $s, AF_INET6, SOCK_STREAM, 0); alarm 5;
            print "$_ ", connect($s, pack_sockaddr_in6(80, inet_pton(AF_INET6, $_))) ? "reached" : $!+0, "\n"; }"#;
    let said = arena.inside(&perl(program)).await?;
    let unreachable = [
        libc::ENETUNREACH,
        libc::EHOSTUNREACH,
        libc::EADDRNOTAVAIL,
        libc::EINVAL,
        libc::EAFNOSUPPORT,
    ];
    let lines: Vec<&str> = said.trim().lines().collect();
    let refused = |line: &&str| {
        unreachable.iter().any(|e| line.rsplit(' ').next() == Some(e.to_string().as_str()))
    };
    check(lines.len() == 12 && lines.iter().all(refused), || said.clone())
}

async fn datagrams(arena: &Arena<'_>) -> Result<(), String> {
    let host = UdpSocket::bind("127.0.0.1:0").map_err(|e| e.to_string())?;
    host.set_nonblocking(true).map_err(|e| e.to_string())?;
    let port = host.local_addr().map_err(|e| e.to_string())?.port();
    let program = format!(
        r#"use Socket qw(:all);
        for (["127.0.0.1", {port}], ["8.8.8.8", 53], ["1.1.1.1", 443], ["255.255.255.255", 67], ["224.0.0.251", 5353]) {{
            socket(my $s, AF_INET, SOCK_DGRAM, 0); setsockopt($s, SOL_SOCKET, SO_BROADCAST, 1);
            print "$_->[0] ", defined send($s, "x", 0, sockaddr_in($_->[1], inet_aton($_->[0]))) ? "sent" : $!+0, "\n"; }}
        print socket(my $i, AF_INET, SOCK_DGRAM, 1) ? "icmp\n" : "no icmp\n";
        print gethostbyname("example.com") ? "resolved\n" : "no name\n";"#
    );
    let said = arena.inside(&perl(&program)).await?;
    let got = host.recv(&mut [0; 8]);
    check(got.is_err(), || "a datagram reached the host".to_owned())?;
    let unreachable = libc::ENETUNREACH;
    let said = said.replace(&format!(" {}\n", libc::EHOSTUNREACH), &format!(" {unreachable}\n"));
    // Its own loopback takes a datagram and drops it: nobody listens there.
    let expected = format!(
        "127.0.0.1 sent\n8.8.8.8 {unreachable}\n1.1.1.1 {unreachable}\n255.255.255.255 {unreachable}\n\
         224.0.0.251 {unreachable}\nno icmp\nno name"
    );
    check(said.trim() == expected, || said)
}

/// In a sandbox with a way out, all TCP over IPv4 and all questions to name servers end there, and everything else ends at once.
async fn around(arena: &Arena<'_>) -> Result<(), String> {
    let program = r#"use Socket qw(:all);
        for (["169.254.169.254", 80], ["10.0.0.1", 22], ["192.168.1.1", 443], ["8.8.8.8", 53], ["1.1.1.1", 65535], ["93.184.216.34", 1]) {
            socket(my $s, AF_INET, SOCK_STREAM, 0); alarm 20;
            connect($s, sockaddr_in($_->[1], inet_aton($_->[0]))) or print "no connection\n"; print scalar <$s>; }
        for (qw(fd00:ec2::254 fe80::1 2001:4860:4860::8888 ::ffff:10.0.0.1)) {
            socket(my $s, AF_INET6, SOCK_STREAM, 0); alarm 20;
            print "$_ ", connect($s, pack_sockaddr_in6(80, inet_pton(AF_INET6, $_))) ? scalar <$s> : "refused\n"; }
        for (["8.8.8.8", 53], ["9.9.9.9", 53], ["1.1.1.1", 443], ["224.0.0.251", 5353], ["10.0.0.1", 123]) {
            socket(my $s, AF_INET, SOCK_DGRAM, 0); alarm 20; connect($s, sockaddr_in($_->[1], inet_aton($_->[0])));
            my $said = ""; (send($s, "x", 0) && defined recv($s, $said, 99, 0)) or $said = "refused"; print "$_->[0] $said\n"; }
        print socket(my $i, AF_INET, SOCK_DGRAM, 1) ? "icmp\n" : "no icmp\n";"#;
    let target = arena.target_with_network().await?;
    let said = target.sh(&perl(program)).await;
    arena.destroy(target).await?;
    let said = said?.text;
    if arena.provider.capabilities().networking == Networking::Proxied {
        // Nothing goes anywhere without the proxy.
        return check(!said.contains("caught") && said.contains("refused"), || said);
    }
    let expected = "caught 169.254.169.254:80\ncaught 10.0.0.1:22\ncaught 192.168.1.1:443\ncaught 8.8.8.8:53\ncaught 1.1.1.1:65535\n\
        caught 93.184.216.34:1\nfd00:ec2::254 refused\nfe80::1 refused\n2001:4860:4860::8888 refused\n::ffff:10.0.0.1 caught 10.0.0.1:80\n\
        8.8.8.8 caught\n9.9.9.9 caught\n1.1.1.1 refused\n224.0.0.251 refused\n10.0.0.1 refused\nno icmp";
    check(said.trim() == expected, || said)
}

/// Neither routes nor rules can be changed from inside, and no program can listen in the way out's place.
async fn change(arena: &Arena<'_>) -> Result<(), String> {
    let program = r#"use Socket qw(:all);
        print socket(my $f, 16, SOCK_RAW, 12) ? "rules can be spoken to\n" : "no rules\n";
        socket(my $r, 16, SOCK_DGRAM, 0) or print "no routes at all\n"; alarm 20;
        send($r, pack("LSSLL C8L SSL", 36, 25, 5, 1, 0, 2, 0, 0, 0, 255, 3, 254, 2, 0, 8, 4, 1), 0); recv($r, my $answer, 4096, 0);
        print "route ", unpack("x16 l", $answer), "\n";
        for my $port (3128, 3129) { for my $any (INADDR_LOOPBACK, INADDR_ANY) {
            socket(my $s, AF_INET, SOCK_STREAM, 0); setsockopt($s, SOL_SOCKET, SO_REUSEADDR, 1); setsockopt($s, SOL_SOCKET, 15, 1);
            print bind($s, sockaddr_in($port, $any)) && listen($s, 1) ? "taken\n" : "kept\n"; } }
        socket(my $u, AF_INET, SOCK_DGRAM, 0); setsockopt($u, SOL_SOCKET, SO_REUSEADDR, 1); setsockopt($u, SOL_SOCKET, 15, 1);
        print bind($u, sockaddr_in(53, INADDR_LOOPBACK)) ? "taken\n" : "kept\n";"#;
    let target = arena.target_with_network().await?;
    let said = target.sh(&perl(program)).await;
    arena.destroy(target).await?;
    let said = said?.text;
    let expected = "no rules\nroute -1\nkept\nkept\nkept\nkept\nkept";
    check(said.trim() == expected, || said)
}
