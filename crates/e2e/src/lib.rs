//! Real parts for tests: a Redis server of one's own, Galley's own binaries, and waiting without sleeping.
//!
//! Nothing here knows the other crates: their integration tests use it too.

pub mod channels_check;
pub mod http;
mod mark;
mod otlp;
mod proxy;
mod receiver;
mod redis_server;
mod service;
mod wait;

pub use mark::Mark;
pub use otlp::{OtlpReceiver, ReceivedSpan};
pub use proxy::DeafProxy;
pub use receiver::{Received, Receiver, Reply};
pub use redis_server::{Persistence, RedisServer, patient};
pub use service::{Service, binary};
pub use wait::{LIMIT, eventually, eventually_for};
