//! Real parts for tests: a Redis server of one's own, Galley's own binaries, and waiting without sleeping.
//!
//! It depends on no other crate of the workspace, so that each of them can use it in its tests.

mod adjustable_clock;
mod answer_hold_proxy;
mod cluster_node;
mod cluster_processes;
mod cluster_slot_moves;
mod failover_proxy;
mod filled_redis;
pub mod http;
mod message_drop_proxy;
mod one_node_cluster;
mod otlp;
mod power_failure;
mod process_mark;
mod redis_deployment;
mod redis_process;
mod redis_proxy;
mod redis_server;
mod reserved_port;
mod sentinel_set;
mod service_process;
mod skip;
mod test_authority;
mod token_issuer;
mod wait;
mod watched_disk;
mod webhook_receiver;

pub use adjustable_clock::AdjustableClock;
pub use answer_hold_proxy::AnswerHoldProxy;
pub use cluster_processes::ClusterProcesses;
pub use failover_proxy::FailoverProxy;
pub use filled_redis::RedisFill;
pub use message_drop_proxy::MessageDropProxy;
pub use otlp::{
    OtlpReceiver, ReceivedLogRecord, ReceivedPoint, ReceivedSpan, decode_log_records, decode_points, decode_spans,
    serve_otlp_sink,
};
pub use process_mark::ProcessMark;
/// A plain Redis client, as other programs have: for tests that stand for one or look at what is stored.
pub use redis;
pub use redis_deployment::{RedisDeployment, RedisKind};
pub use redis_server::{RedisPersistence, RedisServer, patient_config};
pub use reserved_port::ReservedPort;
pub use sentinel_set::{SENTINEL_PASSWORD, SentinelProcesses, SentinelSet};
pub use service_process::{PATIENCE, ServiceProcess, binary_path};
pub use skip::{has_ipv6, skip};
pub use test_authority::{CertificateFiles, TestAuthority};
pub use token_issuer::{TokenIssuer, hs256_token, signed};
pub use wait::{TEST_TIMEOUT, eventually, eventually_for, eventually_or};
pub use watched_disk::WatchedDisk;
pub use webhook_receiver::{ReceivedRequest, WebhookReceiver, WebhookReply, read_request};
