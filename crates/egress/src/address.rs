//! Which addresses may be dialled: those of the public internet, and private ones that the operator has allowed by name.

use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

/// Where clouds tell a machine its credentials. Never dialled, whatever is allowed.
const METADATA: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254)),
];

/// What may be dialled.
#[derive(Clone, Debug, Default)]
pub struct Addresses {
    /// Private ranges that the operator allows.
    pub allowed: Vec<IpNet>,
}

impl Addresses {
    /// Whether the address may be dialled.
    pub fn permit(&self, address: IpAddr) -> bool {
        let address = embedded(address.to_canonical());
        if is_metadata(address) {
            return false;
        }
        self.allowed.iter().any(|range| range.contains(&address))
            || (is_public(address) && !is_own(address))
    }
}

/// Whether credentials of the machine may be had there.
pub(crate) fn is_metadata(address: IpAddr) -> bool {
    METADATA.contains(&embedded(address.to_canonical()))
}

/// An address that a translator at the border would turn into an IPv4 one is that one.
fn embedded(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let words = v6.segments();
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match words {
        // NAT64, 6to4, and the old way of writing IPv4 addresses.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0, 0, 0, 0, 0, 0, high, low]
            if v6 != Ipv6Addr::LOCALHOST =>
        {
            v4(high, low)
        }
        [0x2002, high, low, ..] => v4(high, low),
        _ => address,
    }
}

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            !(v4.is_unspecified()
                || v4.is_loopback()
                || v4.is_private()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.is_documentation()
                || a == 0
                || a >= 240
                // Shared by carriers, protocol assignments, benchmarks, 6to4 relays.
                || (a == 100 && (64..128).contains(&b))
                || (a == 192 && b == 0 && c == 0)
                || (a == 198 && (b == 18 || b == 19))
                || (a == 192 && b == 88 && c == 99))
        }
        // Only what is handed out for the internet, without the parts of it that are not.
        IpAddr::V6(v6) => {
            let [first, second, ..] = v6.segments();
            first & 0xe000 == 0x2000
                && !(first == 0x2001 && second < 0x0200)
                && !(first == 0x2001 && second == 0x0db8)
                && !(first == 0x3fff && second < 0x1000)
        }
    }
}

/// Whether it is one of this machine's own addresses: nothing else can be bound to.
fn is_own(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permits(allowed: &[&str], address: &str) -> bool {
        let allowed = allowed.iter().map(|range| range.parse().expect("a range")).collect();
        Addresses { allowed }.permit(address.parse().expect("an address"))
    }

    #[test]
    fn only_the_internet_is_open() {
        for address in ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "2001:4860:4860::8888"] {
            assert!(permits(&[], address), "{address}");
        }
        for address in [
            "0.0.0.0",
            "127.0.0.1",
            "127.9.9.9",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.1.1",
            "100.64.0.1",
            "192.0.0.8",
            "192.0.2.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "::ffff:10.0.0.1",
            "64:ff9b::10.0.0.1",
            "2002:7f00:1::",
            "::127.0.0.1",
            "2001:db8::1",
            "100::1",
            "5f00::1",
            "2001::1",
        ] {
            assert!(!permits(&[], address), "{address}");
        }
        assert!(permits(&[], "64:ff9b::1.1.1.1"));
    }

    #[test]
    fn the_operator_can_allow_private_ranges_but_never_metadata() {
        assert!(
            permits(&["10.0.0.0/8"], "10.1.2.3") && permits(&["10.0.0.0/8"], "::ffff:10.1.2.3")
        );
        assert!(!permits(&["10.0.0.0/8"], "192.168.0.1"));
        assert!(permits(&["fd00::/8"], "fd00::1") && permits(&["127.0.0.1/32"], "127.0.0.1"));
        for metadata in [
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "64:ff9b::169.254.169.254",
            "fd00:ec2::254",
            "100.100.100.200",
        ] {
            assert!(!permits(&["0.0.0.0/0", "::/0"], metadata), "{metadata}");
        }
    }
}
