//! What a host sends over a WebSocket, looked through for secrets: frame by frame, so that no frame waits for the next one.

use crate::replace::Replacer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Bytes read at once.
const PIECE: usize = 16 << 10;
/// The longest head of a frame: two bytes, a long length, and a mask.
const HEAD: usize = 14;

/// Takes secrets out of frames as they pass.
struct Frames {
    scrubber: Replacer,
    /// What has come of the next frame's head.
    head: Vec<u8>,
    /// Bytes of the frame's payload that are to come.
    left: u64,
}

/// Passes on what the host sends until either end hangs up, or the host breaks the protocol.
pub(crate) async fn scrubbed(
    mut host: impl AsyncRead + Unpin,
    mut client: impl AsyncWrite + Unpin,
    scrubber: Replacer,
) {
    let mut frames = Frames { scrubber, head: Vec::with_capacity(HEAD), left: 0 };
    let mut piece = vec![0; PIECE];
    while let Ok(count @ 1..) = host.read(&mut piece).await {
        let Ok(passed) = frames.pass(&piece[..count]) else { break };
        if client.write_all(&passed).await.is_err() {
            return;
        }
    }
    // Whoever has gone does not hear it.
    drop(client.shutdown().await);
}

impl Frames {
    /// The next piece without secrets.
    fn pass(&mut self, mut piece: &[u8]) -> Result<Vec<u8>, Broken> {
        let mut passed = Vec::with_capacity(piece.len() + HEAD);
        while let Some((byte, rest)) = piece.split_first() {
            if self.left == 0 {
                self.head.push(*byte);
                piece = rest;
                if let Some(length) = payload(&self.head)? {
                    passed.append(&mut self.head);
                    self.left = length;
                }
                continue;
            }
            let count = usize::try_from(self.left).unwrap_or(usize::MAX).min(piece.len());
            let (payload, rest) = piece.split_at(count);
            piece = rest;
            self.left -= count as u64;
            passed.extend_from_slice(&self.scrubber.push(payload));
            if self.left == 0 {
                passed.extend_from_slice(&self.scrubber.cut());
            }
        }
        Ok(passed)
    }
}

/// It is not what a server may send.
struct Broken;

/// The length of a frame's payload, once its head is complete. Servers must not mask frames, and lengths have 63 bits.
fn payload(head: &[u8]) -> Result<Option<u64>, Broken> {
    let Some(second) = head.get(1) else { return Ok(None) };
    if second & 0x80 != 0 {
        return Err(Broken);
    }
    let more = match second & 0x7f {
        126 => 2,
        127 => 8,
        short => return Ok(Some(u64::from(short))),
    };
    let Some(length) = head.get(2..2 + more) else { return Ok(None) };
    let length = length.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    if length >> 63 == 0 { Ok(Some(length)) } else { Err(Broken) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(first: u8, payload: &str) -> Vec<u8> {
        let length = u16::try_from(payload.len()).expect("short").to_be_bytes();
        [&[first, 126, length[0], length[1]], payload.as_bytes()].concat()
    }

    fn through(bytes: &[u8], size: usize) -> Option<Vec<u8>> {
        let scrubber = Replacer::scrubber(vec![b"secret-1".to_vec()]).expect("words");
        let mut frames = Frames { scrubber, head: Vec::new(), left: 0 };
        let mut all = Vec::new();
        for piece in bytes.chunks(size) {
            all.extend(frames.pass(piece).ok()?);
        }
        Some(all)
    }

    #[test]
    fn secrets_are_taken_out_of_frames_in_any_pieces() {
        let sent = [
            frame(0x81, "it is secret-1, or se"),
            frame(0x89, "secret-1"),
            frame(0x01, "in two parts: secr"),
            frame(0x80, "et-1."),
            frame(0x82, ""),
        ]
        .concat();
        let expected = [
            frame(0x81, "it is ********, or se"),
            frame(0x89, "********"),
            frame(0x01, "in two parts: ****"),
            frame(0x80, "****."),
            frame(0x82, ""),
        ]
        .concat();
        for size in [1, 2, 3, 5, 8, 1000] {
            assert_eq!(through(&sent, size).expect("frames"), expected, "in pieces of {size}");
        }
    }

    #[test]
    fn no_frame_waits_for_the_next() {
        let scrubber = Replacer::scrubber(vec![b"secret-1".to_vec()]).expect("words");
        let mut frames = Frames { scrubber, head: Vec::new(), left: 0 };
        let sent = frame(0x81, "yes");
        assert_eq!(frames.pass(&sent).ok(), Some(sent));
    }

    #[test]
    fn what_servers_must_not_send_ends_it() {
        assert!(through(&[0x81, 0x81, 1, 2, 3, 4, 0], 9).is_none(), "masked");
        let endless = [&[0x82, 127][..], &[0xff; 8]].concat();
        assert!(through(&endless, 99).is_none(), "longer than lengths can be");
    }

    proptest! {
        #[test]
        fn lengths_stay_and_nothing_breaks_it(bytes in proptest::collection::vec(any::<u8>(), 0..300), size in 1..50usize) {
            if let Some(passed) = through(&bytes, size) {
                prop_assert!(passed.len() <= bytes.len());
                prop_assert!(passed.len() + HEAD >= bytes.len());
            }
        }
    }
}
