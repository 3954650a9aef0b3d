//! What publishing costs, beside a bare client that adds to a stream and publishes in one pipeline.

use std::time::{Duration, Instant};
use testkit::redis;

use anyhow::Context;
use testkit::redis::{IntoConnectionInfo, aio::MultiplexedConnection};
use tokio::task::JoinSet;

use super::{fan_out::MESSAGE_BYTES, servers::CHANNEL};
use crate::{galley::BenchGalley, http, load::requests_per_second, numbers::count_as_f64};

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
    /// Of one call of the script, in Redis.
    pub(super) script_micros: f64,
    /// Of one `XADD` and one `PUBLISH`, in Redis.
    pub(super) bare_micros: f64,
}

pub(super) async fn run_round(galley: &BenchGalley) -> anyhow::Result<PublishingRound> {
    let mut redis = galley.redis.connection().await;
    let body = "x".repeat(MESSAGE_BYTES);
    let request = http::post_request(&format!("/v1/channels/{CHANNEL}/messages"), &format!("\"{}\"", &body[2..]));
    reset_statistics(&mut redis).await?;
    let http_per_second = requests_per_second(galley.gateway.address(), &request, CONCURRENCY).await?;
    let script_micros = micros_per_call(&mut redis, "evalsha").await?;
    reset_statistics(&mut redis).await?;
    let bare_per_second = measure_bare(galley, &body).await?;
    let bare_micros = micros_per_call(&mut redis, "xadd").await? + micros_per_call(&mut redis, "publish").await?;
    Ok(PublishingRound { http_per_second, bare_per_second, script_micros, bare_micros })
}

/// Pipelines per second, many at a time over one connection, as the gateway does it.
async fn measure_bare(galley: &BenchGalley, body: &str) -> anyhow::Result<f64> {
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
    Ok(count_as_f64(count) / began.elapsed().as_secs_f64())
}

async fn reset_statistics(redis: &mut MultiplexedConnection) -> anyhow::Result<()> {
    Ok(redis::cmd("CONFIG").arg("RESETSTAT").exec_async(redis).await?)
}

/// How long a call of a command takes in Redis, by its own account.
async fn micros_per_call(redis: &mut MultiplexedConnection, command: &str) -> anyhow::Result<f64> {
    let info: String = redis::cmd("INFO").arg("commandstats").query_async(redis).await?;
    let line = info.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:")));
    let field = line.and_then(|line| line.split(',').find_map(|field| field.strip_prefix("usec_per_call=")));
    Ok(field.with_context(|| format!("redis has not counted {command}"))?.parse()?)
}
