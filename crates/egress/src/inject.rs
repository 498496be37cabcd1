//! Secrets for placeholders, on the way out; and placeholders for secrets, on the way back.

use crate::{Host, HostRule, Refusal, replace::Replacer, signed::signature};
use async_trait::async_trait;
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{HeaderMap, HeaderName, HeaderValue, header, request::Parts};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Body as _, Frame, Incoming};
use std::{fmt, sync::Arc, time::Duration};
use tokio::{sync::Semaphore, time::timeout};

/// A body of any make.
pub(crate) type Body = UnsyncBoxBody<Bytes, hyper::Error>;

/// Bodies up to this are held, so that their length can be told in advance; longer ones are sent in chunks.
const HELD: u64 = 1 << 20;

/// How long a piece of a body may wait for the next one that might go on with a secret.
const WAIT: Duration = Duration::from_millis(50);

/// One secret that a sandbox may use without ever having it.
#[derive(Clone, PartialEq, Eq)]
pub struct Injection {
    /// The secret; empty if it cannot be had.
    pub secret: String,
    /// To which hosts it may go; `None` for all that the sandbox may reach.
    pub hosts: Option<Vec<HostRule>>,
    /// How it gets there.
    pub by: By,
}

/// How a secret gets into requests.
#[derive(Clone, PartialEq, Eq)]
pub enum By {
    /// In the place of a word that the sandbox has instead.
    Placeholder {
        /// The word.
        placeholder: String,
        /// Whether it is put into the values of headers.
        header: bool,
        /// Whether it is put into bodies.
        body: bool,
    },
    /// In headers that every request gets.
    Headers {
        /// Names and values, with the secret in them.
        headers: Vec<(HeaderName, HeaderValue)>,
        /// Whether only requests in TLS get them, or only those in plain; `None` for both.
        tls: Option<bool>,
    },
    /// Not at all: it cannot be had, and requests are not to be made without it.
    Refusal,
}

impl fmt::Debug for Injection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Injection").field("hosts", &self.hosts).finish_non_exhaustive()
    }
}

impl Injection {
    fn covers(&self, host: &Host) -> bool {
        self.hosts.as_ref().is_none_or(|rules| rules.iter().any(|rule| rule.covers(host)))
    }
}

/// The secrets of a sandbox as they are now: they change while it runs.
#[async_trait]
pub trait Injections: Send + Sync + fmt::Debug {
    /// All of them. Of two that set the same header, the first does.
    async fn now(&self) -> Arc<[Injection]>;
}

/// The secrets that are for one host.
#[derive(Clone, Debug)]
pub(crate) struct ForHost(Vec<Injection>);

impl ForHost {
    /// None if no secret is for the host.
    pub(crate) fn of(all: &[Injection], host: &Host) -> Option<Self> {
        let covering: Vec<Injection> = all.iter().filter(|one| one.covers(host)).cloned().collect();
        (!covering.is_empty()).then_some(Self(covering))
    }

    /// Whether requests are to be made at all.
    pub(crate) fn check(&self, host: &Host) -> Result<(), Refusal> {
        let refused = self.0.iter().any(|one| one.by == By::Refusal);
        if refused { Err(Refusal::NoSecret(host.clone())) } else { Ok(()) }
    }

    /// Placeholders that are replaced in one of the two places, and their secrets.
    fn pairs(&self, wanted: impl Fn(bool, bool) -> bool) -> Vec<(Vec<u8>, Vec<u8>)> {
        let pair = |one: &Injection| match &one.by {
            By::Placeholder { placeholder, header, body } if wanted(*header, *body) => {
                Some((placeholder.as_bytes().to_vec(), one.secret.as_bytes().to_vec()))
            }
            _ => None,
        };
        self.0.iter().filter_map(pair).collect()
    }

    /// Whether a request is signed with a placeholder, which no host could make sense of.
    pub(crate) fn signed_with_placeholder(&self, head: &Parts) -> bool {
        let Some(scheme) = signature(head) else { return false };
        self.pairs(|_, _| true).iter().any(|(word, _)| {
            let word = String::from_utf8_lossy(word);
            scheme.contains(&*word) || head.uri.query().is_some_and(|query| query.contains(&*word))
        })
    }

    /// Whether a placeholder may have been what a request was signed with.
    pub(crate) fn doubts_signature(&self, head: &Parts) -> bool {
        signature(head).is_some() && !self.pairs(|_, _| true).is_empty()
    }

