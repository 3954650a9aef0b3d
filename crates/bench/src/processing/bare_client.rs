//! What Redis and this machine allow: a client that does with Redis what Galley does for the same jobs, and nothing else.

use std::time::Instant;
use testkit::redis;

use anyhow::{Context, ensure};
use testkit::RedisServer;
use testkit::redis::{AsyncCommands, IntoConnectionInfo, aio::MultiplexedConnection, streams::StreamReadReply};
use tokio::sync::mpsc;

use crate::numbers::count_as_f64;

const STREAM: &str = "bare:{s}";
const GROUP: &str = "workers";
const CONSUMER: &str = "bare";
/// Entries in one read, as a queue-worker claims them.
const READ_COUNT: usize = 128;
/// Batches read and not recorded yet: reading goes on while results are recorded.
const MAX_BATCHES_AHEAD: usize = 4;
/// The first tenth of the entries warms up.
const WARM_UP_DIVISOR: usize = 10;
/// Pipelines on their way at once.
const PIPELINES: u32 = 4;

pub(crate) struct BareClient {
    reading: MultiplexedConnection,
    writing: MultiplexedConnection,
}

impl BareClient {
    pub(crate) async fn open(redis: &RedisServer) -> anyhow::Result<Self> {
        let mut info = redis.url().into_connection_info()?;
        // As Galley has it: otherwise a small command waits for the answer to the one before
        let tcp = info.tcp_settings().clone().set_nodelay(true);
        info = info.set_tcp_settings(tcp);
        let client = redis::Client::open(info)?;
        let mut reading = client.get_multiplexed_async_connection_with_config(&testkit::patient_config()).await?;
        let writing = client.get_multiplexed_async_connection_with_config(&testkit::patient_config()).await?;
        let _: () = reading.xgroup_create_mkstream(STREAM, GROUP, "0").await?;
        Ok(Self { reading, writing })
    }

    /// Adds entries like those of jobs; entries per second.
    pub(crate) async fn add_entries(&self, entries: u32, per_pipeline: u32) -> anyhow::Result<f64> {
        let envelope = format!("{{\"type\":\"test.noop\",\"args\":[\"{}\"]}}", "x".repeat(200));
        let mut pipeline = redis::pipe();
        for _ in 0..per_pipeline {
            pipeline.cmd("XADD").arg(STREAM).arg("*").arg("i").arg("3fffff").arg("e").arg(&envelope).ignore();
        }
        let began = Instant::now();
        let writers = (0..PIPELINES).map(|_| async {
            let mut connection = self.writing.clone();
            for _ in 0..entries / per_pipeline / PIPELINES {
                pipeline.exec_async(&mut connection).await?;
            }
            anyhow::Ok(())
        });
        futures_util::future::try_join_all(writers).await?;
        Ok(f64::from(entries) / began.elapsed().as_secs_f64())
    }

    /// Reads them all, looks whether they are still its own, acknowledges, deletes and stores a result of that size for
    /// each; entries per second.
    pub(crate) async fn process_entries(&self, entries: u32, result_bytes: usize) -> anyhow::Result<f64> {
        let (batches, mut read) = mpsc::channel::<Vec<String>>(MAX_BATCHES_AHEAD);
        let mut reading = self.reading.clone();
        let reader = tokio::spawn(async move {
            loop {
                let mut command = redis::cmd("XREADGROUP");
                command
                    .arg("GROUP")
                    .arg(GROUP)
                    .arg(CONSUMER)
                    .arg("COUNT")
                    .arg(READ_COUNT)
                    .arg("STREAMS")
                    .arg(STREAM)
                    .arg(">");
                let reply: Option<StreamReadReply> = command.query_async(&mut reading).await?;
                let Some(stream) = reply.and_then(|reply| reply.keys.into_iter().next()) else { return anyhow::Ok(()) };
                batches.send(stream.ids.into_iter().map(|entry| entry.id).collect()).await?;
            }
        });
        let (result, all) = ("r".repeat(result_bytes), usize::try_from(entries)?);
        let (mut connection, mut done, mut warm) = (self.writing.clone(), 0, None);
        while let Some(ids) = read.recv().await {
            record_results(&mut connection, &ids, &result).await?;
            done += ids.len();
            if warm.is_none() && done >= all / WARM_UP_DIVISOR {
                warm = Some((done, Instant::now()));
            }
        }
        let (warm, since) = warm.context("there was something to read")?;
        let seconds = since.elapsed().as_secs_f64();
        reader.await??;
        ensure!(done == all, "the bare client read {done} of {entries} entries");
        Ok(count_as_f64((done - warm) as u64) / seconds)
    }
}

async fn record_results(connection: &mut MultiplexedConnection, ids: &[String], result: &str) -> anyhow::Result<()> {
    let (first, last) = (ids.first().context("an entry")?, ids.last().context("an entry")?);
    let mut pipeline = redis::pipe();
    pipeline.cmd("XPENDING").arg(STREAM).arg(GROUP).arg(first).arg(last).arg(ids.len()).arg(CONSUMER);
    pipeline.cmd("XACK").arg(STREAM).arg(GROUP).arg(ids).ignore().cmd("XDEL").arg(STREAM).arg(ids).ignore();
    for id in ids {
        pipeline.cmd("SET").arg(format!("bare:{{s}}:{id}")).arg(result).arg("EX").arg(86_400).ignore();
    }
    let (held,): (Vec<redis::Value>,) = pipeline.query_async(connection).await?;
    ensure!(held.len() == ids.len(), "the bare client holds {} of {} entries", held.len(), ids.len());
    Ok(())
}
