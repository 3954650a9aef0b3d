//! A million ended jobs: a list costs what it costs with few, a search finds a rare error in slices, and what failed is
//! retried until it has succeeded, by requests and by `galley`.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use testkit::{RedisFill, eventually, redis};

use crate::{
    dashboard::Visitor,
    galley::{GalleyProgram, run_galley},
    idle_cost::count_commands,
    kit::GalleyKit,
};

/// A million jobs in ten queues, of which a few hundred timed out.
pub(crate) const MILLION: RedisFill = RedisFill { queues: 10, completed: 99_000, discarded: 1000, timed_out_every: 20 };
/// The same in a thousand queues.
const MANY_QUEUES: RedisFill = RedisFill { queues: 1000, completed: 980, discarded: 20, timed_out_every: 20 };

pub(crate) async fn fill(kit: &GalleyKit, fill: RedisFill) {
    let url = kit.redis.url();
    tokio::task::spawn_blocking(move || fill.write(&url)).await.expect("a thread").expect("redis takes it");
}

async fn get(kit: &GalleyKit, query: &str) -> Value {
    let response = kit.get(&format!("/ojs/v1/admin/jobs?{query}")).await;
    assert_eq!(response.status(), 200, "{query}");
    response.json().await.expect("JSON")
}

async fn bulk_retry(kit: &GalleyKit, more: Value) -> Value {
    let mut body = json!({ "filter": { "state": "discarded", "error": "upstream timed out" } });
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    let response = kit.post("/ojs/v1/admin/jobs/bulk/retry", &body).await;
    assert_eq!(response.status(), 200);
    response.json().await.expect("JSON")
}

/// The longest time that a search may take of Redis at once.
const MAX_REDIS_USEC: u64 = 50_000;

/// How often Redis ran each command, and the microseconds that it took together.
async fn command_costs(connection: &redis::aio::MultiplexedConnection) -> BTreeMap<String, (u64, u64)> {
    let info: String =
        redis::cmd("INFO").arg("commandstats").query_async(&mut connection.clone()).await.expect("redis runs");
    let read = |line: &str| {
        let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(':')?;
        let number = |name: &str| rest.split(',').find_map(|part| part.strip_prefix(name)?.parse().ok());
        Some((name.to_owned(), (number("calls=")?, number("usec=")?)))
    };
    info.lines().filter_map(read).collect()
}

