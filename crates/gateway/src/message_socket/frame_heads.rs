//! The heads of WebSocket frames. A fuzz target compiles this file too.

/// The longest head of a frame: two bytes, the length, the mask.
const MAX_HEAD_BYTES: usize = 14;

/// Finds the heads of frames in a stream of bytes, however it is cut.
#[derive(Default)]
pub(super) struct FrameHeads {
    /// The head that is being read.
    head: Vec<u8>,
    /// What is left of the frame behind the last head.
    remaining: u64,
}

impl FrameHeads {
    /// The length of the longest frame that begins in these bytes; 0 if none does.
    pub(super) fn longest_frame(&mut self, mut bytes: &[u8]) -> u64 {
        let mut longest = 0;
        while !bytes.is_empty() {
            if self.remaining > 0 {
                let here = bytes.len().min(usize::try_from(self.remaining).unwrap_or(usize::MAX));
                self.remaining -= here as u64;
                bytes = &bytes[here..];
                continue;
            }
            self.head.push(bytes[0]);
            bytes = &bytes[1..];
            if let Some(length) = frame_length(&self.head) {
                longest = longest.max(length);
                self.remaining = length;
                self.head.clear();
            }
            debug_assert!(self.head.len() < MAX_HEAD_BYTES);
        }
        longest
    }
}

/// The length of the frame behind a head; none if the head is not complete.
fn frame_length(head: &[u8]) -> Option<u64> {
    let second = *head.get(1)?;
    let mask_bytes = if second & 0x80 == 0 { 0 } else { 4 };
    let length_bytes = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    if head.len() < 2 + length_bytes + mask_bytes {
        return None;
    }
    let length = head[2..2 + length_bytes].iter().fold(0, |length, byte| length << 8 | u64::from(*byte));
    Some(if length_bytes == 0 { u64::from(second & 0x7f) } else { length })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(length: u64) -> Vec<u8> {
        let mut frame = vec![0x81];
        match length {
            0..126 => frame.push(0x80 | u8::try_from(length).expect("short")),
            126..65_536 => {
                frame.push(0x80 | 0x7e);
                frame.extend(u16::try_from(length).expect("medium").to_be_bytes());
            }
            _ => {
                frame.push(0x80 | 0x7f);
                frame.extend(length.to_be_bytes());
            }
        }
        frame.extend([0xff; 4]);
        frame
    }

    #[test]
    fn the_length_of_a_frame_is_known_from_its_head_however_the_bytes_are_cut() {
        let mut stream = Vec::new();
        for length in [5_u64, 0, 300, 125] {
            stream.extend(frame(length));
            stream.extend(vec![0xff; usize::try_from(length).expect("short")]);
        }
        stream.extend(frame(1 << 40));
        for size in 1..stream.len() {
            let mut heads = FrameHeads::default();
            let found: Vec<u64> = stream.chunks(size).map(|chunk| heads.longest_frame(chunk)).collect();
            assert_eq!(found.iter().max(), Some(&(1 << 40)), "chunks of {size}");
            assert!(found.iter().all(|found| *found <= 300 || *found == 1 << 40), "chunks of {size}: {found:?}");
        }
    }
}
