//! Requests to the gateways of a run, which may be away.

use std::{
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use anyhow::{Context, bail};
use reqwest::{Method, StatusCode};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::history::CheckedJobView;

/// An answer that does not come in that time never comes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// Between two tries.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// Something is wrong for longer than any fault lasts.
const MAX_WAIT: Duration = Duration::from_secs(90);

/// A client that asks one gateway and then the other.
pub(crate) struct CheckClient {
    http: reqwest::Client,
    gateways: Vec<String>,
    next: AtomicUsize,
}

/// What became of a request.
pub(crate) enum RequestOutcome {
    /// An answer that will be the same if it is sent again.
    Answered(u16, Value),
    /// Nobody knows whether it was carried out.
    Unknown(String),
}

impl CheckClient {
    pub(crate) fn new(gateways: Vec<String>) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder().timeout(ANSWER_TIMEOUT).build()?;
        Ok(Self { http, gateways, next: AtomicUsize::new(0) })
    }

    /// Sends it once.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        key: Option<&str>,
        body: Option<&Value>,
    ) -> RequestOutcome {
        let gateway = &self.gateways[self.next.fetch_add(1, Relaxed) % self.gateways.len()];
        let mut request = self.http.request(method, format!("{gateway}{path}"));
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let answer = async {
            let answer = request.send().await?;
            let status = answer.status();
            reqwest::Result::Ok((status, answer.text().await?))
        };
        match answer.await {
            Err(error) => RequestOutcome::Unknown(error.without_url().to_string()),
            // 408: it did not arrive as a whole
            Ok((status, text))
                if status.is_server_error()
                    || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT) =>
            {
                RequestOutcome::Unknown(format!("{status} {}", text.chars().take(200).collect::<String>()))
            }
            Ok((status, text)) => match serde_json::from_str(&text) {
                Ok(body) => RequestOutcome::Answered(status.as_u16(), body),
                Err(error) => RequestOutcome::Unknown(format!("{status} {error}")),
            },
        }
    }

    /// Sends it until it is answered.
    pub(crate) async fn send_until_answered(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<(u16, Value)> {
        let deadline = Instant::now() + MAX_WAIT;
        loop {
            match self.send(method.clone(), path, None, body).await {
                RequestOutcome::Answered(status, body) => return Ok((status, body)),
                RequestOutcome::Unknown(reason) if Instant::now() > deadline => bail!("{method} {path}: {reason}"),
                RequestOutcome::Unknown(_) => sleep(RETRY_PAUSE).await,
            }
        }
    }

    /// A job as it is.
    pub(crate) async fn look_up(&self, id: &str) -> anyhow::Result<CheckedJobView> {
        let (status, body) = self.send_until_answered(Method::GET, &format!("/ojs/v1/jobs/{id}"), None).await?;
        let job = &body["job"];
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let state = if status == 200 { text(&job["state"]).context("a state")? } else { "missing".to_owned() };
        Ok(CheckedJobView {
            id: id.to_owned(),
            state,
            queue: text(&job["queue"]).unwrap_or_default(),
            attempt: job["attempt"].as_u64().and_then(|attempt| u32::try_from(attempt).ok()).unwrap_or(0),
            run: text(&job["result"]["run"]),
            code: text(&job["error"]["code"]),
            is_noted: job["result_dropped"].is_string(),
        })
    }
}