/// Checks that no command of Redis takes longer than a search may, in the mean of its calls since then.
async fn check_costs(connection: &redis::aio::MultiplexedConnection, before: &BTreeMap<String, (u64, u64)>) {
    for (name, (calls, usec)) in command_costs(connection).await {
        let (calls_before, usec_before) = before.get(&name).copied().unwrap_or_default();
        let (calls, usec) = (calls - calls_before, usec - usec_before);
        assert!(usec <= calls * MAX_REDIS_USEC, "{name}: {calls} calls took {usec} us of Redis");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_million_ended_jobs_are_listed_searched_and_what_failed_is_retried_and_succeeds() {
    let kit = GalleyKit::start().await;
    fill(&kit, MILLION).await;
    let connection = kit.redis.connection().await;
    let (failed, costs) = (MILLION.timed_out(), command_costs(&connection).await);

    // A list looks at what it shows and at the first candidates of each place, whatever lies behind
    let before = count_commands(&connection).await;
    let list = get(&kit, "limit=50").await;
    let commands = count_commands(&connection).await - before;
    assert_eq!(list["items"].as_array().map(Vec::len), Some(50));
    assert!(list["examined"].as_u64().is_some_and(|examined| examined <= 100), "{}", list["examined"]);
    // About ten for each queue and one for each job, with those of maintenance meanwhile
    assert!(commands < 400, "{commands} commands for a list");
    let deep = get(&kit, &format!("limit=50&after={}", list["next"].as_str().expect("more"))).await;
    assert!(deep["examined"].as_u64().is_some_and(|examined| examined <= 100));
    assert_eq!(get(&kit, "per_page=1").await["pagination"]["total"], MILLION.jobs());

    // A rare condition over everything stops early, and goes on from there
    let first = get(&kit, "q=error:nowhere&limit=10").await;
    assert_eq!((&first["complete"], &first["items"]), (&json!(false), &json!([])));
    assert!(first["examined"].as_u64().is_some_and(|examined| (20_000..30_000).contains(&examined)));
    let second = get(&kit, &format!("q=error:nowhere&limit=10&after={}", first["next"].as_str().expect("more"))).await;
    assert_ne!(second["next"], first["next"]);

    // Something failed: which, how many, again
    let found = get(&kit, "q=state:discarded%20error:%22timed%20out%22&limit=1000").await;
    assert_eq!(found["items"].as_array().map(Vec::len), Some(failed));
    assert_eq!((&found["complete"], &found["next"]), (&json!(true), &json!(null)));
    let counted = bulk_retry(&kit, json!({ "dry_run": true })).await;
    assert_eq!((&counted["matched"], &counted["succeeded"]), (&json!(failed), &json!(0)));
    let bounded = bulk_retry(&kit, json!({ "confirm": true, "limit": 200, "max_matched": failed })).await;
    assert_eq!((&bounded["succeeded"], bounded["next"].is_string()), (&json!(200), true));
    let rest = bulk_retry(&kit, json!({ "confirm": true })).await;
    assert_eq!((&rest["succeeded"], &rest["next"]), (&json!(failed - 200), &json!(null)));
    check_costs(&connection, &costs).await;
    let _worker = start_worker(&kit).await;
    wait_for_success(&kit).await;
    assert_eq!(bulk_retry(&kit, json!({ "dry_run": true })).await["matched"], 0);
}

/// Starts a worker of all queues.
async fn start_worker(kit: &GalleyKit) -> testkit::ServiceProcess {
    kit.start_worker(&[("GALLEY__QUEUE_WORKER__QUEUES", MILLION.queue_names().join(",").as_str())]).await
}

async fn wait_for_success(kit: &GalleyKit) {
    eventually("all that failed have succeeded", || async {
        let done = get(kit, "q=state:completed%20error:%22timed%20out%22%20ended_since:10m&limit=1000").await;
        (done["items"].as_array().map(Vec::len) == Some(MILLION.timed_out())).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn among_a_million_jobs_galley_finds_what_failed_and_retries_it_until_it_has_succeeded() {
    let galley = GalleyProgram::start().await;
    fill(&galley.kit, MILLION).await;
    let failed = MILLION.timed_out();
    // What is wrong, and how much of it
    let groups = galley.run(&["dead", "list"]).await.done();
    assert!(groups.contains("upstream Timed Out") && groups.contains("no such user"), "{groups}");
    let search = "state:discarded error:\"timed out\"";
    let listed = galley.json(&["jobs", "list", search, "--limit", "1000"]).await;
    assert_eq!(listed["items"].as_array().map(Vec::len), Some(failed));
    let counted = galley.run(&["jobs", "retry", "--matching", search, "--dry-run"]).await.done();
    assert!(counted.starts_with(&format!("{failed} jobs match")), "{counted}");
    let _worker = start_worker(&galley.kit).await;
    let retried = galley.run(&["jobs", "retry", "--matching", search, "--yes"]).await.done();
    assert_eq!(retried.trim(), format!("{failed} retried"));
    let url = galley.kit.gateway.url("");
    eventually("all that failed have succeeded", || async {
        let done =
            ["jobs", "list", "state:completed error:\"timed out\" ended_since:10m", "--limit", "1000", "--quiet"];
        let ids = run_galley(&done, &[("GALLEY_URL", &url)], "").await.done();
        (ids.lines().count() == failed).then_some(())
    })
    .await;
    let left = galley.run(&["jobs", "retry", "--matching", search, "--dry-run"]).await.done();
    assert!(left.starts_with("0 jobs match"), "{left}");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_thousand_queues_and_a_million_jobs_each_page_takes_a_bounded_number_of_commands_and_bytes() {
    let kit = GalleyKit::start().await;
    fill(&kit, MANY_QUEUES).await;
    let connection = kit.redis.connection().await;
    let mut visitor = Visitor::new(&kit.gateway);
    // The first visits look at some queues each
    for _ in 0..3 {
        assert_eq!(visitor.page("/").await.0, 200);
    }
    let output = async || {
        let info: redis::InfoDict =
            redis::cmd("INFO").arg("stats").query_async(&mut connection.clone()).await.expect("redis runs");
        info.get::<u64>("total_net_output_bytes").expect("a number")
    };
    for (path, max_commands, max_page) in [
        ("/", 700, 100_000),
        ("/ui/jobs", 10_000, 150_000),
        ("/ui/jobs?q=state%3Adiscarded", 5_000, 150_000),
        ("/ui/queues", 3_000, 400_000),
        ("/ui/dead-letters", 12_000, 400_000),
    ] {
        let (commands, bytes) = (count_commands(&connection).await, output().await);
        let (status, page) = visitor.page(path).await;
        let (commands, bytes) = (count_commands(&connection).await - commands, output().await - bytes);
        println!("{path}: {commands} commands, {bytes} bytes of Redis, {} bytes of page", page.len());
        assert_eq!(status, 200, "{path}");
        assert!(commands < max_commands, "{path}: {commands} commands");
        assert!(bytes < 12_000_000, "{path}: {bytes} bytes of Redis");
        assert!(page.len() < max_page, "{path}: a page of {} bytes", page.len());
    }
    let before = count_commands(&connection).await;
    let list = get(&kit, "per_page=20").await;
    let commands = count_commands(&connection).await - before;
    assert_eq!((&list["pagination"]["total"], list["items"].as_array().map(Vec::len)), (&json!(1_000_000), Some(20)));
    assert!(commands < 20_000, "{commands} commands for a page of the API");
}
