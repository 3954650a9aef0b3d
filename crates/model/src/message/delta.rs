//! Differences between two texts, in the format of Fossil: what Centrifugo sends as well, so libraries that apply them
//! exist in many languages.
//!
//! Lengths and offsets count bytes, as numbers to the base 64. A difference begins with the length of the text and a line
//! break. Then `<count>@<offset>,` copies bytes of the base and `<count>:<bytes>` adds bytes, until `<checksum>;`. Here
//! every added piece is whole characters, so a difference is a text too.

/// The longest text of which a difference is made, in bytes. It bounds the time of one.
pub const MAX_TEXT_BYTES: usize = 128 * 1024;

/// Bytes of a block of the base that is searched for.
const BLOCK_LEN: u32 = 16;
const BLOCK_BYTES: usize = BLOCK_LEN as usize;
/// Maximum number of equal blocks of the base that are tried at a place: texts that repeat themselves have many.
const MAX_CANDIDATES: usize = 8;
const DIGITS: &[u8; 64] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~";
const NO_BLOCK: u32 = u32::MAX;

/// The difference of a text from a base, in fewer than `max_bytes`; none if there is no such, or a text is too long.
#[must_use]
pub fn encode(base: &str, text: &str, max_bytes: usize) -> Option<String> {
    if base.len().max(text.len()) > MAX_TEXT_BYTES {
        return None;
    }
    let mut delta = String::new();
    push_number(&mut delta, text.len());
    delta.push('\n');
    let index = BlockIndex::new(base.as_bytes());
    // Everything before it is in the difference, and what follows in the base behind the last copy
    let (mut written, mut copied) = (0, 0);
    let mut window = Window::at(text.as_bytes(), 0);
    while let Some(place) = window.as_ref().map(|window| window.start) {
        if delta.len() + place - written >= max_bytes {
            return None;
        }
        let found = window.as_ref().and_then(|window| index.longest_match(text, window, written, copied));
        let Some(found) = found else {
            window = window.and_then(|window| window.next(text.as_bytes()));
            continue;
        };
        push_literal(&mut delta, &text[written..found.start]);
        push_number(&mut delta, found.len);
        delta.push('@');
        push_number(&mut delta, found.offset);
        delta.push(',');
        (written, copied) = (found.start + found.len, found.offset + found.len);
        window = Window::at(text.as_bytes(), written);
    }
    push_literal(&mut delta, &text[written..]);
    push_number(&mut delta, checksum(text.as_bytes()) as usize);
    delta.push(';');
    (delta.len() < max_bytes).then_some(delta)
}

/// The base, by the hashes of its blocks.
struct BlockIndex<'a> {
    base: &'a [u8],
    /// The last block with a hash. There are a power of two.
    newest: Vec<u32>,
    /// The block before each that is in the same place.
    older: Vec<u32>,
}

/// A part of the text that the base has too.
struct Match {
    start: usize,
    offset: usize,
    len: usize,
}

impl<'a> BlockIndex<'a> {
    fn new(base: &'a [u8]) -> Self {
        let blocks = base.len() / BLOCK_BYTES;
        let mut index =
            Self { base, newest: vec![NO_BLOCK; blocks.next_power_of_two()], older: vec![NO_BLOCK; blocks] };
        // From the end, so that the first of equal blocks is tried first
        for block in (0..blocks).rev() {
            let Some(window) = Window::at(base, block * BLOCK_BYTES) else { continue };
            let slot = index.slot(&window);
            index.older[block] = index.newest[slot];
            index.newest[slot] = u32::try_from(block).unwrap_or(NO_BLOCK);
        }
        index
    }

    fn slot(&self, window: &Window) -> usize {
        window.hash() as usize & (self.newest.len() - 1)
    }

    /// Where the base may have the window of a text.
    fn candidates(&self, window: &Window) -> impl Iterator<Item = usize> {
        let known = |block: u32| (block != NO_BLOCK).then_some(block);
        let first = known(self.newest[self.slot(window)]);
        let blocks = std::iter::successors(first, move |block| known(self.older[*block as usize]));
        blocks.take(MAX_CANDIDATES).map(|block| block as usize * BLOCK_BYTES)
    }

