//! Bytes as lines of text, for standard streams that carry nothing else faithfully.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{
    AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, DuplexStream,
};

/// Bytes of one line, before they are text.
const PIECE: usize = 24 * 1024;
/// A line longer than that is nobody's.
const LINE: u64 = 1 << 20;

/// A stream of bytes over two of text, and what has to run for it.
pub(super) fn over<R, W>(read: R, write: W) -> (DuplexStream, impl Future<Output = ()> + Send)
where
    R: AsyncRead + Send + Unpin,
    W: AsyncWrite + Send + Unpin,
{
    let (near, far) = tokio::io::duplex(4 * PIECE);
    let (from_near, to_near) = tokio::io::split(far);
    (near, async move {
        tokio::select! {
            () = decode(read, to_near) => {}
            () = encode(from_near, write) => {}
        }
    })
}

async fn decode(read: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
    let mut lines = BufReader::new(read);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut lines).take(LINE).read_until(b'\n', &mut line).await {
            Ok(1..) => {}
            _ => return,
        }
        let Ok(bytes) = STANDARD.decode(line.trim_ascii()) else { return };
        if to.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

async fn encode(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
    let mut bytes = vec![0; PIECE];
    loop {
        let Ok(count @ 1..) = from.read(&mut bytes).await else { return };
        let mut line = STANDARD.encode(&bytes[..count]);
        line.push('\n');
        if to.write_all(line.as_bytes()).await.is_err() || to.flush().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_goes_in_as_text_comes_out_as_it_was() {
        let (left, right) = tokio::io::duplex(1000);
        let (left_read, left_write) = tokio::io::split(left);
        let (right_read, right_write) = tokio::io::split(right);
        let (mut here, one) = over(left_read, left_write);
        let (mut there, other) = over(right_read, right_write);
        let bytes: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
        let copy = bytes.clone();
        let work = async move {
            let send = async {
                here.write_all(&copy).await.unwrap();
                here
            };
            let mut got = vec![0; bytes.len()];
            let (_here, read) = tokio::join!(send, there.read_exact(&mut got));
            read.unwrap();
            assert!(got == bytes);
        };
        tokio::select! {
            () = work => {}
            () = one => panic!("it ended"),
            () = other => panic!("it ended"),
        }
    }
}
