//! Every alert fires when the thing breaks that it is about: a real Prometheus with the real rules reads real services. Only the
//! windows and pauses of the rules are shorter.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use serde_json::{Value, json};
use testkit::{
    RedisPersistence, RedisServer, ServiceProcess, WebhookReceiver, WebhookReply, eventually, eventually_for, redis,
};

use crate::{
    kit::{GalleyKit, SHORT_LEASE, job_body},
    metrics::OFTEN,
    prometheus_server::Prometheus,
    sse::ChannelEventsClient,
    subscriptions_delivery::{PRIVATE, publish, put},
};

/// The alerts that the tests here make fire.
const FIRED: [&str; 19] = [
    "GalleyDataDamaged",
    "GalleyDeadLettersGrowing",
    "GalleyDown",
    "GalleyDurabilityLowered",
    "GalleyErrors",
    "GalleyJobsDiscarded",
    "GalleyLeaderMissing",
    "GalleyMessagesLost",
    "GalleyQueueOld",
    "GalleyQueueStuck",
    "GalleyRedisBudget",
    "GalleyRedisCannotSave",
    "GalleyRedisMemory",
    "GalleyRedisUnreachable",
    "GalleyResultsDropped",
    "GalleySubscriptionDisabled",
    "GalleySubscriptionLag",
    "GalleySubscriptionSilent",
    "GalleyWorkersLost",
];

const DEFAULT_QUEUE: Option<(&str, &str)> = Some(("queue", "default"));

