//! Settings as processes read them: sources, checks, errors.

use std::{collections::HashMap, time::Duration};

use super::*;

fn with(name: &str, value: &str) -> Result<Settings, SettingError> {
    Settings::from_sources(None, HashMap::from([(name.to_owned(), value.to_owned())]))
}

#[test]
fn the_defaults_are_allowed_and_are_the_documented_ones() {
    let settings = Settings::from_sources(None, HashMap::new()).expect("the defaults");
    assert_eq!(settings.redis.url.expose(), "redis://127.0.0.1:6379/5");
    assert_eq!(settings.gateway.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(settings.jobs.lease, Duration::from_secs(30));
    assert_eq!(settings.queue_worker.queues.len(), 3);
    assert_eq!(settings.telemetry.otlp_endpoint, None);
    assert_eq!((settings.queue_worker.rules, settings.pubsub_worker.commands), (None, None));
}

#[test]
fn the_environment_wins() {
    assert_eq!(with("GALLEY__GATEWAY__LISTEN", "0.0.0.0:1").expect("allowed").gateway.listen.to_string(), "0.0.0.0:1");
    let queues = with("GALLEY__QUEUE_WORKER__QUEUES", "a,b-1").expect("allowed").queue_worker.queues;
    assert_eq!(queues.iter().map(QueueName::as_str).collect::<Vec<_>>(), ["a", "b-1"]);
    for (written, queues) in [("a", 1), ("1", 1), (" a , b,", 2), ("", 0)] {
        let settings = with("GALLEY__QUEUE_WORKER__QUEUES", written).expect("allowed");
        assert_eq!(settings.queue_worker.queues.len(), queues, "{written:?}");
    }
    assert_eq!(with("GALLEY__QUEUE_WORKER__NAME", "007").expect("allowed").queue_worker.name.as_str(), "007");
    assert!(with("GALLEY__GATEWAY__TEST_DIRECTIVES", "true").expect("allowed").gateway.test_directives);
    let settings = with("GALLEY__QUEUES__DEMO__MAX_DEPTH", "10").expect("allowed");
    assert_eq!(settings.max_depth(&"demo".parse().expect("a name")), Some(10));
    let commands = with("GALLEY__PUBSUB_WORKER__COMMANDS", "a.toml").expect("allowed").pubsub_worker.commands;
    assert_eq!(commands.as_deref(), Some(std::path::Path::new("a.toml")));
}

#[test]
fn each_bad_value_is_an_error_that_names_the_key_the_value_and_what_is_allowed() {
    for (name, value, key, allowed) in [
        ("GALLEY__REDIS__URL", "http://x", "redis.url", "redis://"),
        ("GALLEY__REDIS__POOL_SIZE", "0", "redis.pool_size", "1 to 1000"),
        ("GALLEY__GATEWAY__LISTEN", "8080", "gateway.listen", "an address and port"),
        ("GALLEY__GATEWAY__BODY_LIMIT_BYTES", "1", "gateway.body_limit_bytes", "1024 to 67108864"),
        ("GALLEY__GATEWAY__BODIES_MAX_BYTES", "20000000", "gateway.bodies_max_bytes", "at least 22369624"),
        ("GALLEY__GATEWAY__ALLOWED_HOSTS", "http://a", "gateway.allowed_hosts", "no scheme"),
        ("GALLEY__QUEUE_WORKER__QUEUES", "A", "queue_worker.queues", "^[a-z0-9]"),
        ("GALLEY__QUEUE_WORKER__CONCURRENCY", "0", "queue_worker.concurrency", "1 to 10000"),
        ("GALLEY__QUEUE_WORKER__STOP_GRACE_MS", "60001", "queue_worker.stop_grace_ms", "0 to 60000"),
        ("GALLEY__QUEUE_WORKER__QUEUE_CONCURRENCY__A", "0", "queue_worker.queue_concurrency.a", "1 to 10000"),
        ("GALLEY__QUEUE_WORKER__WEIGHTS__A", "1001", "queue_worker.weights.a", "1 to 1000"),
        ("GALLEY__JOBS__LEASE_MS", "5", "jobs.lease_ms", "1000 to 86400000"),
        ("GALLEY__WORKFLOWS__MAX_JOBS", "1001", "workflows.max_jobs", "1 to 1000"),
        ("GALLEY__WORKFLOWS__RESULTS_LIMIT_BYTES", "1", "workflows.results_limit_bytes", "65536 to 67108864"),
        ("GALLEY__WORKFLOWS__CHECK_MS", "99", "workflows.check_ms", "100 to 3600000"),
        ("GALLEY__GATEWAY__MAX_EVENT_STREAMS", "0", "gateway.max_event_streams", "1 to 100000"),
        ("GALLEY__GATEWAY__EVENT_KEEP_ALIVE_MS", "5", "gateway.event_keep_alive_ms", "100 to 600000"),
        ("GALLEY__QUEUE_WORKER__HEARTBEAT_MS", "5", "queue_worker.heartbeat_ms", "100 to 600000"),
        ("GALLEY__JOBS__MAX_PULL_WORKERS", "0", "jobs.max_pull_workers", "1 to 1000000"),
        ("GALLEY__LOG__FORMAT", "xml", "log.format", "pretty, json or auto"),
        ("GALLEY__LOG__LEVEL", "a=b=c", "log.level", "a filter"),
        ("GALLEY__TELEMETRY__OTLP_ENDPOINT", "jaeger", "telemetry.otlp_endpoint", "http://"),
        ("GALLEY__TELEMETRY__OTLP_METRICS_ENDPOINT", "otel", "telemetry.otlp_metrics_endpoint", "/v1/metrics"),
        ("GALLEY__TELEMETRY__OTLP_LOGS_ENDPOINT", "otel", "telemetry.otlp_logs_endpoint", "/v1/logs"),
        ("GALLEY__TELEMETRY__OTLP_METRICS_INTERVAL_MS", "1", "telemetry.otlp_metrics_interval_ms", "100 to 86400000"),
        ("GALLEY__QUEUES__DEMO__MAX_DEPTH", "0", "queues.demo.max_depth", "1 to 1000000000"),
        ("GALLEY__CRON__MAX_ENTRIES", "0", "cron.max_entries", "1 to 100000"),
        ("GALLEY__SUBSCRIPTIONS__MAX", "4097", "subscriptions.max", "1 to 4096"),
        ("GALLEY__CRON__CATCH_UP_MAX", "101", "cron.catch_up_max", "1 to 100"),
        ("GALLEY__CRON__CATCH_UP_WINDOW_MS", "9", "cron.catch_up_window_ms", "10000 to 604800000"),
        ("GALLEY__CHANNELS__MAX_CHANNELS", "0", "channels.max_channels", "1 to 1000000"),
        ("GALLEY__CHANNELS__PLAIN", "a b", "channels.plain", "^[A-Za-z0-9]"),
        ("GALLEY__CHANNELS__MAX_READERS", "0", "channels.max_readers", "1 to 1000000"),
        ("GALLEY__CHANNELS__RING_BYTES", "67108865", "channels.ring_bytes", "0 to 67108864"),
        ("GALLEY__CHANNELS__RINGS_BYTES", "1", "channels.rings_bytes", "1048576 to 17179869184"),
        ("GALLEY__CHANNELS__STALL_MS", "5", "channels.stall_ms", "1000 to 600000"),
        ("GALLEY__CHANNELS__SWEEP_MS", "99", "channels.sweep_ms", "100 to 3600000"),
        ("GALLEY__CHANNELS__PROBE_MS", "99", "channels.probe_ms", "100 to 600000"),
        ("GALLEY__CHANNELS__HISTORY_MAX_AGE_MS", "5", "channels.history_max_age_ms", "0 (no limit) or 1000"),
        ("GALLEY__CHANNELS__HISTORY_MAX_BYTES", "5", "channels.history_max_bytes", "0 (no limit) or 65536"),
        ("GALLEY__CHANNELS__BACKLOG_MAX_MESSAGES", "0", "channels.backlog_max_messages", "1 to 100000000"),
        ("GALLEY__CHANNELS__BACKLOG_MAX_BYTES", "5", "channels.backlog_max_bytes", "65536 to 1099511627776"),
        ("GALLEY__MAINTENANCE__HISTORY_TRIM_MS", "5", "maintenance.history_trim_ms", "50 to 600000"),
        ("GALLEY__GATEWAY__ALLOWED_ORIGINS", "*", "gateway.allowed_origins", "https://app.example.com"),
        ("GALLEY__BRIDGE__LIST", "galley:x", "bridge.list", "does not start with"),
    ] {
        let error = with(name, value).expect_err(name).to_string();
        assert!(error.contains(key) && error.contains(value) && error.contains(allowed), "{name}: {error}");
    }
}

#[test]
fn a_value_of_the_wrong_type_and_a_key_that_does_not_exist_are_errors() {
    for value in ["many", "true", "2.6", "-1", "", "1e3"] {
        let error = with("GALLEY__QUEUE_WORKER__CONCURRENCY", value).expect_err("not a whole number").to_string();
        assert!(error.contains("queue_worker.concurrency") && error.contains(&format!("{value:?}")), "{error}");
    }
    for (name, key, known) in [
        ("GALLEY__GATEWAY__LISTN", "gateway.listn", "listen"),
        ("GALLEY__GATEWAYS__LISTEN", "gateways", "gateway"),
        ("GALLEY__QUEUES__DEMO__DEPTH", "queues.demo.depth", "max_depth"),
    ] {
        let error = with(name, "x").expect_err("a typo").to_string();
        assert!(error.starts_with(&format!("setting {key} does not exist")) && error.contains(known), "{error}");
    }
    for (name, error) in [
        ("GALLEY__GATEWAY", "setting gateway must be a table, got text"),
        ("GALLEY__QUEUES__DEMO", "setting queues.demo must be a table, got text"),
        ("GALLEY__GATEWAY__TEST_DIRECTIVES", "setting gateway.test_directives must be true or false, got \"x\""),
        ("GALLEY__JOBS__LEASE_MS", "setting jobs.lease_ms must be a whole number, 1000 to 86400000, got \"x\""),
    ] {
        assert_eq!(with(name, "x").expect_err(name).to_string(), error);
    }
    let error = Settings::from_sources(Some("/no/such.toml"), HashMap::new()).expect_err("no file").to_string();
    assert!(error.contains("/no/such.toml"), "{error}");
}

#[test]
fn a_password_is_not_shown() {
    let settings = with("GALLEY__REDIS__URL", "redis://user:secret@host:6379/5").expect("allowed");
    assert!(!format!("{settings:?}").contains("secret"));
    assert!(format!("{settings:?}").contains("host:6379/5"));
    let settings = with("GALLEY__REDIS__URL", "redis+unix:///run/r.sock?db=5&pass=secret").expect("allowed");
    assert!(!format!("{settings:?}").contains("secret"));
    let sentinels = "redis+sentinel://user:secret@a:1,b:2/name/5";
    let settings = with("GALLEY__REDIS__URL", sentinels).expect("allowed");
    assert!(!format!("{settings:?}").contains("secret"));
    assert!(format!("{settings:?}").contains("a:1,b:2/name/5"));
    for url in ["redis://user:secret@host/x", "redis+sentinel://user:secret@a:1,b:2/5"] {
        let error = with("GALLEY__REDIS__URL", &format!("{url}/x")).expect_err("no number").to_string();
        assert!(!error.contains("secret"), "{error}");
    }
}

#[test]
fn a_url_of_sentinels_is_taken_apart() {
    let parse = |url: &str| {
        let settings = with("GALLEY__REDIS__URL", url).unwrap_or_else(|error| panic!("{error}"));
        settings.redis.url.sentinels()
    };
    let urls = |urls: &[&str]| urls.iter().map(|url| (*url).to_owned()).collect::<Vec<_>>();
    let sentinels = parse("redis+sentinel://me:p%40s@a:1,[::1]:2,c/orders-1.x/7").expect("sentinels");
    assert_eq!(sentinels.primary_name, "orders-1.x");
    assert_eq!(
        sentinels.urls,
        urls(&["redis://me:p%40s@a:1/7", "redis://me:p%40s@[::1]:2/7", "redis://me:p%40s@c:26379/7"])
    );
    assert_eq!(parse("rediss+sentinel://a/name").expect("sentinels").urls, urls(&["rediss://a:26379/"]));
    assert!(parse("redis://host:6379/5").is_none());
    for refused in [
        "redis+sentinel://a:1,b:2",
        "redis+sentinel://a:1,b:2/",
        "redis+sentinel://a:1,b:2/na me/5",
        "redis+sentinel://a:1,b:2/name/x",
        "redis+sentinel://a:1,b:2/name/5/6",
        "redis+sentinel://a:1,,b:2/name/5",
        "redis+sentinel://a:x/name/5",
        "redis+sentinel:///name/5",
        "redis+sentinel://a:1/name/5?protocol=3",
        "rediss+sentinel://a:1/name/5#insecure",
        "http+sentinel://a:1/name/5",
    ] {
        let error = with("GALLEY__REDIS__URL", refused).expect_err(refused).to_string();
        assert!(error.contains("redis.url") && error.contains("redis+sentinel://"), "{error}");
    }
}

#[test]
fn a_url_of_a_cluster_is_taken_apart() {
    let cluster = |url: &str| {
        let settings = with("GALLEY__REDIS__URL", url).unwrap_or_else(|error| panic!("{error}"));
        settings.redis.url.cluster()
    };
    let urls = |urls: &[&str]| Some(urls.iter().map(|url| (*url).to_owned()).collect::<Vec<_>>());
    assert_eq!(
        cluster("redis+cluster://me:p%40s@a:1,[::1]:2,c"),
        urls(&["redis://me:p%40s@a:1/0", "redis://me:p%40s@[::1]:2/0", "redis://me:p%40s@c:6379/0"])
    );
    assert_eq!(cluster("rediss+cluster://a/"), urls(&["rediss://a:6379/0"]));
    assert_eq!(cluster("redis+cluster://a/0"), urls(&["redis://a:6379/0"]));
    assert_eq!(cluster("redis://a:6379/0"), None);
    for refused in [
        "redis+cluster://",
        "redis+cluster://a:1,,b:2",
        "redis+cluster://a:1/5",
        "redis+cluster://a:1/name/0",
        "redis+cluster://a:x",
        "redis+cluster://a:1?protocol=3",
        "rediss+cluster://a:1#insecure",
    ] {
        let error = with("GALLEY__REDIS__URL", refused).expect_err(refused).to_string();
        assert!(error.contains("redis.url") && error.contains("without a database other than 0"), "{error}");
    }
}
