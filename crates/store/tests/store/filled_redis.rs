//! Many queues and many jobs: what a Redis is filled with for tests is what the store writes, and a list costs a few
//! commands for each queue.

use std::collections::BTreeSet;

use common::id::JobId;
use model::job::{JobFilter, JobState, RetryAdvice};
use serde_json::Value;
use store::jobs::SearchPage;
use testkit::{RedisFill, redis};

use crate::kit::{StoreKit, consumer, failure, fence};

fn fill(kit: &StoreKit, fill: RedisFill) {
    fill.write(&kit.server.url()).expect("redis takes it");
}

async fn search(kit: &StoreKit, text: &str, limit: usize) -> SearchPage {
    let filter = JobFilter::from_search_text(text, store::local_now()).expect("a search");
    kit.jobs.search(&filter, None, limit).await.expect("redis runs")
}

/// A number of `INFO stats`.
async fn server_stat(kit: &StoreKit, name: &str) -> u64 {
    let mut command = redis::cmd("INFO");
    let info: redis::InfoDict =
        command.arg("stats").query_async(&mut kit.server.connection().await).await.expect("redis runs");
    info.get(name).expect("a number")
}

/// The keys of a queue with their types, without ids and times.
async fn shape(kit: &StoreKit, queue: &str) -> BTreeSet<String> {
    let mut connection = kit.server.connection().await;
    let prefix = format!("galley:{{{queue}}}:");
    let keys: Vec<String> =
        redis::cmd("KEYS").arg(format!("{prefix}*")).query_async(&mut connection).await.expect("redis runs");
    let mut shapes = BTreeSet::new();
    for key in keys {
        let kind: String = redis::cmd("TYPE").arg(&key).query_async(&mut connection).await.expect("redis runs");
        let ttl: i64 = redis::cmd("PTTL").arg(&key).query_async(&mut connection).await.expect("redis runs");
        let mut name = key[prefix.len()..].split(':').next().unwrap_or_default().to_owned();
        if kind == "string" {
            let text: String = redis::cmd("GET").arg(&key).query_async(&mut connection).await.expect("redis runs");
            let (_, content) = text.split_once('\n').expect("a line with the attempt");
            name += match serde_json::from_str::<Value>(content) {
                Ok(job) => job.as_object().expect("a job").keys().cloned().collect::<Vec<_>>().join(" "),
                Err(_) => format!(" {} words", content.lines().next().expect("a line").split(' ').count()),
            }
            .as_str();
        }
        shapes.insert(format!("{name} {kind} {}", if ttl > 0 { "expires" } else { "stays" }));
    }
    shapes
}

