//! Replacing words in bytes that come in pieces, without ever holding back more than what could be the beginning of a word.

use aho_corasick::{AhoCorasick, MatchKind};
use bytes::Bytes;

/// Replaces words.
pub(crate) struct Replacer {
    finder: AhoCorasick,
    words: Vec<Vec<u8>>,
    by: Vec<Vec<u8>>,
    /// The end of what came, which may be the beginning of a word.
    held: Vec<u8>,
    /// How much of what is held is out already, and is kept to know the rest of a word by.
    out: usize,
}

/// Beginnings of words that are everywhere.
const COMMON: usize = 3;

impl Replacer {
    /// Replaces each first by its second; longer words win over their beginnings. None if there is nothing to replace.
    pub(crate) fn new(pairs: Vec<(Vec<u8>, Vec<u8>)>) -> Option<Self> {
        let pairs: Vec<_> = pairs.into_iter().filter(|(word, _)| !word.is_empty()).collect();
        if pairs.is_empty() {
            return None;
        }
        let (words, by): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        // It fails only for words of gigabytes.
        let finder = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&words);
        Some(Self { finder: finder.ok()?, words, by, held: Vec::new(), out: 0 })
    }

    /// Replaces each word by as many stars. None if there is nothing to replace.
    pub(crate) fn scrubber(words: Vec<Vec<u8>>) -> Option<Self> {
        Self::new(words.into_iter().map(|word| (word.clone(), stars(word.len()))).collect())
    }

    /// The next piece, with what was held back.
    pub(crate) fn push(&mut self, piece: &[u8]) -> Bytes {
        self.held.extend_from_slice(piece);
        let bytes = std::mem::take(&mut self.held);
        // What may go on in the next piece waits for it.
        let keep = self.unfinished(&bytes);
        let (ready, rest) = bytes.split_at(bytes.len() - keep);
        self.held = rest.to_vec();
        let out = self.out.min(ready.len());
        self.out -= out;
        self.replace(ready).split_off(out)
    }

    /// What is left at the end.
    pub(crate) fn finish(&mut self) -> Bytes {
        let rest = std::mem::take(&mut self.held);
        self.replace(&rest).split_off(std::mem::take(&mut self.out))
    }

    /// Whether something is held that has not gone out.
    pub(crate) fn waits(&self) -> bool {
        self.held.len() > self.out
    }

    /// What is held, which cannot wait any longer for what comes next. Of a word that is to become stars, no more than what is everywhere gets out, and the rest of it is still
    /// known when it comes; of other words nothing more is known.
    pub(crate) fn cut(&mut self) -> Bytes {
        let scrubs = self.words.iter().zip(&self.by).all(|(word, by)| word.len() == by.len());
        if !scrubs {
            return self.finish();
        }
        let fresh = self.held.get(self.out..).unwrap_or_default();
        let hidden = self.held.len() > COMMON;
        let cut = if hidden { stars(fresh.len()).into() } else { Bytes::copy_from_slice(fresh) };
        self.out = self.held.len();
        cut
    }

    /// All of it at once.
    pub(crate) fn whole(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut all = self.push(bytes).to_vec();
        all.extend(self.finish());
        all
    }

    fn replace(&self, bytes: &[u8]) -> Bytes {
        let mut replaced = Vec::with_capacity(bytes.len());
        let mut last = 0;
        for found in self.finder.find_iter(bytes) {
            replaced.extend_from_slice(&bytes[last..found.start()]);
            replaced.extend_from_slice(&self.by[found.pattern().as_usize()]);
            last = found.end();
        }
        replaced.extend_from_slice(&bytes[last..]);
        replaced.into()
    }

    /// How many bytes at the end could still become a word, or a longer one than they are. Everything before can be decided.
    fn unfinished(&self, bytes: &[u8]) -> usize {
        let longest = self.words.iter().map(Vec::len).max().unwrap_or(0);
        let most = bytes.len().min(longest - 1);
        let could = |length: usize| {
            let end = &bytes[bytes.len() - length..];
            self.words.iter().any(|word| word.len() > end.len() && word.starts_with(end))
        };
        let keep = (1..=most).rev().find(|length| could(*length)).unwrap_or(0);
        // A word that begins before what is kept and ends within it is decided already: the cut must not go through it.
        let cut = bytes.len() - keep;
        let through =
            self.finder.find_iter(bytes).find(|found| found.start() < cut && found.end() > cut);
        through.map_or(keep, |found| bytes.len() - found.end())
    }
}

fn stars(count: usize) -> Vec<u8> {
    vec![b'*'; count]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn replacer(pairs: &[(&str, &str)]) -> Replacer {
        let pairs =
            pairs.iter().map(|(word, by)| (word.as_bytes().to_vec(), by.as_bytes().to_vec()));
        Replacer::new(pairs.collect()).expect("words")
    }

    fn in_pieces(replacer: &mut Replacer, bytes: &[u8], size: usize) -> Vec<u8> {
        let mut all = Vec::new();
        for piece in bytes.chunks(size.max(1)) {
            all.extend(replacer.push(piece));
        }
        all.extend(replacer.finish());
        all
    }

    #[test]
    fn words_are_found_across_pieces() {
        let text = b"a secret, sesecret, secre, secretsecret s";
        let expected = b"a X, seX, secre, XX s";
        for size in 1..20 {
            let replaced = in_pieces(&mut replacer(&[("secret", "X")]), text, size);
            assert_eq!(replaced, expected, "in pieces of {size}");
        }
    }

    #[test]
    fn nothing_is_held_that_cannot_become_a_word() {
        let mut replacer = replacer(&[("secret", "X")]);
        assert_eq!(replacer.push(b"data: 1\n\n"), "data: 1\n\n");
        assert_eq!(replacer.push(b"data: se"), "data: ");
        assert_eq!(replacer.push(b"ven\n"), "seven\n");
    }

    #[test]
    fn what_was_cut_off_is_remembered() {
        let mut scrubber = Replacer::scrubber(vec![b"secret".to_vec()]).expect("a word");
        assert_eq!(scrubber.push(b"a se"), "a ");
        assert!(scrubber.waits());
        assert_eq!(scrubber.cut(), "se");
        assert!(!scrubber.waits());
        assert_eq!(scrubber.cut(), "", "only once");
        assert_eq!(scrubber.push(b"c"), "", "it may still be the word");
        assert_eq!(scrubber.push(b"ret, secre"), "****, ");
        assert_eq!(scrubber.cut(), "*****");
        assert_eq!(scrubber.push(b"t se"), "* ");
        assert_eq!(scrubber.cut(), "se");
        assert_eq!(scrubber.push(b"ven"), "ven");
        let mut placing = replacer(&[("word", "a longer one")]);
        assert_eq!(placing.push(b"wo"), "");
        assert_eq!(placing.cut(), "wo");
        assert_eq!(placing.push(b"rd word"), "rd a longer one");
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(text in "[abc]{0,40}", one in "[abc]{1,4}", two in "[abc]{1,6}", size in 1..7usize) {
            let pairs = [(one.as_str(), "1"), (two.as_str(), "2")];
            let whole = replacer(&pairs).replace(text.as_bytes());
            prop_assert_eq!(in_pieces(&mut replacer(&pairs), text.as_bytes(), size), whole);
        }
    }
}
