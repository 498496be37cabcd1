//! Calls to Modal's two services: again when they are busy, and with an error that says what to do.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use http::uri::PathAndQuery;
use prost::Message;
use tonic::client::Grpc;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;
use vaquero_sandbox::SandboxError;

/// How long an answer may take.
const ANSWER: Duration = Duration::from_mins(2);
/// A message of ours or theirs.
const MESSAGE: usize = 64 << 20;

/// One of the services, and what is said with every call to it.
#[derive(Clone, Debug)]
pub(crate) struct Rpc {
    channel: Channel,
    metadata: MetadataMap,
}

impl Rpc {
    /// Connects when it is first called.
    pub(crate) fn new(url: &str, metadata: MetadataMap) -> Result<Self, SandboxError> {
        // An error means that there is one already.
        drop(rustls::crypto::ring::default_provider().install_default());
        let wrong = |error: tonic::transport::Error| {
            SandboxError::unavailable(
                format!("Modal cannot be reached at {url}: {error}"),
                "give an address that begins with https://",
            )
        };
        let mut endpoint = Endpoint::from_shared(url.to_owned())
            .map_err(wrong)?
            .connect_timeout(Duration::from_secs(10))
            .http2_keep_alive_interval(Duration::from_secs(30))
            .keep_alive_while_idle(true);
        if url.starts_with("https://") {
            endpoint =
                endpoint.tls_config(ClientTlsConfig::new().with_native_roots()).map_err(wrong)?;
        }
        Ok(Self { channel: endpoint.connect_lazy(), metadata })
    }

    /// The same with one more thing that is said.
    pub(crate) fn with(&self, name: &'static str, value: &str) -> Result<Self, SandboxError> {
        let mut rpc = self.clone();
        rpc.metadata.insert(name, ascii(value)?);
        Ok(rpc)
    }

    fn client(&self) -> Grpc<Channel> {
        Grpc::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE)
            .max_encoding_message_size(MESSAGE)
    }

    fn request<T>(&self, message: T) -> Request<T> {
        Request::from_parts(self.metadata.clone(), tonic::Extensions::default(), message)
    }

    /// Calls until there is an answer. All that is called may be called again.
    pub(crate) async fn call<Q, A>(&self, path: &'static str, message: Q) -> Result<A, SandboxError>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        let waits = ExponentialBuilder::default()
            .with_jitter()
            .with_min_delay(Duration::from_millis(50))
            .with_max_delay(Duration::from_secs(10))
            .with_max_times(5);
        let once = || async {
            let mut client = self.client();
            client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            let mut request = self.request(message.clone());
            request.set_timeout(ANSWER);
            let codec = ProstCodec::<Q, A>::default();
            let answer = client.unary(request, PathAndQuery::from_static(path), codec).await;
            answer.map(tonic::Response::into_inner)
        };
        let busy = |status: &Status| status.code() == Code::Unavailable;
        once.retry(waits).when(busy).await.map_err(|status| failed(&status))
    }

    /// Calls for a stream of answers.
    pub(crate) async fn stream<Q, A>(
        &self,
        path: &'static str,
        message: Q,
    ) -> Result<Streaming<A>, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut client = self.client();
        client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let codec = ProstCodec::<Q, A>::default();
        let path = PathAndQuery::from_static(path);
        let answer = client.server_streaming(self.request(message), path, codec).await;
        answer.map(tonic::Response::into_inner)
    }
}

/// What is said with calls.
pub(crate) fn ascii(value: &str) -> Result<MetadataValue<Ascii>, SandboxError> {
    let mut value: MetadataValue<Ascii> = value.parse().map_err(|_| {
        SandboxError::unavailable("the token is none", "give the token as it was given to you")
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// Why a call came to nothing. [`SandboxError::Gone`] if there is no such thing.
pub(crate) fn failed(status: &Status) -> SandboxError {
    let said: String = status.message().chars().take(300).collect();
    match status.code() {
        Code::NotFound => SandboxError::gone(format!("Modal: {said}")),
        Code::Unauthenticated | Code::PermissionDenied => SandboxError::unavailable(
            format!("Modal does not accept this server's token: {said}"),
            "see that the token is right, and whose it is",
        ),
        Code::Unavailable => SandboxError::unavailable(
            format!("Modal cannot be reached: {said}"),
            "see whether this server may go out, and where it was told to",
        ),
        code => SandboxError::unavailable(
            format!("Modal answers {code:?}: {said}"),
            "see what it says; the next call tries again",
        ),
    }
}
