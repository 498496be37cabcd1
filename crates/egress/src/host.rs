//! Names of hosts as rules and as requests have them: one spelling for each, and no address in disguise.

use std::{fmt, net::IpAddr};

/// A host somebody wants to reach: a name in lower case and ASCII without a dot at its end, or an address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// A name.
    Name(String),
    /// An address, in whatever spelling it came.
    Address(IpAddr),
}

impl Host {
    /// Reads a host. Octal, hexadecimal and shortened addresses are addresses, also mapped ones; anything that is neither a name nor an address is none.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.strip_suffix('.').unwrap_or(text);
        match url::Host::parse(text).ok()? {
            url::Host::Ipv4(address) => Some(Self::Address(address.into())),
            url::Host::Ipv6(address) => Some(Self::Address(IpAddr::V6(address).to_canonical())),
            url::Host::Domain(name) => {
                let name = name.strip_suffix('.').unwrap_or(&name).to_owned();
                let label = |label: &str| {
                    (1..=63).contains(&label.len())
                        && label.bytes().all(|byte| {
                            byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'
                        })
                };
                (name.len() <= 253 && name.split('.').all(label)).then_some(Self::Name(name))
            }
        }
    }

    /// Reads `host:port`, or a host and the port that goes without saying.
    pub fn parse_authority(text: &str, default_port: Option<u16>) -> Option<(Self, u16)> {
        // Whoever is named before an `@` is no part of where it goes.
        if text.contains('@') {
            return None;
        }
        let bracketed = text.rfind(']');
        let (host, port) = match text.rfind(':') {
            Some(colon) if bracketed.is_none_or(|end| end < colon) => {
                let digits = &text[colon + 1..];
                let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
                let port = if plain { digits.parse().ok()? } else { return None };
                (&text[..colon], port)
            }
            _ => (text, default_port?),
        };
        // Zero is no port.
        Some((Self::parse(host)?, port)).filter(|(_, port)| *port > 0)
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// Which hosts are meant: one, or all below a domain, the domain itself left out.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostRule {
    /// This one.
    Exactly(Host),
    /// `*.` and this: any number of labels before it, at least one.
    Below(String),
}

impl HostRule {
    /// Reads `host` or `*.domain`.
    pub fn parse(text: &str) -> Option<Self> {
        match text.strip_prefix("*.") {
            Some(domain) => match Host::parse(domain)? {
                Host::Name(name) => Some(Self::Below(name)),
                Host::Address(_) => None,
            },
            None => Host::parse(text).map(Self::Exactly),
        }
    }

    /// Whether the host is meant.
    pub fn covers(&self, host: &Host) -> bool {
        match (self, host) {
            (Self::Exactly(one), host) => one == host,
            (Self::Below(domain), Host::Name(name)) => {
                name.strip_suffix(domain).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
            }
            (Self::Below(_), Host::Address(_)) => false,
        }
    }
}

/// Where a connection goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Destination {
    pub(crate) host: Host,
    pub(crate) port: u16,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The name that is spelled so already.
    fn some(text: &str) -> Option<Host> {
        Host::parse(text).filter(|host| matches!(host, Host::Name(name) if name == text))
    }

    #[test]
    fn names_have_one_spelling() {
        for text in ["example.com", "EXAMPLE.com", "example.com.", "ｅxample.com"] {
            assert_eq!(Host::parse(text), some("example.com"), "{text}");
        }
        assert_eq!(Host::parse("bücher.example"), some("xn--bcher-kva.example"));
        assert_eq!(Host::parse("a_b.example"), some("a_b.example"));
        for text in [
            "", ".", "..", "a..b", "a b", "a\r\nb", "a/b", "a@b", "a:1", "[::1", "*.a", "a%00b",
            ".a",
        ] {
            assert_eq!(Host::parse(text), None, "{text:?}");
        }
        assert_eq!(Host::parse(&"a".repeat(64)), None);
        assert_eq!(Host::parse(&"a.".repeat(130)), None);
    }

    #[test]
    fn addresses_are_seen_in_every_disguise() {
        for text in [
            "127.0.0.1",
            "2130706433",
            "0x7f.1",
            "0177.0.0.1",
            "127.1",
            "127.0.0.1.",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
        ] {
            assert_eq!(Host::parse(text), Some(Host::Address([127, 0, 0, 1].into())), "{text}");
        }
        assert_eq!(Host::parse("[::1]"), Some(Host::Address("::1".parse().expect("an address"))));
        assert_eq!(Host::parse("999.1.1.1"), None, "not a name either");
    }

    #[test]
    fn authorities_need_a_port_and_nothing_else() {
        let of = |text: &str| {
            Host::parse_authority(text, None).map(|(host, port)| (host.to_string(), port))
        };
        assert_eq!(of("a.example:443"), Some(("a.example".to_owned(), 443)));
        assert_eq!(of("[::1]:80"), Some(("::1".to_owned(), 80)));
        for text in [
            "a.example",
            "a.example:",
            "a.example:0",
            "a.example:65536",
            "a.example:+80",
            "u@a.example:80",
            "u:p@a.example:80",
            "a.example:80:80",
            "[::1]",
            "::1:80",
        ] {
            assert_eq!(of(text), None, "{text}");
        }
        let default = Host::parse_authority("a.example", Some(80)).map(|(_, port)| port);
        assert_eq!(default, Some(80));
    }

    #[test]
    fn rules_cover_what_they_say() {
        let covers = |rule: &str, host: &str| {
            HostRule::parse(rule).expect("a rule").covers(&Host::parse(host).expect("a host"))
        };
        assert!(covers("allowed.com", "Allowed.COM."));
        assert!(
            covers("*.allowed.com", "a.allowed.com") && covers("*.allowed.com", "a.b.allowed.com")
        );
        for host in ["evilallowed.com", "allowed.com.evil", "allowed.com", "allowed.co"] {
            assert!(!covers("*.allowed.com", host), "{host}");
        }
        assert!(!covers("allowed.com", "a.allowed.com"));
        assert!(covers("192.0.2.1", "192.0.2.1"));
        assert_eq!(HostRule::parse("*.2.1"), None, "an address, and nothing is below it");
        assert_eq!(HostRule::parse("*."), None);
        assert_eq!(HostRule::parse("a.*.b"), None);
        assert_eq!(HostRule::parse("https://a.b"), None);
    }

    proptest! {
        #[test]
        fn what_is_read_reads_the_same_again(text in "\\PC{0,40}") {
            if let Some(Host::Name(name)) = Host::parse(&text) {
                prop_assert_eq!(Host::parse(&name), Some(Host::Name(name)));
            }
        }

        #[test]
        fn no_rule_covers_a_host_outside_of_it(host in "[a-z0-9.-]{1,30}") {
            if let Some(host) = Host::parse(&host) {
                let rule = HostRule::parse("*.allowed.example").expect("a rule");
                prop_assert_eq!(rule.covers(&host), host.to_string().ends_with(".allowed.example"));
            }
        }
    }
}
