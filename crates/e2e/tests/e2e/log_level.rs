//! The log level of all processes changes while they run, and returns by itself; `GET /v1/admin/debug` shows one process, and
//! `/v1/admin/debug/processes` all.

use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};
use testkit::{RedisServer, ServiceProcess, eventually};

use crate::{
    dashboard::Visitor,
    kit::{GalleyKit, job_body},
};

const PATH: &str = "/v1/admin/log-level";

impl GalleyKit {
    async fn set_log_level(&self, body: &Value) -> (u16, Value) {
        let request = self.http.put(self.gateway.url(PATH)).header("content-type", "application/json");
        let answer = request.body(body.to_string()).send().await.expect("the gateway answers");
        (answer.status().as_u16(), answer.json().await.expect("JSON"))
    }

    async fn reset_log_level(&self) {
        assert_eq!(self.http.delete(self.gateway.url(PATH)).send().await.expect("an answer").status(), 200);
    }

    async fn log_level(&self) -> Value {
        self.get(PATH).await.json().await.expect("JSON")
    }

    async fn debug(&self) -> Value {
        self.get("/v1/admin/debug").await.json().await.expect("JSON")
    }
}

/// How many times the level changed, and the lines below `INFO` so far.
fn changes_and_details(service: &ServiceProcess) -> (Vec<String>, usize) {
    let changes = service.events("logging.level_changed");
    let levels = changes.iter().filter_map(|change| change["filter"].as_str().map(ToOwned::to_owned));
    let is_detail = |line: &Value| ["DEBUG", "TRACE"].iter().any(|level| line["level"] == *level);
    (levels.collect(), service.log_entries().iter().filter(|line| is_detail(line)).count())
}

async fn wait_for_changes(service: &ServiceProcess, expected: &[&str]) {
    eventually(&format!("the levels were {expected:?}"), || async {
        (changes_and_details(service).0 == expected).then_some(())
    })
    .await;
}

#[tokio::test]
async fn one_call_changes_the_level_of_all_processes_and_of_those_that_start_later() {
    let kit = GalleyKit::start().await;
    let (worker, pubsub_worker) = (kit.start_worker(&[]).await, kit.start_pubsub_worker().await);
    let configured = kit.log_level().await["configured"].as_str().expect("a level").to_owned();
    assert_eq!(kit.log_level().await["level"], configured.as_str());
    let services = [&kit.gateway, &worker, &pubsub_worker];
    for service in services {
        assert_eq!(changes_and_details(service), (vec![], 0));
    }
    let (status, answer) = kit.set_log_level(&json!({ "level": "trace" })).await;
    assert_eq!(
        (status, &answer["level"], &answer["until"], &answer["is_set"]),
        (200, &json!("trace"), &json!(null), &json!(true))
    );
    for service in services {
        wait_for_changes(service, &["trace"]).await;
        eventually("details are logged", || async {
            crate::http_client::get(service.url("/health/live")).await.ok()?;
            (changes_and_details(service).1 > 0).then_some(())
        })
        .await;
    }
    let late = kit.start_worker(&[]).await;
    wait_for_changes(&late, &["trace"]).await;
    kit.reset_log_level().await;
    for service in [&kit.gateway, &worker, &pubsub_worker, &late] {
        wait_for_changes(service, &["trace", &configured]).await;
    }
    // What was on its way is written
    let id = kit.enqueue(&job_body("test.noop", &json!([]))).await;
    kit.wait_for_state(&id, "completed").await;
    let before = changes_and_details(&worker).1;
    let id = kit.enqueue(&job_body("test.noop", &json!([]))).await;
    kit.wait_for_state(&id, "completed").await;
    assert_eq!(changes_and_details(&worker).1, before, "no more details");
    assert_eq!(kit.log_level().await["is_set"], false);
}

#[tokio::test]
async fn a_level_with_a_duration_returns_by_itself_also_while_redis_is_away() {
    let mut kit = GalleyKit::start().await;
    let worker = kit.start_worker(&[]).await;
    let configured = kit.log_level().await["configured"].as_str().expect("a level").to_owned();
    let set = async |duration: &str| {
        let (status, answer) = kit.set_log_level(&json!({ "level": "info,store=debug", "duration": duration })).await;
        assert_eq!((status, answer["until"].is_string()), (200, true), "{answer}");
    };
    set("PT10M").await;
    for service in [&kit.gateway, &worker] {
        wait_for_changes(service, &["info,store=debug"]).await;
    }
    // Not at once: who hears of it too late would never have that level
    set("PT1S").await;
    for service in [&kit.gateway, &worker] {
        wait_for_changes(service, &["info,store=debug", &configured]).await;
    }
    eventually("Redis has forgotten it", || async { (kit.log_level().await["is_set"] == false).then_some(()) }).await;
    // Longer than a look at it may take
    kit.set_log_level(&json!({ "level": "error", "duration": "PT10S" })).await;
    // At this level a change is logged when it is over
    eventually("it is quiet", || async { (kit.debug().await["log_level"]["in_effect"] == "error").then_some(()) })
        .await;
    kit.redis.kill();
    wait_for_changes(&kit.gateway, &["info,store=debug", &configured, "error", &configured]).await;
}

