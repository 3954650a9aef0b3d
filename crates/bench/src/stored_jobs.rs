//! Which of the jobs that were acknowledged are stored after a fault.

use std::{net::SocketAddr, time::Duration};

use anyhow::bail;
use futures_util::{StreamExt, TryStreamExt, stream};
use testkit::http::HttpConnection;
use tokio::time::sleep;

/// Jobs that one connection looks up.
const CHUNK: usize = 1000;
const CONNECTIONS: usize = 4;
/// A gateway that has just found its Redis again may refuse a few times.
const MAX_TRIES: u32 = 100;
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// For each id, in this order, whether there is that job.
pub(crate) async fn are_stored(gateway: SocketAddr, ids: &[String]) -> anyhow::Result<Vec<bool>> {
    let parts: Vec<Vec<bool>> = stream::iter(ids.chunks(CHUNK))
        .map(|ids| async move {
            let mut connection = HttpConnection::open(gateway).await?;
            let mut found = Vec::with_capacity(ids.len());
            for id in ids {
                found.push(is_stored(&mut connection, id).await?);
            }
            anyhow::Ok(found)
        })
        .buffered(CONNECTIONS)
        .try_collect()
        .await?;
    Ok(parts.concat())
}

async fn is_stored(connection: &mut HttpConnection, id: &str) -> anyhow::Result<bool> {
    let request = format!("GET /ojs/v1/jobs/{id} HTTP/1.1\r\nhost: galley\r\n\r\n");
    for _ in 0..MAX_TRIES {
        match connection.send(&request).await?.0 {
            200 => return Ok(true),
            404 => return Ok(false),
            _ => sleep(RETRY_PAUSE).await,
        }
    }
    bail!("nobody says whether there is the job {id}")
}
