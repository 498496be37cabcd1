//! The bytes of a connection. What hyper refuses by itself, before there is a request, it answers with a bare status; here that becomes an
//! answer in the API's shape. Nothing else is touched.

use hyper::{
    StatusCode,
    rt::{Read, ReadBufCursor, Write},
};
use hyper_util::rt::TokioIo;
use std::{
    io::{Error, ErrorKind, IoSlice, Result},
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::net::TcpStream;
use vaquero_api::App;

pub(super) struct Wire {
    stream: TokioIo<TcpStream>,
    app: App,
    /// What is to be written instead.
    instead: Vec<u8>,
}

impl Wire {
    pub(super) fn new(stream: TcpStream, app: App) -> Self {
        Self { stream: TokioIo::new(stream), app, instead: Vec::new() }
    }

    fn put_instead(&mut self, head: &[u8]) -> bool {
        let Some(status) = bare_refusal(head) else { return false };
        let response = vaquero_api::unreadable(&self.app, status);
        let body = response.body();
        self.instead = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n", body.len()).into();
        for (name, value) in response.headers() {
            let parts = [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"];
            self.instead.extend(parts.concat());
        }
        self.instead.extend(format!("\r\n{body}").into_bytes());
        true
    }

    fn poll_instead(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        while !self.instead.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.instead))?;
            if written == 0 {
                return Poll::Ready(Err(Error::from(ErrorKind::WriteZero)));
            }
            self.instead.drain(..written);
        }
        Poll::Ready(Ok(()))
    }
}

/// The status of a refusal that is not ours: ours carry a request id.
fn bare_refusal(head: &[u8]) -> Option<StatusCode> {
    let rest = head.strip_prefix(b"HTTP/1.1 ")?;
    let code = rest.get(..3).filter(|code| code.starts_with(b"4"))?;
    let ours = head.windows(11).any(|part| part == b"request-id:");
    if ours { None } else { StatusCode::from_bytes(code).ok() }
}

impl Read for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl Write for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize>> {
        if self.put_instead(bytes) {
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        if parts.first().is_some_and(|head| self.put_instead(head)) {
            return Poll::Ready(Ok(parts.iter().map(|part| part.len()).sum()));
        }
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        ready!(self.poll_instead(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        ready!(self.poll_instead(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
