//! What publishing costs, beside a bare client that adds to a stream and publishes in one pipeline.

use std::time::{Duration, Instant};
use testkit::redis;

use testkit::redis::{IntoConnectionInfo, aio::MultiplexedConnection};
use tokio::task::JoinSet;

use super::{fan_out::MESSAGE_BYTES, servers::CHANNEL};
use crate::{galley::BenchGalley, http, load::requests_per_second, machine::scheduler_times_ms, numbers::count_as_f64};

/// Requests, and pipelines, at a time.
pub(super) const CONCURRENCY: u32 = 64;
/// How long each is counted.
const MEASURE_TIME: Duration = Duration::from_secs(3);
/// Messages that the bare client keeps, about: as many as Galley.
const MAX_STREAM_LENGTH: u32 = 10_000;

/// What came of one round.
#[derive(Debug, Clone, Copy)]
pub(super) struct PublishingRound {
    pub(super) http_per_second: f64,
    pub(super) bare_per_second: f64,
    /// Processor time of Redis for a message.
    pub(super) redis_micros: f64,
    /// The same for one `XADD` and one `PUBLISH`.
    pub(super) bare_micros: f64,
    /// Most messages are published without one.
    pub(super) scripts_per_thousand: f64,
}

pub(super) async fn run_round(galley: &BenchGalley) -> anyhow::Result<PublishingRound> {
    let mut redis = galley.redis.connection().await;
    let body = "x".repeat(MESSAGE_BYTES);
    let request = http::post_request(&format!("/v1/channels/{CHANNEL}/messages"), &format!("\"{}\"", &body[2..]));
    let process = galley.redis_process_id().await?;
    reset_statistics(&mut redis).await?;
    let (before, _) = scheduler_times_ms(process);
    let began = Instant::now();
    let http_per_second = requests_per_second(galley.gateway.address(), &request, CONCURRENCY).await?;
    let messages = http_per_second * began.elapsed().as_secs_f64();
    let (published, _) = scheduler_times_ms(process);
    let scripts = calls(&mut redis, "evalsha").await?;
    let (bare_per_second, bare_messages) = measure_bare(galley, &body).await?;
    let (bare, _) = scheduler_times_ms(process);
    Ok(PublishingRound {
        http_per_second,
        bare_per_second,
        redis_micros: (published - before) * 1000.0 / messages,
        bare_micros: (bare - published) * 1000.0 / bare_messages,
        scripts_per_thousand: scripts * 1000.0 / messages,
    })
}

/// Pipelines per second, and their number; many at a time over one connection, as the gateway does it.
async fn measure_bare(galley: &BenchGalley, body: &str) -> anyhow::Result<(f64, f64)> {
    let mut info = galley.redis.url().into_connection_info()?;
    let tcp = info.tcp_settings().clone().set_nodelay(true);
    info = info.set_tcp_settings(tcp);
    let connection =
        redis::Client::open(info)?.get_multiplexed_async_connection_with_config(&testkit::patient_config()).await?;
    let mut pipeline = redis::pipe();
    pipeline.cmd("XADD").arg("bare").arg("MAXLEN").arg("~").arg(MAX_STREAM_LENGTH).arg("*").arg("b").arg(body).ignore();
    pipeline.cmd("PUBLISH").arg("bare").arg(body).ignore();
    let began = Instant::now();
    let mut publishers = JoinSet::new();
    for _ in 0..CONCURRENCY {
        let (mut connection, pipeline) = (connection.clone(), pipeline.clone());
        publishers.spawn(async move {
            let mut count = 0_u64;
            while began.elapsed() < MEASURE_TIME {
                pipeline.exec_async(&mut connection).await?;
                count += 1;
            }
            anyhow::Ok(count)
        });
    }
    let mut count = 0;
    for publisher in publishers.join_all().await {
        count += publisher?;
    }
    let count = count_as_f64(count);
    Ok((count / began.elapsed().as_secs_f64(), count))
}

async fn reset_statistics(redis: &mut MultiplexedConnection) -> anyhow::Result<()> {
    Ok(redis::cmd("CONFIG").arg("RESETSTAT").exec_async(redis).await?)
}

/// How often a command was called since then.
async fn calls(redis: &mut MultiplexedConnection, command: &str) -> anyhow::Result<f64> {
    let info: String = redis::cmd("INFO").arg("commandstats").query_async(redis).await?;
    let line = info.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:")));
    let field = line.and_then(|line| line.split(',').find_map(|field| field.strip_prefix("calls=")));
    Ok(field.map_or(Ok(0.0), str::parse)?)
}
