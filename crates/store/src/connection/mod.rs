//! How Galley talks to Redis: the hot connection, connections for blocking reads, pub/sub, and what the server must be.
//!
//! | file | what it does |
//! |---|---|
//! | [`client`] | the hot connection: shared, pipelined, reconnecting, quick to fail |
//! | [`dedicated`] | connections for blocking reads |
//! | [`notifier`] | notifications from other processes, on one pub/sub connection |
//! | [`notification`] | what processes tell each other over pub/sub |
//! | [`server`] | what Galley requires of the server's configuration |
//! | `clock` | Redis's clock, and sorted sets by time |

pub mod client;
pub(crate) mod clock;
pub mod dedicated;
pub mod notification;
pub mod notifier;
pub mod server;
