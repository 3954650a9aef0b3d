//! What the check of a key, and TLS, cost a request: the same POST without both and with each, in turn on one machine.

use std::sync::Arc;

use anyhow::{Context, ensure};
use serde_json::Value;
use testkit::TestAuthority;

use crate::{
    galley::{BenchDurability, BenchGalley, noop_job},
    http::{self, HttpConnection},
    load::{self, requests_per_second},
    load_connection::{LoadTarget, STREAMS_PER_CONNECTION},
    machine::scheduler_times_ms,
    report::{BenchReport, median},
    scope::BenchScope,
};

/// Requests under way at a time.
const REQUESTS: u32 = 64;
/// How often each is measured in a round: in turn, so that a slow moment of the machine meets both.
const TURNS: usize = 3;
const FIRST_KEY: &str = "glk_bench_0123456789012345678901234567890123456789012";

pub(crate) async fn run(durability: BenchDurability, scope: BenchScope) -> anyhow::Result<BenchReport> {
    let mut report = BenchReport::new("access");
    let open = BenchGalley::start(durability).await;
    let keyed = BenchGalley::start_with(durability, &[("GALLEY__AUTH__FIRST_KEY", FIRST_KEY)]).await;
    let without = http::post_request("/ojs/v1/jobs", &noop_job("single"));
    let with = with_key(&without, &make_key(&keyed).await?);
    let authority = Arc::new(TestAuthority::new());
    let encrypted = BenchGalley::start_with_tls(durability, &authority).await;
    let tls_address = encrypted.gateway.address();
    let (over_tls, over_http2) =
        (LoadTarget::Tls(tls_address, authority.clone()), LoadTarget::Http2(tls_address, authority));
    let [mut plain, mut checked, mut tls, mut http2] = std::array::from_fn(|_| Measured::default());
    for _ in 0..TURNS * scope.rounds() as usize {
        plain.measure(&open, open.gateway.address().into(), &without).await?;
        checked.measure(&keyed, keyed.gateway.address().into(), &with).await?;
        tls.measure(&encrypted, over_tls.clone(), &without).await?;
        http2.measure(&encrypted, over_http2.clone(), &without).await?;
    }
    report.add_note(format!(
        "medians of {} turns; {REQUESTS} requests at a time, each on a connection that stays open, with HTTP/2 \
         {STREAMS_PER_CONNECTION} on each; the key is one in Redis; TLS 1.3",
        plain.per_second.len()
    ));
    // Of each turn, so that a slow one counts for both
    let ratio = |rates: &[f64]| median(rates.iter().zip(&plain.per_second).map(|(own, plain)| own / plain).collect());
    report.add_figure("POST /ojs/v1/jobs without keys", median(plain.per_second.clone()), "1/s");
    report.add_figure("POST /ojs/v1/jobs with a key", median(checked.per_second.clone()), "1/s");
    report.add_with_goal("with a key / without", ratio(&checked.per_second), "", ">= 0.97");
    report.add_figure("POST /ojs/v1/jobs over TLS, HTTP/1.1", median(tls.per_second.clone()), "1/s");
    report.add_figure("over TLS / without", ratio(&tls.per_second), "");
    report.add_figure("POST /ojs/v1/jobs over TLS, HTTP/2", median(http2.per_second.clone()), "1/s");
    report.add_figure("over HTTP/2 / without TLS", ratio(&http2.per_second), "");
    report.add_figure("gateway: processor time for a POST without keys", median(plain.cpu_micros), "us");
    report.add_figure("gateway: processor time for a POST with a key", median(checked.cpu_micros), "us");
    report.add_figure("gateway: processor time for a POST over TLS, HTTP/1.1", median(tls.cpu_micros), "us");
    report.add_figure("gateway: processor time for a POST over TLS, HTTP/2", median(http2.cpu_micros), "us");
    Ok(report)
}

/// Requests per second, and the gateway's processor time for one, of each turn.
#[derive(Default)]
struct Measured {
    per_second: Vec<f64>,
    cpu_micros: Vec<f64>,
}

impl Measured {
    async fn measure(&mut self, galley: &BenchGalley, target: LoadTarget, request: &str) -> anyhow::Result<()> {
        let process = galley.gateway.process_id();
        load::warm_up(target.clone(), request, REQUESTS).await?;
        let (before, _) = scheduler_times_ms(process);
        let began = std::time::Instant::now();
        let per_second = requests_per_second(target, request, REQUESTS).await?;
        let ran = scheduler_times_ms(process).0 - before;
        self.per_second.push(per_second);
        self.cpu_micros.push(ran * 1000.0 / (per_second * began.elapsed().as_secs_f64()));
        Ok(())
    }
}

fn with_key(request: &str, key: &str) -> String {
    request.replacen("\r\n", &format!("\r\nauthorization: Bearer {key}\r\n"), 1)
}

/// A key in Redis that may enqueue.
async fn make_key(galley: &BenchGalley) -> anyhow::Result<String> {
    let request = http::post_request("/v1/admin/keys", r#"{"name":"bench","scopes":["jobs:write"],"queues":["s*"]}"#);
    let mut connection = HttpConnection::open(galley.gateway.address()).await?;
    let (status, body) = connection.send(&with_key(&request, FIRST_KEY)).await?;
    ensure!(status == 201, "a key was refused with {status}");
    let made: Value = serde_json::from_str(&body)?;
    Ok(made["key"].as_str().context("a key")?.to_owned())
}
