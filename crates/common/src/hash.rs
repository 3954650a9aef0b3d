//! Hashes that every process computes alike, in every version: ids, and places in Redis, follow from them.

/// The slots of Redis Cluster.
pub const CLUSTER_SLOTS: u16 = 16_384;

/// The slot in Redis Cluster of the keys that have this hash tag.
#[must_use]
pub fn cluster_slot(tag: &[u8]) -> u16 {
    crc16(tag) % CLUSTER_SLOTS
}

/// CRC-16/XMODEM.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte) << 8, |crc, _| if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 })
    })
}

/// FNV-1a.
#[must_use]
pub fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The same with its bits mixed: FNV mixes upwards only, so this folds the high bits down, as `MurmurHash` does last.
#[must_use]
pub fn mixed_fnv1a(text: &str) -> u64 {
    let hash = fnv1a(text);
    let hash = (hash ^ hash >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ hash >> 33
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_their_names() {
        assert_eq!(crc16(b"123456789"), 0x31C3);
        assert_eq!(fnv1a("foobar"), 0x8594_4171_f739_67e8);
    }
}