    /// Puts secrets into headers.
    pub(crate) fn headers(&self, headers: &mut HeaderMap, tls: bool) {
        // What comes back is looked through: it must be readable, and whole. Asked for byte by byte, a secret would pass.
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers.remove(header::RANGE);
        headers.remove(header::IF_RANGE);
        headers.remove(header::SEC_WEBSOCKET_EXTENSIONS);
        headers.remove("grpc-accept-encoding");
        self.replace_headers(headers);
        for one in self.0.iter().rev() {
            let By::Headers { headers: set, tls: only } = &one.by else { continue };
            if only.is_none_or(|only| only == tls) {
                for (name, value) in set {
                    headers.insert(name, sensitive(value.clone()));
                }
            }
        }
    }

    fn replace_headers(&self, headers: &mut HeaderMap) {
        let Some(mut replacer) = Replacer::new(self.pairs(|header, _| header)) else { return };
        for (name, value) in headers.iter_mut() {
            let replaced = if *name == header::AUTHORIZATION {
                basic(value, &mut replacer).unwrap_or_else(|| replacer.whole(value.as_bytes()))
            } else {
                replacer.whole(value.as_bytes())
            };
            if replaced != value.as_bytes()
                && let Ok(fresh) = HeaderValue::from_bytes(&replaced)
            {
                *value = sensitive(fresh);
            }
        }
    }

    /// Puts secrets into a body.
    pub(crate) async fn body(
        &self,
        headers: &HeaderMap,
        body: Incoming,
        held: &Semaphore,
    ) -> Result<Body, hyper::Error> {
        // Messages of gRPC say how long they are: with anything else in them, they would be broken.
        let kind = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
        if body.is_end_stream() || kind.starts_with(b"application/grpc") {
            return Ok(body.boxed_unsync());
        }
        let Some(mut replacer) = Replacer::new(self.pairs(|_, body| body)) else {
            return Ok(body.boxed_unsync());
        };
        let size = body.size_hint().upper().filter(|size| *size <= HELD);
        let room = size.and_then(|size| {
            let kib = u32::try_from(size.div_ceil(1 << 10)).unwrap_or(u32::MAX);
            held.try_acquire_many(kib).ok()
        });
        if room.is_some() {
            let bytes = body.collect().await?.to_bytes();
            return Ok(whole(Bytes::from(replacer.whole(&bytes))));
        }
        let secrets = self.clone();
        Ok(replaced(body, replacer, move |trailers| secrets.replace_headers(trailers)))
    }

    /// Takes secrets out of the values of headers that come back.
    pub(crate) fn scrub_headers(&self, headers: &mut HeaderMap) {
        let Some(mut scrubber) = self.scrubber() else { return };
        for value in headers.values_mut() {
            let scrubbed = scrubber.whole(value.as_bytes());
            if scrubbed != value.as_bytes()
                && let Ok(fresh) = HeaderValue::from_bytes(&scrubbed)
            {
                *value = fresh;
            }
        }
    }

    /// Takes secrets out of a body that comes back.
    pub(crate) fn scrub_body(&self, body: Incoming) -> Body {
        let secrets = self.clone();
        match self.scrubber() {
            Some(scrubber) => {
                replaced(body, scrubber, move |trailers| secrets.scrub_headers(trailers))
            }
            None => body.boxed_unsync(),
        }
    }

    /// Replaces secrets in all forms in which a host might repeat them by as many stars, so that lengths stay true.
    pub(crate) fn scrubber(&self) -> Option<Replacer> {
        let forms = self.0.iter().flat_map(|one| forms(one.secret.as_bytes()));
        Replacer::scrubber(forms.collect())
    }
}

fn sensitive(mut value: HeaderValue) -> HeaderValue {
    value.set_sensitive(true);
    value
}

