//! Connections to Redis: the shared one, dedicated ones for blocking reads, pub/sub, and requirements on the server.
//!
//! | file | what it does |
//! |---|---|
//! | [`client`], `send` | the shared connection: pipelined, reconnecting, fails fast |
//! | `client::cluster` | several servers, of which each has a part of the keys |
//! | `thread_connection` | connections of threads that serve requests, beside the shared one |
//! | `pinned` | one specific connection, with the epoch of its data |
//! | [`pool`] | connections for slow work |
//! | [`dedicated`] | connections for blocking reads |
//! | [`confirmation`] | whether writes have reached replicas and the disk |
//! | `error_class` | what an error means for its connection and for a repeat |
//! | [`notifier`] | one pub/sub connection for everything in a process that waits for notifications |
//! | [`memory`], [`budgets`] | how full Redis is and what becomes of results; the share of each kind of data |
//! | [`health`] | whether this process can do its work now |
//! | [`notification`] | the notifications between processes |
//! | [`hint_pace`] | how often they may cause a look |
//! | [`diagnosis`] | what an operator wants to know of the server |
//! | [`server`], `start_check` | requirements on the server's configuration |
//! | `server_state` | how the server is, for metrics |
//! | `samples` | how full the server and the pool are, for metrics |
//! | `judge` | judges every answer: drops a broken connection, leaves a server that takes no writes |
//! | `access` | whether the user may do what Galley needs |
//! | `server_address` | where the server is, who Galley is there, and TLS: the same for every connection |
//! | `sentinels`, `primary` | which server is the primary, if `redis.url` names sentinels |
//! | `reload` | certificates and keys that change on the disk |
//! | `dial` | opens connections to a server that takes writes |
//! | `redis_clock`, `clock` | Redis's clock as a process knows it; the time by it, and sorted sets by time |

mod access;
pub mod budgets;
pub mod client;
pub(crate) mod clock;
pub mod confirmation;
pub mod dedicated;
pub mod diagnosis;
mod dial;
pub(crate) mod error_class;
pub mod health;
pub mod hint_pace;
mod judge;
pub mod memory;
pub mod notification;
pub mod notifier;
pub(crate) mod pinned;
pub mod pool;
mod primary;
pub(crate) mod redis_clock;
mod reload;
mod samples;
mod send;
mod sentinels;
pub mod server;
mod server_address;
pub(crate) mod server_state;
mod start_check;
mod thread_connection;