fn repository(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn every_alert_has_a_test_that_breaks_the_thing() {
    let rules = repository("deploy/observability/rules/alerts.yml");
    let alerts: BTreeSet<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert_eq!(alerts, FIRED.into_iter().collect());
    let tests = include_str!("alerts.rs");
    for alert in FIRED {
        // Beside the list above
        assert!(tests.matches(&format!("\"{alert}\"")).count() > 1, "{alert} is in no test");
    }
}

/// A Redis with 64 MB.
async fn small_redis() -> RedisServer {
    let redis = RedisServer::start();
    let set = redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(64 << 20).to_owned();
    set.exec_async(&mut redis.connection().await).await.expect("redis runs");
    redis
}

async fn start_worker(kit: &GalleyKit, variables: &[(&str, &str)]) -> ServiceProcess {
    kit.start_worker(&[&OFTEN[..], &SHORT_LEASE, variables].concat()).await
}

async fn batch(kit: &GalleyKit, job: &Value, count: usize) -> u16 {
    let jobs: Vec<_> = std::iter::repeat_n(job, count).collect();
    kit.post("/ojs/v1/jobs/batch", &json!({ "jobs": jobs })).await.status().as_u16()
}

/// Side by side, as each waits most of the time, and beside nothing else: alerts must be quiet that a slow machine could raise.
#[tokio::test(flavor = "multi_thread")]
async fn alone_every_alert_fires_and_ends() {
    tokio::join!(
        alerts_of_jobs_fire_when_workers_are_missing_fail_or_die(),
        alerts_of_memory_fire_when_redis_gets_full(),
        alerts_of_subscriptions_fire_when_nobody_delivers_endpoints_refuse_or_messages_are_lost(),
        alerts_of_redis_and_of_the_leader_fire_when_these_fail(),
    );
}

async fn alerts_of_jobs_fire_when_workers_are_missing_fail_or_die() {
    let kit = GalleyKit::start_with(RedisServer::start(), &[&OFTEN[..], &SHORT_LEASE].concat()).await;
    let Some(prometheus) = Prometheus::start(&[("gateway", &kit.gateway)]).await else { return };
    for alert in FIRED {
        prometheus.ends(alert).await;
    }
    // Nobody works
    for _ in 0..3 {
        kit.enqueue(&job_body("test.noop", &json!([]))).await;
    }
    prometheus.fires("GalleyQueueStuck", DEFAULT_QUEUE).await;
    prometheus.fires("GalleyQueueOld", DEFAULT_QUEUE).await;
    let worker = start_worker(&kit, &[]).await;
    prometheus.read_from(&[("gateway", &kit.gateway), ("queue-worker", &worker)]);
    prometheus.ends("GalleyQueueStuck").await;
    prometheus.ends("GalleyQueueOld").await;
    prometheus.is_quiet("GalleyDeadLettersGrowing").await;
    // Jobs fail for good
    let retry = json!({ "max_attempts": 1, "on_exhaustion": "dead_letter" });
    let failing = json!({ "type": "test.fail_always", "args": [], "retry": retry });
    for alert in ["GalleyDeadLettersGrowing", "GalleyJobsDiscarded"] {
        prometheus
            .fires_while(alert, DEFAULT_QUEUE, || async {
                kit.enqueue(&failing).await;
            })
            .await;
    }
    prometheus.ends("GalleyJobsDiscarded").await;
    prometheus.ends("GalleyDeadLettersGrowing").await;
    // A worker dies with a job in its hands
    let doomed = start_worker(&kit, &[("GALLEY__QUEUE_WORKER__QUEUES", "fatal")]).await;
    let id = kit.enqueue(&json!({ "type": "test.slow", "args": [600_000], "queue": "fatal" })).await;
    kit.wait_for_state(&id, "active").await;
    doomed.kill();
    prometheus.fires("GalleyWorkersLost", Some(("queue", "fatal"))).await;
    prometheus.ends("GalleyWorkersLost").await;
    // Requests fail
    kit.redis_command(&["CONFIG", "SET", "min-replicas-to-write", "1"]).await;
    prometheus
        .fires_while("GalleyErrors", None, || async {
            let refused = kit.post("/ojs/v1/jobs", &job_body("test.noop", &json!([]))).await;
            assert_eq!(refused.status(), 503);
        })
        .await;
    kit.redis_command(&["CONFIG", "SET", "min-replicas-to-write", "0"]).await;
    prometheus.ends("GalleyErrors").await;
}

async fn alerts_of_memory_fire_when_redis_gets_full() {
    let redis = small_redis().await;
    let kit = GalleyKit::start_with(redis, &OFTEN).await;
    let Some(prometheus) = Prometheus::start(&[("gateway", &kit.gateway)]).await else { return };
    // Jobs that nobody runs take their whole share of the memory
    let job = json!({ "type": "test.echo", "args": ["x".repeat(20_000)] });
    let refused = || async { (batch(&kit, &job, 8).await == 503).then_some(()) };
    eventually_for(Duration::from_mins(2), "jobs are refused", refused).await;
    prometheus.fires("GalleyRedisBudget", Some(("kind", "waiting_jobs"))).await;
    // And something else the rest
    let fill =
        ["EVAL", "for n = 1, 100 do redis.call('SET', 'other:' .. ARGV[1] .. n, string.rep('x', 20000)) end", "0"];
    let rounds = std::sync::atomic::AtomicUsize::new(0);
    let filled = || async {
        let round = rounds.fetch_add(1, std::sync::atomic::Ordering::Relaxed).to_string();
        let info: redis::InfoDict =
            redis::from_redis_value(kit.redis_command(&["INFO", "memory"]).await).expect("fields");
        if info.get::<u64>("used_memory").expect("a number") < (58 << 20) {
            kit.redis_command(&[&fill[..], &[round.as_str()]].concat()).await;
        }
    };
    prometheus.fires_while("GalleyRedisMemory", None, filled).await;
    let worker = start_worker(&kit, &[]).await;
    prometheus.read_from(&[("gateway", &kit.gateway), ("queue-worker", &worker)]);
    prometheus
        .fires_while("GalleyResultsDropped", None, || async {
            filled().await;
            // Refused while too many wait
            kit.post("/ojs/v1/jobs", &job_body("test.echo", &json!(["x"]))).await;
        })
        .await;
    kit.redis_command(&["CONFIG", "SET", "maxmemory", "1gb"]).await;
    prometheus.ends("GalleyRedisMemory").await;
    prometheus.ends("GalleyRedisBudget").await;
    prometheus.ends("GalleyResultsDropped").await;
}

async fn alerts_of_subscriptions_fire_when_nobody_delivers_endpoints_refuse_or_messages_are_lost() {
    let backlog =
        [PRIVATE, ("GALLEY__CHANNELS__HISTORY_MAX", "10"), ("GALLEY__CHANNELS__BACKLOG_MAX_MESSAGES", "1500")];
    let variables = [&OFTEN[..], &backlog].concat();
    let kit = GalleyKit::start_with(RedisServer::start(), &variables).await;
    let Some(prometheus) = Prometheus::start(&[("gateway", &kit.gateway)]).await else { return };
    let late = Some(("subscription", "late"));
    let deliver = json!({ "queue": { "queue": "from-news", "type": "test.echo" } });
    put(&kit, "late", &json!({ "channels": ["news"], "deliver": deliver })).await;
    let publish_many = async |count: usize| {
        let messages: Vec<_> = (0..count).map(|n| json!({ "data": n })).collect();
        for some in messages.chunks(100) {
            let answer = kit.post("/v1/channels/news/messages/batch", &json!(some)).await;
            assert!(answer.status().is_success(), "{}", answer.text().await.expect("text"));
        }
    };
    publish_many(1100).await;
    prometheus.fires("GalleySubscriptionLag", late).await;
    prometheus.fires("GalleySubscriptionSilent", late).await;
    prometheus.is_quiet("GalleyMessagesLost").await;
    publish_many(1000).await;
    prometheus.fires("GalleyMessagesLost", late).await;
    let worker = ServiceProcess::start("pubsub-worker", &kit.redis, &variables).await;
    worker.wait_until_ready().await;
    prometheus.read_from(&[("gateway", &kit.gateway), ("pubsub-worker", &worker)]);
    prometheus.ends("GalleySubscriptionLag").await;
    prometheus.ends("GalleySubscriptionSilent").await;
    prometheus.ends("GalleyMessagesLost").await;
    // The endpoint does not want any more
    let receiver = WebhookReceiver::start([WebhookReply::new(410, "", "gone")]).await;
    put(&kit, "gone", &json!({ "channels": ["c"], "deliver": { "http": { "url": receiver.url("/") } } })).await;
    publish(&kit, "c", "text/plain", "m").await;
    prometheus.fires("GalleySubscriptionDisabled", Some(("subscription", "gone"))).await;
    prometheus.ends("GalleySubscriptionDisabled").await;
}

async fn alerts_of_redis_and_of_the_leader_fire_when_these_fail() {
    let redis = RedisServer::start_with_options(RedisPersistence::Always, &["--enable-protected-configs", "yes"]);
    let lease = [("GALLEY__MAINTENANCE__LEADER_LEASE_MS", "1000"), SHORT_LEASE[0], SHORT_LEASE[1]];
    let variables = [&OFTEN[..], &lease].concat();
    let mut kit = GalleyKit::start_with(redis, &variables).await;
    let worker = kit.start_worker(&variables).await;
    let Some(prometheus) = Prometheus::start(&[("gateway", &kit.gateway), ("queue-worker", &worker)]).await else {
        return;
    };
    // Somebody lowers the durability. The alert compares with what the rules have recorded, which comes after what was read
    eventually("the durability is recorded", || async {
        (!prometheus.query("galley:redis_durability_level:max == 2").await.is_empty()).then_some(())
    })
    .await;
    for level in ["no", "everysec"] {
        kit.redis_command(&["CONFIG", "SET", "appendfsync", level]).await;
        prometheus.fires("GalleyDurabilityLowered", None).await;
        kit.redis_command(&["CONFIG", "SET", "appendfsync", "always"]).await;
        prometheus.ends("GalleyDurabilityLowered").await;
    }
    // The disk fails. Redis would take no writes, and nothing else would be seen
    kit.redis_command(&["CONFIG", "SET", "stop-writes-on-bgsave-error", "no"]).await;
    let dir: Vec<String> = redis::from_redis_value(kit.redis_command(&["CONFIG", "GET", "dir"]).await).expect("texts");
    let gone = tempfile::tempdir().expect("a folder");
    kit.redis_command(&["CONFIG", "SET", "dir", gone.path().to_str().expect("UTF-8")]).await;
    drop(gone);
    kit.redis_command(&["BGSAVE"]).await;
    prometheus.fires("GalleyRedisCannotSave", Some(("file", "rdb"))).await;
    kit.redis_command(&["CONFIG", "SET", "dir", &dir[1]]).await;
    kit.redis_command(&["BGSAVE"]).await;
    prometheus.ends("GalleyRedisCannotSave").await;
    // Another program holds the key of the leader, or no process does the maintenance
    prometheus
        .fires_while("GalleyLeaderMissing", None, || async {
            kit.redis_command(&["SET", "galley:leader", "another program", "PX", "1000"]).await;
        })
        .await;
    prometheus.ends("GalleyLeaderMissing").await;
    // Another program writes into a queue
    kit.enqueue(&job_body("test.noop", &json!([]))).await;
    kit.redis_command(&["XADD", "galley:{default}:s:0", "*", "theirs", "1"]).await;
    prometheus.fires("GalleyDataDamaged", None).await;
    kit.redis_command(&["DEL", "galley:{default}:s:0"]).await;
    prometheus.ends("GalleyDataDamaged").await;
    // Redis is gone
    kit.redis.kill();
    prometheus.fires("GalleyRedisUnreachable", None).await;
    kit.redis.restart();
    prometheus.ends("GalleyRedisUnreachable").await;
    // The gateway is gone
    let GalleyKit { gateway, redis, .. } = kit;
    gateway.kill();
    prometheus.fires("GalleyDown", None).await;
    let gateway = ServiceProcess::start("gateway", &redis, &variables).await;
    prometheus.read_from(&[("gateway", &gateway), ("queue-worker", &worker)]);
    prometheus.ends("GalleyDown").await;
}

/// Panels that show something only after trouble, and what is not in every installation.
const QUIET_PANELS: [&str; 5] = [
    "Leases that expired, attempts that got stuck",
    "Messages that were lost",
    "Messages trimmed from histories",
    "Errors by kind",
    "What was dropped for want of memory",
];

#[tokio::test(flavor = "multi_thread")]
async fn alone_every_panel_of_the_dashboards_shows_something_where_services_work() {
    let redis = small_redis().await;
    // What each kind takes is not measured while Redis is nearly empty
    let fill = redis::cmd("SETRANGE").arg("other").arg(10_000_000).arg("x").to_owned();
    fill.exec_async(&mut redis.connection().await).await.expect("redis runs");
    let variables = [&OFTEN[..], &[PRIVATE, ("GALLEY__CHANNELS__PROBE_MS", "100")]].concat();
    let kit = GalleyKit::start_with(redis, &variables).await;
    let worker = kit.start_worker(&variables).await;
    let pubsub_worker = ServiceProcess::start("pubsub-worker", &kit.redis, &variables).await;
    pubsub_worker.wait_until_ready().await;
    let services = [("gateway", &kit.gateway), ("queue-worker", &worker), ("pubsub-worker", &pubsub_worker)];
    let Some(prometheus) = Prometheus::start(&services).await else { return };
    let deliver = json!({ "queue": { "queue": "from-news", "type": "test.echo" } });
    put(&kit, "news", &json!({ "channels": ["news"], "deliver": deliver })).await;
    let _reader = ChannelEventsClient::open(kit.gateway.url("/v1/channels/news/stream?member=ada"), None).await;
    let cron =
        json!({ "name": "often", "expression": "* * * * * *", "job_template": { "type": "test.noop", "args": [] } });
    let registered = kit.post("/ojs/v1/cron", &cron).await;
    assert!(registered.status().is_success(), "{}", registered.text().await.expect("text"));
    let work = || async {
        kit.enqueue(&json!({ "type": "test.echo", "args": ["x"] })).await;
        kit.enqueue(&json!({ "type": "test.echo", "args": [], "scheduled_at": "+PT0.2S" })).await;
        kit.post("/v1/channels/news/messages", &json!({ "a": 1 })).await;
        let steps = json!([{ "type": "test.noop", "args": [] }]);
        kit.post("/ojs/v1/workflows", &json!({ "type": "group", "jobs": steps })).await;
    };
    // A job that takes longer than a third of its lease is renewed
    kit.enqueue(&json!({ "type": "test.slow", "args": [60_000], "visibility_timeout_ms": 3000 })).await;
    let mut checked = 0;
    for name in ["overview", "queue", "channels", "redis"] {
        let dashboard = repository(&format!("deploy/observability/grafana/dashboards/{name}.json"));
        let dashboard: Value = serde_json::from_str(&dashboard).expect("JSON");
        for variable in dashboard["templating"]["list"].as_array().expect("variables") {
            let query = variable["query"]["query"].as_str().expect("a query");
            let inner = query.strip_prefix("label_values(").and_then(|query| query.strip_suffix(')')).expect("values");
            let (metric, label) = inner.split_once(", ").expect("a metric and a label");
            eventually(&format!("{name}: {query} has values"), || async {
                work().await;
                (!prometheus.label_values(metric, label).await.is_empty()).then_some(())
            })
            .await;
        }
        for panel in dashboard["panels"].as_array().expect("panels") {
            let title = panel["title"].as_str().expect("a title");
            let targets = panel["targets"].as_array().expect("targets");
            for target in targets {
                let expression = target["expr"].as_str().expect("an expression");
                let expression = expression.replace("$__rate_interval", "10s").replace("$queue", ".*");
                let expression = expression.replace("$subscription", ".*");
                if QUIET_PANELS.contains(&title) {
                    // It is valid: an error would fail this
                    prometheus.query(&expression).await;
                    continue;
                }
                eventually(&format!("{name}: {title}: {expression} shows something"), || async {
                    work().await;
                    (!prometheus.query(&expression).await.is_empty()).then_some(())
                })
                .await;
                checked += 1;
            }
        }
    }
    assert!(checked > 50, "{checked} expressions");
}