    /// The longest part around a window of the text that the base has too, behind `written`. It costs less than it saves.
    /// `copied` is where the last one ended in the base: most often the text goes on with what follows there.
    fn longest_match(&self, text: &str, window: &Window, written: usize, copied: usize) -> Option<Match> {
        let bytes = text.as_bytes();
        let block_of_text = &bytes[window.start..window.start + BLOCK_BYTES];
        let mut best: Option<Match> = None;
        for place in std::iter::once(copied + window.start - written).chain(self.candidates(window)) {
            if self.base.get(place..place + BLOCK_BYTES) != Some(block_of_text) {
                continue;
            }
            let ahead = self.base[place..].iter().zip(&bytes[window.start..]).take_while(|(a, b)| a == b).count();
            let before = self.base[..place].iter().rev().zip(bytes[written..window.start].iter().rev());
            let before = before.take_while(|(a, b)| a == b).count();
            let (mut start, mut end) = (window.start - before, window.start + ahead);
            let mut offset = place - before;
            // A character is copied as a whole
            while !text.is_char_boundary(start) {
                (start, offset) = (start + 1, offset + 1);
            }
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            let len = end.saturating_sub(start);
            let cost = digits(len) + digits(offset) + digits(start - written) + 3;
            if len > cost && best.as_ref().is_none_or(|best| len > best.len) {
                best = Some(Match { start, offset, len });
            }
        }
        best
    }
}

/// A block of bytes at any place, with a hash that moves along.
struct Window {
    start: usize,
    sum: u32,
    weighted: u32,
}

impl Window {
    /// None if there are not as many bytes.
    fn at(bytes: &[u8], start: usize) -> Option<Self> {
        let block = bytes.get(start..start + BLOCK_BYTES)?;
        let (mut sum, mut weighted) = (0_u32, 0_u32);
        for byte in block {
            sum = sum.wrapping_add(u32::from(*byte));
            weighted = weighted.wrapping_add(sum);
        }
        Some(Self { start, sum, weighted })
    }

    fn next(self, bytes: &[u8]) -> Option<Self> {
        let (leaves, comes) = (u32::from(bytes[self.start]), u32::from(*bytes.get(self.start + BLOCK_BYTES)?));
        let sum = self.sum.wrapping_sub(leaves).wrapping_add(comes);
        let weighted = self.weighted.wrapping_sub(leaves.wrapping_mul(BLOCK_LEN)).wrapping_add(sum);
        Some(Self { start: self.start + 1, sum, weighted })
    }

    fn hash(&self) -> u32 {
        (self.sum ^ self.weighted.rotate_left(12)).wrapping_mul(0x9e37_79b1) >> 8
    }
}

fn push_literal(delta: &mut String, text: &str) {
    if !text.is_empty() {
        push_number(delta, text.len());
        delta.push(':');
        delta.push_str(text);
    }
}

/// Of a number of 32 bits.
fn digits(number: usize) -> usize {
    (1..6).find(|digits| number >> (6 * digits) == 0).unwrap_or(6)
}

fn push_number(delta: &mut String, number: usize) {
    let digit = |nth: usize| char::from(DIGITS[number >> (6 * nth) & 63]);
    delta.extend((0..digits(number)).rev().map(digit));
}

/// The sum of all words of four bytes, the last one filled up with zeros.
fn checksum(bytes: &[u8]) -> u32 {
    let word =
        |word: &[u8]| (0..4).fold(0, |sum, nth| sum << 8 | u32::from(word.get(nth).copied().unwrap_or_default()));
    bytes.chunks(4).fold(0, |sum: u32, bytes| sum.wrapping_add(word(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_what_other_programs_of_the_format_read() {
        let base = "line 1: the first of a few lines\nline 2: the second of them\nline 3: and the last";
        for (text, expected) in [
            (base.replace("second", "third"), "1F\ni@0,4:thirU@n,2E7ykT;"),
            (base.to_owned(), "1G\n1G@0,2HLiOA;"),
            (String::new(), "0\n0;"),
        ] {
            assert_eq!(encode(base, &text, 1000).as_deref(), Some(expected));
        }
    }

    #[test]
    fn characters_of_several_bytes_are_never_cut() {
        // Letters that begin with the same byte
        let base = "Съешь же ещё этих мягких французских булок, да выпей чаю".repeat(4);
        let text = base.replace("чаю", "кофе").replace("этих", "тех");
        let delta = encode(&base, &text, text.len()).expect("it is shorter");
        assert!(delta.len() < text.len() / 2, "{delta}");
    }

    #[test]
    fn a_difference_that_is_not_shorter_is_none_and_nor_is_one_of_a_long_text() {
        assert_eq!(encode("abc", "xyz", 5), None);
        assert_eq!(encode("", "xy", 100).as_deref(), Some("2\n2:xy1tUG00;"));
        let long = "x".repeat(MAX_TEXT_BYTES);
        assert!(encode(&long, &long, 100).is_some_and(|delta| delta.len() < 30));
        assert_eq!(encode(&long, &format!("{long}y"), 100), None);
        assert_eq!(encode(&format!("{long}y"), &long, 100), None);
    }

    #[test]
    fn numbers_are_to_the_base_64() {
        for (number, expected) in [(0, "0"), (63, "~"), (64, "10"), (4095, "~~"), (u32::MAX as usize, "3~~~~~")] {
            let mut text = String::new();
            push_number(&mut text, number);
            assert_eq!((text.as_str(), digits(number)), (expected, expected.len()));
        }
    }
}