#[tokio::test]
async fn what_a_redis_is_filled_with_is_what_the_store_writes() {
    let kit = StoreKit::start();
    fill(&kit, RedisFill { queues: 1, completed: 250, discarded: 40, timed_out_every: 20 });
    let worker = consumer();
    let retry = r#""retry":{"max_attempts":1,"on_exhaustion":"dead_letter"}"#;
    for _ in 0..2 {
        kit.enqueue(&format!(r#"{{"type":"test.echo","args":[1],{retry}}}"#)).await;
    }
    let failed = kit.claim_one(&worker).await;
    kit.jobs.fail(&failed, &fence(&worker), failure(1), RetryAdvice::Never).await.expect("redis runs");
    let completed = kit.claim_one(&worker).await;
    kit.complete(&worker, &completed, "1").await;

    let (filled, real) = (shape(&kit, "q0").await, shape(&kit, "default").await);
    // What only a queue with streams has
    let own = ["priorities", "s", "active", "leases"];
    let real: BTreeSet<String> =
        real.into_iter().filter(|shape| !own.iter().any(|name| shape.starts_with(&format!("{name} ")))).collect();
    assert_eq!(filled, real);
    let found = search(&kit, "queue:q0", 1000).await;
    assert_eq!((found.jobs.len(), found.examined), (290, 290));
    assert_eq!(search(&kit, "queue:q0 state:completed", 1000).await.jobs.len(), 250);
    assert_eq!(search(&kit, "queue:q0 error:\"timed out\"", 1000).await.jobs.len(), 2);
    assert_eq!(search(&kit, "queue:q0 is:dead", 1000).await.jobs.len(), 40);
    for job in found.jobs {
        let (located, queue) = kit.jobs.locate_with_queue(job.id).await.expect("redis runs").expect("it is there");
        assert_eq!((queue.as_str(), located.state()), ("q0", job.state));
    }
}

#[tokio::test]
async fn a_list_of_a_thousand_queues_takes_a_few_commands_for_each_and_shows_the_newest() {
    let kit = StoreKit::start();
    fill(&kit, RedisFill { queues: 1000, completed: 300, discarded: 20, timed_out_every: 20 });
    // The first search connects
    search(&kit, "queue:q0", 1).await;
    for (text, max_commands) in [("", 9000), ("state:discarded", 4000), ("state:completed", 4000)] {
        let (commands, bytes) =
            (server_stat(&kit, "total_commands_processed").await, server_stat(&kit, "total_net_output_bytes").await);
        let page = search(&kit, text, 50).await;
        let commands = server_stat(&kit, "total_commands_processed").await - commands;
        let bytes = server_stat(&kit, "total_net_output_bytes").await - bytes;
        assert_eq!((page.jobs.len(), page.complete), (50, true), "{text}");
        assert!(page.examined <= 100, "{text}: {} jobs are read for 50", page.examined);
        assert!(commands < max_commands, "{text}: {commands} commands");
        assert!(bytes < 5_000_000, "{text}: {bytes} bytes");
        assert!(page.jobs.is_sorted_by(|a, b| a.at >= b.at), "{text}: newest first");
        // The pages together are the list, each job once
        let filter = JobFilter::from_search_text(text, store::local_now()).expect("a search");
        let next = kit.jobs.search(&filter, page.cursor.as_ref(), 50).await.expect("redis runs");
        let whole = search(&kit, text, 100).await;
        let ids = |page: &SearchPage| page.jobs.iter().map(|job| job.id).collect::<Vec<JobId>>();
        assert_eq!([ids(&page), ids(&next)].concat(), ids(&whole), "{text}");
    }
    let counted = |text: &str| JobFilter::from_search_text(text, store::local_now()).expect("a search");
    assert_eq!(kit.jobs.count_plain(&counted("")).await.expect("redis runs"), 320_000);
    assert_eq!(kit.jobs.count_plain(&counted("state:discarded")).await.expect("redis runs"), 20_000);
}

#[tokio::test]
async fn jobs_that_were_created_too_late_or_are_due_too_early_are_not_read() {
    let kit = StoreKit::start();
    for number in 0..30 {
        let due = if number < 20 { "+PT1H" } else { "2999-01-01T00:00:00Z" };
        kit.enqueue(&format!(r#"{{"type":"a","args":[],"scheduled_at":"{due}"}}"#)).await;
    }
    let chosen = "ffffffff-ffff-7fff-8000-000000000001";
    kit.enqueue(&format!(r#"{{"id":"{chosen}","type":"a","args":[],"scheduled_at":"+PT1H"}}"#)).await;
    let found = search(&kit, "state:scheduled until:1h", 10).await;
    assert_eq!((found.jobs.len(), found.complete, found.cursor.is_none()), (0, true, true));
    assert_eq!(found.examined, 1, "only the one whose id says nothing of its time");
    // Before a day from now all were created, whatever the id says
    let all = search(&kit, "state:scheduled until:2999-01-01T00:00:00Z", 100).await;
    assert_eq!((all.jobs.len(), all.examined), (31, 31));
    // What is due before that time was created before, too
    let later = search(&kit, "state:scheduled since:2998-01-01T00:00:00Z", 100).await;
    assert_eq!((later.jobs.len(), later.examined), (0, 10));
    assert!(all.jobs.iter().all(|job| job.state == JobState::Scheduled));
}