#[tokio::test]
async fn bad_levels_are_refused_with_what_is_allowed_and_changes_are_in_the_audit() {
    let kit = GalleyKit::start().await;
    for (body, reason) in [
        (json!({ "level": "louder" }), "level must be error, warn, info, debug, trace or off"),
        (json!({ "level": "debug", "duration": "10m" }), "duration"),
        (json!({ "level": "debug", "duration": "PT0S" }), "duration must be longer than PT0S"),
        (json!({ "level": 7 }), "level"),
        (json!({}), "level"),
    ] {
        let (status, answer) = kit.set_log_level(&body).await;
        assert_eq!(status, 400, "{body}: {answer}");
        assert!(answer.to_string().contains(reason), "{reason:?} is not in {answer}");
    }
    assert_eq!(kit.log_level().await["is_set"], false);
    kit.set_log_level(&json!({ "level": "debug" })).await;
    let audit: Value = kit.get("/v1/admin/audit").await.json().await.expect("JSON");
    let entry = &audit["items"][0];
    assert_eq!((&entry["action"], &entry["outcome"]), (&json!("PUT /v1/admin/log-level"), &json!("done")), "{audit}");
}

#[tokio::test]
async fn a_gateway_shows_its_tasks_connections_leader_problems_and_settings() {
    let secret = "glk_first_0123456789012345678901234567890123456789012";
    let variables = [("GALLEY__AUTH__FIRST_KEY", secret), ("GALLEY__REDIS__POOL_SIZE", "3")];
    let redis = RedisServer::start();
    let mut kit = GalleyKit::start_with(redis, &variables).await;
    let get = async || {
        let request =
            kit.http.get(kit.gateway.url("/v1/admin/debug")).header("authorization", format!("Bearer {secret}"));
        request.send().await.expect("the gateway answers").json::<Value>().await.expect("JSON")
    };
    assert_eq!(kit.get("/v1/admin/debug").await.status(), 401);
    let shown = eventually("there is a leader, and the gateway is well", || async {
        let shown = get().await;
        let is_well = shown["health"]["parts"]["jobs"]["status"] == "ok";
        (shown["leader"]["service"].is_string() && is_well).then_some(shown)
    })
    .await;
    assert_eq!((&shown["service"], &shown["process_id"]), (&json!("gateway"), &json!(kit.gateway.process_id())));
    assert_eq!(
        (&shown["leader"]["service"], &shown["leader"]["process_id"]),
        (&json!("gateway"), &shown["process_id"])
    );
    assert!(shown["leader"]["since"].is_string());
    assert!(shown["tasks"]["alive"].as_u64().is_some_and(|alive| alive > 5), "{shown}");
    assert!(shown["connections"]["http"].as_f64().is_some_and(|open| open >= 1.0), "{shown}");
    assert_eq!(shown["connections"]["redis"]["is_open"], true);
    let settings = shown["settings"].as_array().expect("settings");
    let of = |key: &str| settings.iter().find(|setting| setting["key"] == key).cloned().unwrap_or_default();
    let size = json!({ "key": "redis.pool_size", "value": 3, "source": "GALLEY__REDIS__POOL_SIZE" });
    assert_eq!(of("redis.pool_size"), size);
    assert!(of("auth.first_key").is_object() && !shown.to_string().contains(secret), "{shown}");
    kit.redis.kill();
    let problem = eventually("the problem is shown", || async {
        let url = kit.gateway.url("/v1/admin/debug");
        let request = kit.http.get(url).header("authorization", format!("Bearer {secret}"));
        let shown: Value = request.send().await.ok()?.json().await.ok()?;
        let problems = shown["last_problems"].as_array()?.clone();
        problems.into_iter().find(|problem| problem["event"] == "redis.unavailable")
    })
    .await;
    assert_eq!((&problem["level"], problem["count"].as_u64()), (&json!("WARN"), Some(1)), "{problem}");
}

#[tokio::test]
async fn galley_shows_and_changes_both() {
    let kit = GalleyKit::start().await;
    let run = async |args: &[&str]| {
        let url = kit.gateway.url("");
        let output = kit.run_binary("galley", args, &[("GALLEY_URL", url.trim_end_matches('/'))]).await;
        let said = String::from_utf8([output.stdout, output.stderr].concat()).expect("text");
        (output.status.success(), said)
    };
    let (is_done, said) = run(&["log-level", "set", "debug", "--for", "PT10M"]).await;
    assert!(is_done && said.contains("debug") && said.contains("until"), "{said}");
    let (is_done, said) = run(&["log-level", "set", "loud"]).await;
    assert!(!is_done && said.contains("trace or off"), "{said}");
    let (is_done, said) = run(&["log-level", "show"]).await;
    assert!(is_done && said.contains("debug"), "{said}");
    let (is_done, said) = run(&["debug"]).await;
    assert!(is_done && said.contains("leader") && said.contains("connections http"), "{said}");
    let (is_done, said) = run(&["debug", "--all"]).await;
    assert!(
        is_done && said.contains("gateway") && said.contains("is leader") && said.contains("tasks alive"),
        "{said}"
    );
    let (is_done, said) = run(&["log-level", "reset"]).await;
    assert!(is_done && !said.contains("until"), "{said}");
}

