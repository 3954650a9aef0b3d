//! The same request again and again, over many connections.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::ensure;
use tokio::task::JoinSet;

use crate::{galley::MEASURE_TIMEOUT, load_connection::LoadTarget};

/// How long they are sent before.
const WARM_UP_TIME: Duration = Duration::from_secs(1);
/// How long requests are counted.
const MEASURE_TIME: Duration = Duration::from_secs(3);

/// Sends it for a few seconds; answers per second.
pub(crate) async fn requests_per_second(
    target: impl Into<LoadTarget>,
    request: &str,
    connections: u32,
) -> anyhow::Result<f64> {
    per_second(target.into(), request, connections, u32::MAX, MEASURE_TIME).await
}

/// The same without counting.
pub(crate) async fn warm_up(target: impl Into<LoadTarget>, request: &str, connections: u32) -> anyhow::Result<()> {
    per_second(target.into(), request, connections, u32::MAX, WARM_UP_TIME).await.map(drop)
}

/// Sends it that many times; answers per second.
pub(crate) async fn count_per_second(
    target: impl Into<LoadTarget>,
    request: &str,
    connections: u32,
    count: u32,
) -> anyhow::Result<f64> {
    per_second(target.into(), request, connections, count, MEASURE_TIMEOUT).await
}

async fn per_second(
    target: LoadTarget,
    request: &str,
    connections: u32,
    count: u32,
    time: Duration,
) -> anyhow::Result<f64> {
    let request: Arc<str> = request.into();
    let sent = Arc::new(AtomicU32::new(0));
    let opened = target.open(connections).await?;
    let began = Instant::now();
    let mut senders = JoinSet::new();
    for mut connection in opened {
        let (request, sent) = (request.clone(), sent.clone());
        senders.spawn(async move {
            let mut answers = 0_u32;
            while began.elapsed() < time && sent.fetch_add(1, Relaxed) < count {
                let (status, body) = connection.send(&request).await?;
                ensure!((200..300).contains(&status), "answered with {status}: {body}");
                answers += 1;
            }
            Ok(answers)
        });
    }
    let mut answers = 0;
    for sender in senders.join_all().await {
        answers += sender?;
    }
    Ok(f64::from(answers) / began.elapsed().as_secs_f64())
}
