//! Tallies of the periods in a longer one, such as the minutes of an hour: for each the number of the period and its tally. A
//! period may come several times: then its tallies add up, so that what comes later is appended.

use std::collections::BTreeMap;

use super::{DecodeError, Tally, read_varint, write_varint};

/// Their bytes.
#[must_use]
pub fn encode_slots<'a>(slots: impl IntoIterator<Item = (u64, &'a Tally)>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (slot, tally) in slots {
        write_varint(&mut bytes, slot);
        tally.encode(&mut bytes);
    }
    bytes
}

/// The periods in these bytes. What is damaged ends them: the answer is what came before, and whether that is all.
pub fn decode_slots(mut bytes: &[u8]) -> (BTreeMap<u64, Tally>, Result<(), DecodeError>) {
    let mut slots: BTreeMap<u64, Tally> = BTreeMap::new();
    while !bytes.is_empty() {
        let slot = read_varint(&mut bytes).and_then(|slot| Ok((slot, Tally::decode(&mut bytes)?)));
        match slot {
            Ok((slot, tally)) => slots.entry(slot).or_default().merge(&tally),
            Err(damaged) => return (slots, Err(damaged)),
        }
    }
    (slots, Ok(()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::tally::tests::tallies, *};

    proptest! {
        #[test]
        fn periods_are_read_back_and_the_same_one_adds_up(tally in tallies()) {
            let bytes = encode_slots([(7, &tally), (59, &tally), (7, &tally)]);
            let (slots, whole) = decode_slots(&bytes);
            let mut twice = tally.clone();
            twice.merge(&tally);
            prop_assert_eq!(whole, Ok(()));
            prop_assert_eq!(slots.into_iter().collect::<Vec<_>>(), vec![(7, twice), (59, tally)]);
        }

        #[test]
        fn damage_ends_what_is_read(tally in tallies(), cut in 1..5_usize) {
            let mut bytes = encode_slots([(7, &tally), (8, &tally)]);
            bytes.truncate(bytes.len() - cut);
            let (slots, whole) = decode_slots(&bytes);
            prop_assert_eq!(slots.get(&7), Some(&tally));
            prop_assert!(whole.is_err());
        }
    }
}