/// A secret as it is, in base64 wherever in a text it stands, and as URLs have it.
fn forms(secret: &[u8]) -> Vec<Vec<u8>> {
    // Shorter ones are everywhere.
    const SHORTEST: usize = 4;
    let mut forms = vec![secret.to_vec()];
    for before in 0..3 {
        let padded = [&vec![0; before], secret].concat();
        let text = STANDARD.encode(&padded);
        // What depends on the neighbours of the secret is left out.
        let first = (before * 8).div_ceil(6);
        let last = padded.len() * 8 / 6;
        let inner = text.as_bytes().get(first..last).unwrap_or_default().to_vec();
        let for_urls = inner.iter().map(|byte| match byte {
            b'+' => b'-',
            b'/' => b'_',
            other => *other,
        });
        forms.push(for_urls.collect());
        forms.push(inner);
    }
    let upper: String = url::form_urlencoded::byte_serialize(secret).collect();
    forms.push(upper.replace('+', "%20").into_bytes());
    forms.push(upper.to_ascii_lowercase().into_bytes());
    forms.push(upper.into_bytes());
    forms.push(secret.iter().flat_map(|byte| format!("{byte:02x}").into_bytes()).collect());
    // As JSON has it, without its quotes.
    let json = serde_json::to_string(&String::from_utf8_lossy(secret)).unwrap_or_default();
    forms.push(json.trim_matches('"').as_bytes().to_vec());
    forms.retain(|form| form.len() >= SHORTEST);
    forms.sort();
    forms.dedup();
    forms
}

/// `Basic` credentials with the secret in them.
fn basic(value: &HeaderValue, replacer: &mut Replacer) -> Option<Vec<u8>> {
    let text = value.to_str().ok()?;
    let (scheme, credentials) = text.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let plain = STANDARD.decode(credentials.trim()).ok()?;
    Some(format!("{scheme} {}", STANDARD.encode(replacer.whole(&plain))).into_bytes())
}

fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// A body with its words replaced while it passes, and its trailers by `last`.
fn replaced(
    body: Incoming,
    replacer: Replacer,
    last: impl Fn(&mut HeaderMap) + Send + 'static,
) -> Body {
    let state = (body, Some(replacer), last);
    let frames = stream::unfold(state, move |(mut body, mut replacer, last)| async move {
        let words = replacer.as_mut()?;
        let next = if words.waits() {
            let Ok(next) = timeout(WAIT, body.frame()).await else {
                // Perhaps the host waits for an answer to what was held.
                let frame = Frame::data(words.cut());
                return Some((vec![Ok(frame)], (body, replacer, last)));
            };
            next
        } else {
            body.frame().await
        };
        match next {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    let frame = Frame::data(words.push(&data));
                    Some((vec![Ok(frame)], (body, replacer, last)))
                }
                Err(frame) => {
                    let mut frames = vec![Ok(Frame::data(words.finish()))];
                    if let Ok(mut trailers) = frame.into_trailers() {
                        last(&mut trailers);
                        frames.push(Ok(Frame::trailers(trailers)));
                    }
                    Some((frames, (body, None, last)))
                }
            },
            Some(Err(error)) => Some((vec![Err(error)], (body, None, last))),
            None => Some((vec![Ok(Frame::data(words.finish()))], (body, None, last))),
        }
    });
    let frames = frames.flat_map(stream::iter).filter(|frame| {
        let empty = frame
            .as_ref()
            .is_ok_and(|frame: &Frame<Bytes>| frame.data_ref().is_some_and(Bytes::is_empty));
        futures::future::ready(!empty)
    });
    StreamBody::new(frames).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets(secret: &str, hosts: Option<&[&str]>) -> Injection {
        let rules =
            hosts.map(|hosts| hosts.iter().filter_map(|host| HostRule::parse(host)).collect());
        let by = placeholder(true);
        Injection { secret: secret.to_owned(), hosts: rules, by }
    }

    fn placeholder(header: bool) -> By {
        By::Placeholder { placeholder: "PLACEHOLDER".to_owned(), header, body: true }
    }

    fn for_host(host: &str, injection: Injection) -> Option<ForHost> {
        ForHost::of(&[injection], &Host::parse(host).expect("a host"))
    }

    #[test]
    fn headers_get_the_secret_of_their_host_alone() {
        let limited = secrets("s3cr3t", Some(&["api.example", "*.sub.example"]));
        assert!(for_host("other.example", limited.clone()).is_none());
        assert!(for_host("sub.example", limited.clone()).is_none());
        for host in ["api.example", "a.sub.example"] {
            let for_host = for_host(host, limited.clone()).expect("it is for this host");
            let mut headers = HeaderMap::new();
            headers.insert("x-key", HeaderValue::from_static("k PLACEHOLDER."));
            let basic = format!("Basic {}", STANDARD.encode("me:PLACEHOLDER"));
            headers.insert("authorization", HeaderValue::from_str(&basic).expect("text"));
            headers.insert("accept-encoding", HeaderValue::from_static("gzip"));
            for_host.headers(&mut headers, true);
            assert_eq!(headers["x-key"], "k s3cr3t.");
            assert_eq!(headers["authorization"], format!("Basic {}", STANDARD.encode("me:s3cr3t")));
            assert_eq!(headers["accept-encoding"], "identity");
            assert!(headers["x-key"].is_sensitive() && !format!("{headers:?}").contains("s3cr3t"));
        }
        let not_in_headers = Injection { by: placeholder(false), ..limited };
        let mut headers = HeaderMap::new();
        headers.insert("x-key", HeaderValue::from_static("PLACEHOLDER"));
        for_host("api.example", not_in_headers).expect("it is").headers(&mut headers, true);
        assert_eq!(headers["x-key"], "PLACEHOLDER");
    }

    #[test]
    fn headers_are_set_where_they_are_for() {
        let name = HeaderName::from_static("x-key");
        let sets = |value: &'static str, tls| {
            let headers = vec![(name.clone(), HeaderValue::from_static(value))];
            Injection { by: By::Headers { headers, tls }, ..secrets("s3cr3t", None) }
        };
        let all = [sets("first s3cr3t", Some(true)), sets("second s3cr3t", None)];
        let for_host = ForHost::of(&all, &Host::parse("a.example").expect("a host"));
        let for_host = for_host.expect("all hosts");
        for (tls, expected) in [(true, "first s3cr3t"), (false, "second s3cr3t")] {
            let mut headers = HeaderMap::new();
            headers.insert("x-key", HeaderValue::from_static("of the sandbox"));
            for_host.headers(&mut headers, tls);
            assert_eq!(headers["x-key"], expected);
            assert!(headers["x-key"].is_sensitive());
        }
        assert_eq!(for_host.check(&Host::parse("a.example").expect("a host")), Ok(()));
        let refusing = Injection { by: By::Refusal, ..secrets("", None) };
        let host = Host::parse("a.example").expect("a host");
        let for_host = ForHost::of(&[refusing], &host).expect("all hosts");
        assert_eq!(for_host.check(&host), Err(Refusal::NoSecret(host.clone())));
    }

    #[test]
    fn signed_requests_are_known() {
        let for_host = for_host("a.example", secrets("s", None)).expect("all hosts");
        let asked = |uri: &str, name: &'static str, value: &str| {
            let request = http::Request::builder().uri(uri).header(name, value).body(());
            let (head, ()) = request.expect("a request").into_parts();
            (for_host.doubts_signature(&head), for_host.signed_with_placeholder(&head))
        };
        let aws = "AWS4-HMAC-SHA256 Credential=AKIA/20300101/r/s3/aws4_request, Signature=00";
        assert_eq!(asked("/", "authorization", aws), (true, false));
        let with = aws.replace("AKIA", "PLACEHOLDER");
        assert_eq!(asked("/", "authorization", &with), (true, true));
        let query = "/o?X-Amz-Credential=PLACEHOLDER%2F1&X-Amz-Signature=00";
        assert_eq!(asked(query, "x-other", ""), (true, true));
        assert_eq!(asked("/", "signature-input", "sig1=()"), (true, false));
        assert_eq!(asked("/?design=1", "authorization", "Bearer PLACEHOLDER"), (false, false));
    }

    #[test]
    fn what_comes_back_holds_no_form_of_the_secret() {
        let secret = "top/s+cret value~1";
        let for_host = for_host("a.example", secrets(secret, None)).expect("all hosts");
        let mut scrubber = for_host.scrubber().expect("words");
        let url: String = url::form_urlencoded::byte_serialize(secret.as_bytes()).collect();
        for before in ["", "a", "ab", "abc"] {
            for echoed in [
                format!("{before}{secret}!"),
                STANDARD.encode(format!("{before}{secret}!")),
                base64::engine::general_purpose::URL_SAFE.encode(format!("{before}{secret}")),
                format!("x={url}&"),
                url.to_lowercase(),
                url.replace('+', "%20"),
            ] {
                let scrubbed = String::from_utf8(scrubber.whole(echoed.as_bytes())).expect("text");
                assert_eq!(scrubbed.len(), echoed.len());
                assert!(scrubbed.contains("********"), "{echoed} became {scrubbed}");
                let decoded = STANDARD.decode(scrubbed.trim_matches('*')).unwrap_or_default();
                assert!(!String::from_utf8_lossy(&decoded).contains("s+cret"), "{scrubbed}");
            }
        }
    }
}
