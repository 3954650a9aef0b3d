//! Connections to Redis: the shared one, dedicated ones for blocking reads, pub/sub, and requirements on the server.
//!
//! | file | what it does |
//! |---|---|
//! | [`client`] | the shared connection: pipelined, reconnecting, fails fast |
//! | [`dedicated`] | connections for blocking reads |
//! | [`notifier`] | one pub/sub connection for everything in a process that waits for notifications |
//! | [`memory`] | how full Redis is, and what becomes of results |
//! | [`notification`] | the notifications between processes |
//! | [`server`] | requirements on the server's configuration |
//! | `clock` | Redis's clock, and sorted sets by time |

pub mod client;
pub(crate) mod clock;
pub mod dedicated;
pub mod memory;
pub mod notification;
pub mod notifier;
pub mod server;
