//! The name server of a sandbox. It invents an address for every name that may be reached, and remembers which: nothing is asked of other name servers for the sandbox's
//! sake, so that nothing can be told to them in a name. Whoever connects to an invented address has thereby said which name is meant.

use crate::{Dialer, Host, Policy};
use lru::LruCache;
use simple_dns::{
    CLASS, Packet, PacketFlag, QCLASS, QTYPE, RCODE, ResourceRecord, TYPE,
    rdata::{A, RData},
};
use std::{
    collections::HashMap,
    net::Ipv4Addr,
    num::NonZeroUsize,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// The range of networks that are only ever measured: no host has an address in it.
const FIRST: u32 = u32::from_be_bytes([198, 18, 0, 0]);
const RANGE: u32 = 1 << 17;
/// Names remembered at once.
const NAMES: NonZeroUsize = NonZeroUsize::new(8_192).expect("it is not zero");
/// How long programs may keep an answer, in seconds. Another server invents others.
const TTL: u32 = 5;

#[derive(Debug)]
struct Known {
    by_name: HashMap<String, u32>,
    by_address: LruCache<u32, String>,
    next: u32,
}

/// Names and the addresses invented for them.
#[derive(Debug)]
pub(crate) struct Names(Mutex<Known>);

impl Names {
    /// `seed` is where addresses begin, so that those of another server mean nothing here.
    pub(crate) fn new(seed: u32) -> Self {
        Self(Mutex::new(Known {
            by_name: HashMap::new(),
            by_address: LruCache::new(NAMES),
            next: seed,
        }))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The address that stands for a name.
    fn address_of(&self, name: &str) -> Ipv4Addr {
        let mut known = self.known();
        let known = &mut *known;
        if let Some(address) = known.by_name.get(name) {
            known.by_address.promote(address);
            return (*address).into();
        }
        // The first and the last of the range are left out.
        let address = FIRST + 1 + known.next % (RANGE - 2);
        known.next = known.next.wrapping_add(1);
        known.by_name.insert(name.to_owned(), address);
        if let Some((_, forgotten)) = known.by_address.push(address, name.to_owned()) {
            known.by_name.remove(&forgotten);
        }
        address.into()
    }

    /// The name that an invented address stands for.
    pub(crate) fn name_of(&self, address: Ipv4Addr) -> Option<String> {
        self.known().by_address.get(&u32::from(address)).cloned()
    }

    /// Whether the address is one that name servers of sandboxes invent.
    pub(crate) fn is_invented(address: Ipv4Addr) -> bool {
        (FIRST..FIRST + RANGE).contains(&u32::from(address))
    }

    /// The answer to a question; none to what is no question.
    pub(crate) async fn answer(
        &self,
        question: &[u8],
        policy: &Policy,
        dialer: &Dialer,
    ) -> Option<Vec<u8>> {
        let asked = Packet::parse(question).ok()?;
        if asked.has_flags(PacketFlag::RESPONSE) {
            return None;
        }
        let mut reply = Packet::new_reply(asked.id());
        reply.set_flags(PacketFlag::RECURSION_AVAILABLE);
        if asked.has_flags(PacketFlag::RECURSION_DESIRED) {
            reply.set_flags(PacketFlag::RECURSION_DESIRED);
        }
        let [one] = asked.questions.as_slice() else {
            *reply.rcode_mut() = RCODE::FormatError;
            return reply.build_bytes_vec().ok();
        };
        reply.questions.push(one.clone());
        let internet = matches!(one.qclass, QCLASS::CLASS(CLASS::IN) | QCLASS::ANY);
        let name = Host::parse(&one.qname.to_string());
        match name {
            Some(host @ Host::Name(_)) if internet && policy.check(&host).is_ok() => {
                let Host::Name(name) = host else { return None };
                // Where every name may be reached, it is a service to say at once that one does not exist.
                if !policy.inspects() && !dialer.exists(&name).await {
                    *reply.rcode_mut() = RCODE::NameError;
                } else if matches!(one.qtype, QTYPE::TYPE(TYPE::A) | QTYPE::ANY) {
                    let address = A::from(self.address_of(&name));
                    let record =
                        ResourceRecord::new(one.qname.clone(), CLASS::IN, TTL, RData::A(address));
                    reply.answers.push(record);
                }
            }
            _ => *reply.rcode_mut() = RCODE::NameError,
        }
        reply.build_bytes_vec().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HostRule;
    use simple_dns::{Name, Question};

    fn ask(name: &str, qtype: QTYPE) -> Vec<u8> {
        let mut packet = Packet::new_query(7);
        packet.set_flags(PacketFlag::RECURSION_DESIRED);
        let name = Name::new(name).expect("a name");
        packet.questions.push(Question::new(name, qtype, QCLASS::CLASS(CLASS::IN), false));
        packet.build_bytes_vec().expect("a question")
    }

    /// The code and the addresses of an answer.
    async fn answer(names: &Names, question: &[u8]) -> Option<(RCODE, Vec<Ipv4Addr>)> {
        let rules = ["allowed.example", "*.below.example"];
        let policy =
            Policy::Limited(rules.iter().filter_map(|rule| HostRule::parse(rule)).collect());
        let reply = names.answer(question, &policy, &Dialer::default()).await?;
        let reply = Packet::parse(&reply).expect("an answer");
        assert_eq!(reply.id(), 7);
        let addresses = reply.answers.iter().filter_map(|record| match &record.rdata {
            RData::A(address) => Some(Ipv4Addr::from(address.address)),
            _ => None,
        });
        Some((reply.rcode(), addresses.collect()))
    }

    const A: QTYPE = QTYPE::TYPE(TYPE::A);

    #[tokio::test]
    async fn allowed_names_get_addresses_and_others_none() {
        let names = Names::new(41);
        let (code, addresses) =
            answer(&names, &ask("Allowed.Example", A)).await.expect("an answer");
        assert_eq!((code, addresses.len()), (RCODE::NoError, 1));
        assert!(Names::is_invented(addresses[0]));
        assert_eq!(names.name_of(addresses[0]).as_deref(), Some("allowed.example"));
        let again = answer(&names, &ask("allowed.example", A)).await.expect("an answer");
        assert_eq!(again.1, addresses, "the same one");
        let (_, other) = answer(&names, &ask("x.below.example", A)).await.expect("an answer");
        assert_ne!(other, addresses);
        for name in [
            "evilallowed.example",
            "below.example",
            "secret.allowed.example",
            "allowed.example.evil",
        ] {
            let refused = answer(&names, &ask(name, A)).await;
            assert_eq!(refused, Some((RCODE::NameError, vec![])), "{name}");
        }
        for kind in [TYPE::AAAA, TYPE::TXT, TYPE::MX] {
            let empty = answer(&names, &ask("allowed.example", QTYPE::TYPE(kind))).await;
            assert_eq!(empty, Some((RCODE::NoError, vec![])), "{kind:?}");
        }
        assert_eq!(names.name_of([198, 18, 200, 1].into()), None);
    }

    #[tokio::test]
    async fn nonsense_is_not_answered() {
        let names = Names::new(0);
        for bytes in [&b""[..], b"x", &[0; 12], &[0xff; 40]] {
            let answered = answer_of(&names, bytes).await;
            assert!(answered.is_none_or(|bytes| bytes.len() < 64), "{bytes:?}");
        }
    }

    async fn answer_of(names: &Names, bytes: &[u8]) -> Option<Vec<u8>> {
        names.answer(bytes, &Policy::Limited(Vec::new()), &Dialer::default()).await
    }

    #[test]
    fn the_oldest_names_are_forgotten_and_no_address_is_shared() {
        let names = Names::new(RANGE - 5);
        for number in 0..NAMES.get() + 10 {
            names.address_of(&format!("n{number}.example"));
        }
        let known = names.known();
        assert_eq!((known.by_name.len(), known.by_address.len()), (NAMES.get(), NAMES.get()));
        assert!(!known.by_name.contains_key("n0.example"));
    }
}
