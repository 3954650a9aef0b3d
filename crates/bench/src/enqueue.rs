//! Jobs enqueued per second: one per request beside a bare route, and in batches beside a bare Redis client, in the same
//! round. Machines are noisy, and only the ratio of two figures of one run says something.

use anyhow::ensure;
use testkit::redis::AsyncCommands;

use crate::{
    bare_server::{BareServer, STORED_PATH, STORED_STREAM},
    galley::{BenchDurability, BenchGalley, batch_body, noop_job},
    http,
    load::{self, requests_per_second},
    machine::scheduler_times_ms,
    processing::BareClient,
    report::{BenchReport, median},
    scope::BenchScope,
};

/// Jobs in one batch request, and in one pipeline of the bare client.
const BATCH_SIZE: u32 = 100;
/// Connections of the single enqueues, and of the batches.
const SINGLE_CONNECTIONS: u32 = 64;
const BATCH_CONNECTIONS: u32 = 8;

/// Requests per second, and microseconds of the server's processor time for one.
#[derive(Clone, Copy)]
struct RequestCost {
    per_second: f64,
    cpu_micros: f64,
}

struct EnqueueRound {
    bare_route: RequestCost,
    /// The bare route, with one XADD before its answer: less than that no server can do that stores a job.
    bare_stored: RequestCost,
    single: RequestCost,
    batches: f64,
    gateway_micros: f64,
    redis_micros: f64,
    xadd: f64,
}

pub(crate) async fn run(durability: BenchDurability, scope: BenchScope) -> anyhow::Result<BenchReport> {
    let mut report = BenchReport::new("enqueue");
    let mut all = Vec::new();
    for _ in 0..scope.rounds() {
        all.push(run_round(durability, scope).await?);
    }
    let of = |figure: fn(&EnqueueRound) -> f64| median(all.iter().map(figure).collect());
    report.add_note(format!(
        "medians of {} rounds; jobs with an argument of 200 bytes; the bare route parses the same body and answers 201",
        scope.rounds()
    ));
    report.add_figure("POST /ojs/v1/jobs, 64 connections", of(|round| round.single.per_second), "1/s");
    report.add_figure("bare actix route, 64 connections", of(|round| round.bare_route.per_second), "1/s");
    let ratio = of(|round| round.single.per_second / round.bare_route.per_second);
    report.add_with_goal("single POST / bare route", ratio, "", ">= 0.6");
    report.add_figure("bare actix route with one XADD", of(|round| round.bare_stored.per_second), "1/s");
    let ratio = of(|round| round.single.per_second / round.bare_stored.per_second);
    report.add_figure("single POST / bare route with one XADD", ratio, "");
    let ceiling = of(|round| round.bare_stored.per_second / round.bare_route.per_second);
    report.add_figure("bare route with one XADD / bare route", ceiling, "");
    report.add_figure("gateway: processor time for a POST", of(|round| round.single.cpu_micros), "us");
    report.add_figure("bare route: processor time for a POST", of(|round| round.bare_route.cpu_micros), "us");
    report.add_figure(
        "bare route with one XADD: processor time for a POST",
        of(|round| round.bare_stored.cpu_micros),
        "us",
    );
    report.add_figure("jobs by batches of 100, 8 connections", of(|round| round.batches), "1/s");
    report.add_figure("bare client: XADD, 100 per pipeline", of(|round| round.xadd), "1/s");
    report.add_with_goal("batches / bare XADD", of(|round| round.batches / round.xadd), "", ">= 0.5");
    report.add_figure("gateway: processor time for a job in a batch", of(|round| round.gateway_micros), "us");
    report.add_figure("Redis: processor time for a job in a batch", of(|round| round.redis_micros), "us");
    Ok(report)
}

/// One round, on a Redis of its own, so that none inherits what the one before has stored.
async fn run_round(durability: BenchDurability, scope: BenchScope) -> anyhow::Result<EnqueueRound> {
    let jobs = scope.jobs();
    let galley = BenchGalley::start(durability).await;
    let address = galley.gateway.address();
    let request = http::post_request("/ojs/v1/jobs", &noop_job("single"));
    let (bare_route, bare_stored) = {
        let route = BareServer::start(&galley.redis.url(), None).await?;
        let stored = http::post_request(STORED_PATH, &noop_job("single"));
        let bare_route = measure_requests(route.address, route.process_id()?, &request).await?;
        (bare_route, measure_requests(route.address, route.process_id()?, &stored).await?)
    };
    let _: u64 = galley.redis.connection().await.del(STORED_STREAM).await?;
    let single = measure_requests(address, galley.gateway.process_id(), &request).await?;

    let batch: Vec<String> = (0..BATCH_SIZE).map(|_| noop_job("batched")).collect();
    let request = http::post_request("/ojs/v1/jobs/batch", &batch_body(&batch));
    let redis = galley.redis_process_id().await?;
    let (gateway_before, _) = scheduler_times_ms(galley.gateway.process_id());
    let (redis_before, _) = scheduler_times_ms(redis);
    let requests = load::count_per_second(address, &request, BATCH_CONNECTIONS, jobs / BATCH_SIZE).await?;
    let micros = |before: f64, process: u32| (scheduler_times_ms(process).0 - before) * 1000.0 / f64::from(jobs);
    let gateway_micros = micros(gateway_before, galley.gateway.process_id());
    let redis_micros = micros(redis_before, redis);
    let stats = galley.stats("batched").await?;
    ensure!(stats.available() == u64::from(jobs), "batches were lost: {}", stats.to_line());

    let xadd = BareClient::open(&galley.redis).await?.add_entries(jobs, BATCH_SIZE).await?;
    let batches = requests * f64::from(BATCH_SIZE);
    Ok(EnqueueRound { bare_route, bare_stored, single, batches, gateway_micros, redis_micros, xadd })
}

/// The same after a second of warm-up.
async fn measure_requests(address: std::net::SocketAddr, process: u32, request: &str) -> anyhow::Result<RequestCost> {
    load::warm_up(address, request, SINGLE_CONNECTIONS).await?;
    let (before, _) = scheduler_times_ms(process);
    let began = std::time::Instant::now();
    let per_second = requests_per_second(address, request, SINGLE_CONNECTIONS).await?;
    let ran = scheduler_times_ms(process).0 - before;
    let cpu_micros = ran * 1000.0 / (per_second * began.elapsed().as_secs_f64());
    Ok(RequestCost { per_second, cpu_micros })
}
