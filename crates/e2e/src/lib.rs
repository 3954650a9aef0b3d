//! The black-box tests of Galley (`tests/e2e`), and the channels check that tests and `bench` run.
//!
//! | module | what it is |
//! |---|---|
//! | [`channels_check`] | publishers, readers, subscriptions and faults, and the verdict on what was lost |

pub mod channels_check;
