//! Real parts for tests: a Redis server of one's own, Galley's own binaries, and waiting without sleeping.
//!
//! It depends on no other crate of the workspace, so that each of them can use it in its tests.

pub mod http;
mod mark;
mod otlp;
mod proxy;
mod receiver;
mod redis_server;
mod service;
mod wait;

pub use mark::ProcessMark;
pub use otlp::{OtlpReceiver, ReceivedSpan};
pub use proxy::MessageDropProxy;
pub use receiver::{ReceivedRequest, WebhookReceiver, WebhookReply, read_request};
/// A plain Redis client, as other programs have: for tests that stand for one or look at what is stored.
pub use redis;
pub use redis_server::{RedisPersistence, RedisServer, patient_config};
pub use service::{ServiceProcess, binary_path};
pub use wait::{TEST_TIMEOUT, eventually, eventually_for};
