//! Statistics of jobs: what happened in a period, and how long jobs waited and ran. What is kept is a few numbers and two
//! histograms for each period in which anything happened, as bytes: see [`Tally::encode`].
//!
//! | file | what it is |
//! |---|---|
//! | `histogram` | durations in buckets of about an eighth of their size |
//! | `tally` | the numbers of one period, and their bytes |
//! | `slots` | periods of an hour or a day, packed one after the other |

mod histogram;
mod slots;
mod tally;

pub use histogram::{BUCKETS, Histogram, bucket_of};
pub use slots::{decode_slots, encode_slots};
pub use tally::{DecodeError, Tally, read_varint, write_varint};
