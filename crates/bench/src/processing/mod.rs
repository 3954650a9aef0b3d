//! Jobs processed per second by one queue-worker, beside a bare Redis client that keeps the same guarantees in the same
//! round.

mod bare_client;

pub(crate) use self::bare_client::BareClient;
use crate::{
    galley::{BenchDurability, BenchGalley, noop_job},
    machine::scheduler_times_ms,
    peers::{PEERS, Peer, PeerRound},
    report::{BenchPlot, BenchReport, median},
    scope::BenchScope,
};

const QUEUE: &str = "batched";
/// Entries in one pipeline of the bare client.
const PIPELINE_SIZE: u32 = 100;

/// What came of one round: jobs per second, and microseconds of processor time for a job.
struct ProcessingRound {
    processed: f64,
    worker_micros: f64,
    redis_micros: f64,
    bare: f64,
    bare_redis_micros: f64,
}

pub(crate) async fn run(durability: BenchDurability, scope: BenchScope) -> anyhow::Result<BenchReport> {
    let mut report = BenchReport::new("processing");
    let (mut all, mut peers) = (Vec::new(), peers_of(scope));
    for _ in 0..scope.rounds() {
        all.push(run_round(&mut report, durability, scope.jobs()).await?);
        for (peer, rounds) in &mut peers {
            // One that fails once is not tried again
            if rounds.iter().all(Result::is_ok) {
                println!("   {}", peer.name);
                rounds.push(peer.run_round(durability, 1).await);
            }
        }
    }
    let of = |figure: fn(&ProcessingRound) -> f64| median(all.iter().map(figure).collect());
    report.add_note(format!(
        "medians of {} rounds of {} no-op jobs with an argument of 200 bytes; one queue-worker, defaults; the first tenth \
         warms up",
        scope.rounds(),
        scope.jobs()
    ));
    report.add_figure("jobs processed by one queue-worker", of(|round| round.processed), "1/s");
    report.add_figure("bare client: fenced, batches of 128, results kept", of(|round| round.bare), "1/s");
    report.add_with_goal("processed / bare fenced", of(|round| round.processed / round.bare), "", ">= 0.7");
    report.add_figure("queue-worker: processor time for a job", of(|round| round.worker_micros), "us");
    report.add_figure("Redis: processor time for a job", of(|round| round.redis_micros), "us");
    report.add_figure(
        "Redis: processor time for an entry of the bare client",
        of(|round| round.bare_redis_micros),
        "us",
    );
    let mut bars = vec![
        ("Galley, 1 queue-worker".to_owned(), of(|round| round.processed)),
        ("limit: bare fenced client".to_owned(), of(|round| round.bare)),
    ];
    for (peer, rounds) in peers {
        bars.extend(add_peer(&mut report, peer, rounds, &all).map(|rate| (peer.name.to_owned(), rate)));
    }
    let title = "No-op jobs processed per second, results kept".to_owned();
    report.add_plot(BenchPlot::Bars { name: "processing", title, bars });
    Ok(report)
}

/// Another system, and what came of its rounds.
type PeerRounds = (&'static Peer, Vec<anyhow::Result<PeerRound>>);

fn peers_of(scope: BenchScope) -> Vec<PeerRounds> {
    let peers = if scope.has_peers() { PEERS } else { &[] };
    peers.iter().map(|peer| (peer, Vec::new())).collect()
}

fn add_peer(
    report: &mut BenchReport,
    peer: &Peer,
    rounds: Vec<anyhow::Result<PeerRound>>,
    ours: &[ProcessingRound],
) -> Option<f64> {
    let name = format!("{} {}", peer.name, peer.version());
    let rounds = match rounds.into_iter().collect::<anyhow::Result<Vec<_>>>() {
        Ok(rounds) => rounds,
        Err(error) => {
            report.add_note(format!("{name}: no figure: {error:#}"));
            return None;
        }
    };
    let of = |figure: fn(&PeerRound) -> f64| median(rounds.iter().map(figure).collect());
    report.add_note(format!("{name}: {}", peer.setting));
    report.add_figure(format!("{name}: processed"), of(|round| round.processed), "1/s");
    report.add_figure(format!("{name}: enqueued"), of(|round| round.enqueued), "1/s");
    report.add_figure(format!("{name}: a waiting job"), of(|round| round.bytes_per_waiting_job), "bytes");
    let ratios = ours.iter().zip(&rounds).map(|(ours, theirs)| ours.processed / theirs.processed).collect();
    report.add_with_goal(format!("processed / {}", peer.name), median(ratios), "", peer.goal);
    Some(of(|round| round.processed))
}

/// One round. Each side has a Redis of its own, so that neither inherits what the other has stored.
async fn run_round(
    report: &mut BenchReport,
    durability: BenchDurability,
    jobs: u32,
) -> anyhow::Result<ProcessingRound> {
    let (processed, worker_micros, redis_micros, result_bytes) = {
        let galley = BenchGalley::start(durability).await;
        let bodies: Vec<String> = (0..jobs).map(|_| noop_job(QUEUE)).collect();
        let ids = galley.enqueue_all(&bodies).await?;
        let redis = galley.redis_process_id().await?;
        let (redis_before, _) = scheduler_times_ms(redis);
        let worker = galley.start_worker(QUEUE, &[]).await;
        let (worker_before, _) = scheduler_times_ms(worker.process_id());
        let processed = galley.completed_per_second(QUEUE, jobs).await?;
        let micros = |before: f64, process: u32| (scheduler_times_ms(process).0 - before) * 1000.0 / f64::from(jobs);
        let costs = (micros(worker_before, worker.process_id()), micros(redis_before, redis));
        worker.terminate().await;
        let stats = galley.stats(QUEUE).await?;
        report.check(stats.has_only_completed(jobs.into()), || {
            format!("not every job completed exactly once: {}", stats.to_line())
        });
        (processed, costs.0, costs.1, galley.result_bytes(QUEUE, &ids[0]).await?)
    };
    let galley = BenchGalley::start(durability).await;
    let client = BareClient::open(&galley.redis).await?;
    client.add_entries(jobs, PIPELINE_SIZE).await?;
    let redis = galley.redis_process_id().await?;
    let (before, _) = scheduler_times_ms(redis);
    let bare = client.process_entries(jobs, result_bytes).await?;
    let bare_redis_micros = (scheduler_times_ms(redis).0 - before) * 1000.0 / f64::from(jobs);
    Ok(ProcessingRound { processed, worker_micros, redis_micros, bare, bare_redis_micros })
}