#[tokio::test]
async fn every_process_says_what_it_is_doing_when_somebody_asks() {
    let kit = GalleyKit::start().await;
    let worker = kit.start_worker(&[]).await;
    let pubsub_worker = kit.start_pubsub_worker().await;
    let shown = eventually("all three answer and are well, and one leads", || async {
        let shown: Value = kit.get("/v1/admin/debug/processes").await.json().await.ok()?;
        let items = shown["items"].as_array()?;
        let leaders = items.iter().filter(|item| item["is_leader"] == true).count();
        let are_well = items.iter().all(|item| item["health"]["status"] == "ok");
        (shown["asked"] == 3 && items.len() == 3 && leaders == 1 && are_well).then_some(shown)
    })
    .await;
    let named: Vec<(&Value, &Value)> =
        shown["items"].as_array().expect("items").iter().map(|item| (&item["service"], &item["process_id"])).collect();
    let ids = [&kit.gateway, &pubsub_worker, &worker].map(|process| json!(process.process_id()));
    let names = ["gateway", "pubsub-worker", "queue-worker"].map(|name| json!(name));
    assert_eq!(named, names.iter().zip(&ids).collect::<Vec<_>>());
    for item in shown["items"].as_array().expect("items") {
        assert!(item["tasks"]["alive"].as_u64().is_some_and(|alive| alive > 1), "{item}");
        assert_eq!(item["connections"]["redis"]["is_open"], true, "{item}");
        assert!(item["connections"]["open_files"].as_f64().is_some_and(|open| open > 1.0), "{item}");
        assert!(item["log_level"]["in_effect"].is_string() && item["last_problems"].is_array(), "{item}");
    }
    // One that hangs is missing, and nobody waits for it for long
    worker.signal(Signal::SIGSTOP);
    eventually("the two others answer", || async {
        let shown: Value = kit.get("/v1/admin/debug/processes").await.json().await.ok()?;
        let items = shown["items"].as_array()?;
        assert!(items.iter().all(|item| item["process_id"] != worker.process_id()), "{shown}");
        (shown["asked"] == 3 && items.len() == 2).then_some(())
    })
    .await;
    worker.signal(Signal::SIGCONT);
}

#[tokio::test]
async fn the_page_of_workers_shows_the_level_and_changes_it_for_a_time() {
    let kit = GalleyKit::start().await;
    let worker = kit.start_worker(&[]).await;
    let mut visitor = Visitor::new(&kit.gateway);
    let (_, page) = visitor.page("/ui/workers").await;
    assert!(page.contains("Log level of all processes") && !page.contains("/ui/log-level/reset"), "{page}");
    let set = visitor.form("/ui/log-level/set", "level=info%2Cstore%3Ddebug&for=PT10M").await;
    assert_eq!(set.status(), 303);
    assert_eq!(set.headers()["location"], "/ui/workers?note=log_level_set&of=info%2Cstore%3Ddebug");
    let level = kit.log_level().await;
    assert_eq!(level["level"], "info,store=debug");
    let (_, page) = visitor.page("/ui/workers").await;
    let until = level["until"].as_str().expect("an end");
    assert!(
        page.contains(until) && page.contains("info,store=debug") && page.contains("/ui/log-level/reset"),
        "{page}"
    );
    wait_for_changes(&worker, &["info,store=debug"]).await;
    for form in ["level=loud", "level=debug&for=10m", "level=&for=PT10M"] {
        assert_eq!(visitor.form("/ui/log-level/set", form).await.status(), 400, "{form}");
    }
    assert_eq!(visitor.form("/ui/log-level/other", "").await.status(), 404);
    // No other site can send it
    let foreign = visitor.send(Method::POST, "/ui/log-level/reset", Some("csrf=guessed".to_owned())).await;
    assert_eq!(foreign.status(), 403);
    assert_eq!(visitor.form("/ui/log-level/reset", "").await.status(), 303);
    assert_eq!(kit.log_level().await["is_set"], false);
    let audit: Value = kit.get("/v1/admin/audit").await.json().await.expect("JSON");
    let actions: Vec<_> =
        audit["items"].as_array().expect("items").iter().take(2).map(|item| &item["target"]).collect();
    assert_eq!(actions, ["/ui/log-level/reset", "/ui/log-level/reset"], "the refused one too");
}
