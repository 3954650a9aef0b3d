//! The dashboard in a real browser.

use fantoccini::Locator;
use serde_json::{Value, json};
use testkit::eventually;

use crate::{
    chromium::{Browser, BrowserOptions},
    keyed_gateway::KeyedGateway,
    kit::GalleyKit,
};

/// Text that must stay text: markup, right-to-left, emoji, much of it.
fn hostile() -> Vec<String> {
    vec![
        "<script>document.title='owned'</script>".to_owned(),
        "\"><img src=x onerror=\"document.title='owned'\">".to_owned(),
        "\u{202e}txt.exe \u{5e9}\u{5dc}\u{5d5}\u{5dd} \u{2066}x".to_owned(),
        "🦀🔥 {{7*7}} ${7*7} ' -- \\".to_owned(),
        "W".repeat(10_000),
    ]
}

pub(crate) async fn fail(kit: &GalleyKit, queue: &str, job: &Value, message: &str) -> String {
    let id = kit.enqueue(job).await;
    let claimed = kit.fetch(queue).await.expect("the job");
    let error = json!({ "code": "e", "type": "mail.timeout", "message": message, "retryable": false });
    let nack = json!({ "job_id": id, "token": claimed["token"], "error": error });
    assert_eq!(kit.post("/ojs/v1/workers/nack", &nack).await.status(), 200);
    id
}

const TYPES: &str = "GALLEY__JOBS__ON_EXHAUSTION";

#[tokio::test]
async fn somebody_enqueues_a_job_and_watches_its_result_appear() {
    let kit = GalleyKit::start().await;
    let Some(browser) = Browser::start(&kit.gateway.url(""), BrowserOptions::default()).await else { return };
    browser.open("/ui/try").await;
    browser.fill("#type", "test.echo").await;
    browser.fill("#args", "[\"a result to see\"]").await;
    browser.click_text("Enqueue").await;
    // Nobody works yet: the page waits, and moves when the job ends
    browser.wait_for("available").await;
    let _worker = kit.start_worker(&[]).await;
    browser.wait_for("Result").await;
    let shows = || async {
        let result = browser.client.find(Locator::Css("#result")).await.ok()?.text().await.ok()?;
        result.contains("a result to see").then_some(())
    };
    eventually("the result appears", shows).await;
    browser.picture("dashboard-job").await;
    assert_eq!(browser.complaints().await, Vec::<String>::new());
    browser.close().await;
}

#[tokio::test]
async fn a_search_finds_failed_jobs_and_one_click_retries_all_of_them() {
    let kit = GalleyKit::start_with(testkit::RedisServer::start(), &[(TYPES, "dead_letter")]).await;
    let mut ids = Vec::new();
    for number in 0..3 {
        let job = json!({ "type": "invoice.send", "args": [number], "options": { "queue": "mails" } });
        ids.push(fail(&kit, "mails", &job, "the mail server timed out").await);
    }
    let other = fail(&kit, "other", &json!({ "type": "a", "args": [], "options": { "queue": "other" } }), "no").await;
    let Some(browser) = Browser::start(&kit.gateway.url(""), BrowserOptions::default()).await else { return };
    browser.open("/ui/jobs").await;
    browser.fill("[data-search]", "state:discarded queue:mails").await;
    browser.click_text("Search").await;
    // The page before lists the same jobs, among others
    eventually("the search is answered", || async { browser.path().await.contains("discarded").then_some(()) }).await;
    browser.wait_for("invoice.send").await;
    assert!(!browser.text().await.contains(&other), "another queue");
    browser.picture("dashboard-jobs").await;
    browser.click("input[name=everything]").await;
    browser.click("button[formaction='/ui/jobs/retry']").await;
    browser.wait_for("Retry 3 jobs that match: state:discarded queue:mails?").await;
    browser.click_text("Retry 3 jobs").await;
    browser.wait_for("3 jobs are tried again").await;
    for id in &ids {
        assert_eq!(kit.job(id).await["state"], "available");
    }
    assert_eq!(kit.job(&other).await["state"], "discarded");
    browser.close().await;
}

#[tokio::test]
async fn dead_letters_are_grouped_by_error_and_retried_together_or_deleted_after_a_moment_to_undo() {
    let kit = GalleyKit::start_with(testkit::RedisServer::start(), &[(TYPES, "dead_letter")]).await;
    let job = |kind: &str| json!({ "type": kind, "args": [], "options": { "queue": "mails" } });
    let first = fail(&kit, "mails", &job("invoice.send"), "the mail server timed out").await;
    let second = fail(&kit, "mails", &job("invoice.send"), "the mail server timed out").await;
    let kept = fail(&kit, "mails", &job("report.make"), "no such table").await;
    let Some(browser) = Browser::start(&kit.gateway.url(""), BrowserOptions::default()).await else { return };
    browser.open("/ui/dead-letters").await;
    browser.wait_for("invoice.send").await;
    browser.picture("dashboard-dead-letters").await;
    browser.click_text("Retry 2").await;
    browser.wait_for("2 jobs are tried again").await;
    for id in [&first, &second] {
        assert_eq!(kit.job(id).await["state"], "available");
    }
    browser.hold_timers().await;
    browser.click_text("Delete 1").await;
    browser.click("form[data-undo] button.danger").await;
    browser.click_text("Undo").await;
    browser.wait_for("Nothing was changed").await;
    assert_eq!(kit.job(&kept).await["state"], "discarded");
    browser.open("/ui/dead-letters").await;
    browser.click_text("Delete 1").await;
    browser.click("form[data-undo] button.danger").await;
    browser.wait_for("1 dead letters were deleted").await;
    browser.close().await;
}

#[tokio::test]
async fn a_running_job_is_cancelled_and_a_queue_paused_and_resumed() {
    let kit = GalleyKit::start().await;
    let id = kit.enqueue(&json!({ "type": "long", "args": [], "options": { "queue": "mails" } })).await;
    kit.fetch("mails").await.expect("the job");
    let Some(browser) = Browser::start(&kit.gateway.url(""), BrowserOptions::default()).await else { return };
    browser.open(&format!("/ui/jobs/{id}")).await;
    browser.wait_for("active").await;
    browser.click(".confirm > summary").await;
    browser.click(".confirm[open] button.danger").await;
    browser.wait_for("The job was cancelled").await;
    assert_eq!(kit.job(&id).await["state"], "cancelled");
    kit.enqueue(&json!({ "type": "long", "args": [], "options": { "queue": "mails" } })).await;
    browser.open("/ui/queues").await;
    browser.click_text("Pause").await;
    browser.wait_for("mails is paused").await;
    browser.picture("dashboard-queues").await;
    // What is wrong stands on the overview, with the action beside it
    browser.open("/").await;
    browser.wait_for("mails is paused with 1 jobs waiting").await;
    browser.click_text("Resume").await;
    browser.wait_for("mails goes on").await;
    browser.close().await;
}

#[tokio::test]
async fn the_overview_moves_by_itself_and_nothing_leaves_the_host() {
    let kit = GalleyKit::start().await;
    let _worker = kit.start_worker(&[]).await;
    let Some(browser) = Browser::start(&kit.gateway.url(""), BrowserOptions::default()).await else { return };
    browser.open("/").await;
    let plot = "return document.querySelector('[data-live=rates] path.plot-done')?.getAttribute('d')";
    let before = browser.run(plot).await;
    for number in 0..20 {
        kit.enqueue(&json!({ "type": "test.echo", "args": [number] })).await;
    }
    let moved = || async {
        let now = browser.run(plot).await;
        (now.is_string() && now != before).then_some(())
    };
    eventually("the plot moves", moved).await;
    browser.picture("dashboard-overview").await;
    for path in ["/ui/jobs", "/ui/queues", "/ui/workers", "/ui/cron", "/ui/channels", "/ui/keys", "/ui/audit"] {
        browser.open(path).await;
    }
    let base = kit.gateway.url("");
    let requests = browser.requests().await;
    assert!(requests.iter().any(|url| url.contains("/ui/live")), "{requests:?}");
    for url in requests {
        assert!(url.starts_with(base.trim_end_matches('/')) || url.starts_with("data:"), "{url}");
    }
    assert_eq!(browser.complaints().await, Vec::<String>::new());
    browser.close().await;
}

#[tokio::test]
async fn languages_themes_and_keys_work() {
    let kit = GalleyKit::start().await;
    let options = BrowserOptions { language: Some("zh-CN"), ..BrowserOptions::default() };
    let Some(browser) = Browser::start(&kit.gateway.url(""), options).await else { return };
    browser.open("/").await;
    browser.wait_for("概览").await;
    browser.click_text("English").await;
    browser.wait_for("Overview").await;
    assert_eq!(browser.run("return document.documentElement.lang").await, "en");
    browser.click_text("Dark").await;
    let is_dark = || async {
        let theme = browser.run("return document.documentElement.dataset.theme").await;
        (theme == "dark").then_some(())
    };
    eventually("the page is dark", is_dark).await;
    let light = browser.run("return getComputedStyle(document.documentElement).backgroundColor").await;
    assert_eq!(light, "rgb(22, 24, 27)");
    browser.hold_timers().await;
    let body = browser.find("body").await;
    body.send_keys("gj").await.expect("keys");
    eventually("the page of jobs", || async { browser.path().await.starts_with("/ui/jobs").then_some(()) }).await;
    browser.find("body").await.send_keys("/").await.expect("a key");
    assert_eq!(browser.run("return document.activeElement.id").await, "q");
    browser.fill("[data-search]", "stat").await;
    browser.wait_for("state:discarded").await;
    browser.close().await;
}

#[tokio::test]
async fn hostile_text_is_inert_in_every_field_and_a_phone_needs_no_sideways_scroll() {
    let kit = GalleyKit::start_with(testkit::RedisServer::start(), &[(TYPES, "dead_letter")]).await;
    let mut last = String::new();
    for text in hostile() {
        let short: String = text.chars().take(200).collect();
        let job = json!({
            "type": "x", "args": [text], "meta": { short.as_str(): text }, "tags": [short], "options": { "queue": "mails" },
        });
        last = fail(&kit, "mails", &job, &text).await;
        let body = json!(text).to_string();
        let url = kit.gateway.url("/v1/channels/news/messages");
        let sent = kit.http.post(url).header("content-type", "application/json").body(body).send().await;
        assert_eq!(sent.expect("an answer").status(), 201);
        let flow = json!({ "type": "group", "name": short, "jobs": [{ "type": "x", "args": [text] }] });
        kit.post("/ojs/v1/workflows", &flow).await;
    }
    let target = json!({ "queue": { "queue": "from-messages", "type": "m" } });
    let subscription = json!({ "channels": ["news"], "deliver": target, "description": hostile()[..4].concat() });
    let put = kit.http.put(kit.gateway.url("/v1/subscriptions/s")).header("content-type", "application/json");
    assert_eq!(put.body(subscription.to_string()).send().await.expect("an answer").status(), 201);
    let options = BrowserOptions { size: Some((360, 740)), ..BrowserOptions::default() };
    let Some(browser) = Browser::start(&kit.gateway.url(""), options).await else { return };
    for path in [
        "/".to_owned(),
        "/ui/jobs".to_owned(),
        format!("/ui/jobs/{last}"),
        "/ui/jobs?q=%3Cscript%3E".to_owned(),
        "/ui/dead-letters".to_owned(),
        "/ui/queues".to_owned(),
        "/ui/workflows".to_owned(),
        "/ui/workers".to_owned(),
        "/ui/cron".to_owned(),
        "/ui/channels".to_owned(),
        "/ui/channels/news".to_owned(),
        "/ui/subscriptions".to_owned(),
        "/ui/subscriptions/s".to_owned(),
        "/ui/queues/mails".to_owned(),
        "/ui/push-rules".to_owned(),
        "/ui/check?queue=mails".to_owned(),
        format!("/ui/try?from={last}"),
        "/ui/keys".to_owned(),
        "/ui/audit".to_owned(),
        "/ui/queues?note=queue_paused&of=%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E".to_owned(),
    ] {
        browser.open(&path).await;
        assert_ne!(browser.run("return document.title").await, "owned", "{path}");
        assert_eq!(browser.run("return document.querySelectorAll('main script, main img').length").await, 0, "{path}");
        assert!(!browser.has_horizontal_scroll().await, "{path} is wider than a phone");
    }
    browser.open("/").await;
    browser.picture("dashboard-phone").await;
    browser.close().await;
}

#[tokio::test]
async fn a_message_appears_on_the_page_of_its_channel_and_the_new_key_is_shown_once() {
    let kit = GalleyKit::start().await;
    let Some(browser) = Browser::start(&kit.gateway.url(""), BrowserOptions::default()).await else { return };
    browser.open("/ui/channels/news").await;
    kit.enqueue(&json!({ "type": "a", "args": [] })).await;
    // The page follows the channel from some moment after it was opened
    let appears = || async {
        let sent = kit.http.post(kit.gateway.url("/v1/channels/news/messages")).body("good <b>news</b>").send().await;
        assert_eq!(sent.expect("an answer").status(), 201);
        browser.text().await.contains("good <b>news</b>").then_some(())
    };
    eventually("a message appears", appears).await;
    browser.open("/ui/keys").await;
    browser.fill("#name", "shop").await;
    browser.click("input[name=scope][value='jobs:write']").await;
    browser.click("section form button.primary").await;
    browser.wait_for("This is the only time").await;
    let key = browser.find("#new-key").await.text().await.expect("text");
    assert!(key.starts_with("glk_"), "{key}");
    browser.open("/ui/keys").await;
    browser.wait_for("shop").await;
    assert!(!browser.text().await.contains(&key));
    browser.close().await;
}

#[tokio::test]
async fn somebody_logs_in_by_a_page_and_a_reader_sees_no_buttons() {
    let keyed = KeyedGateway::start(&[]).await;
    keyed.enqueue("mails").await;
    let reader = json!({ "name": "reader", "scopes": ["admin:read", "jobs:read"] });
    let (reader, _) = keyed.make_key(&reader).await;
    let Some(browser) = Browser::start(&keyed.kit.gateway.url(""), BrowserOptions::default()).await else { return };
    browser.open("/ui/queues").await;
    browser.fill("#key", &reader).await;
    browser.click("form.card button.primary").await;
    browser.wait_for("mails").await;
    let text = browser.text().await;
    assert!(text.contains("read only") && !text.contains("Pause"), "{text}");
    browser.click_text("Log out").await;
    browser.wait_for("You are logged out").await;
    browser.close().await;
}

/// A checker of accessibility, which `make test` installs beside other packages of npm.
fn axe() -> Option<String> {
    let folder = std::env::var("GALLEY_TEST_NODE_FOLDER").ok()?;
    std::fs::read_to_string(format!("{folder}/node_modules/axe-core/axe.min.js")).ok()
}

#[tokio::test]
async fn axe_finds_no_serious_barrier_on_any_page() {
    let Some(axe) = axe() else {
        testkit::skip("there is no axe-core; `make test` installs it");
        return;
    };
    let kit = GalleyKit::start_with(testkit::RedisServer::start(), &[(TYPES, "dead_letter")]).await;
    let job = json!({ "type": "invoice.send", "args": [1], "options": { "queue": "mails" } });
    let id = fail(&kit, "mails", &job, "timed out").await;
    kit.post("/ojs/v1/cron", &json!({ "name": "nightly", "cron": "0 3 * * *", "type": "report" })).await;
    let hook = json!({ "channels": ["news"], "deliver": { "queue": { "queue": "mails", "type": "m" } } });
    let put = kit.http.put(kit.gateway.url("/v1/subscriptions/hook")).header("content-type", "application/json");
    assert_eq!(put.body(hook.to_string()).send().await.expect("an answer").status(), 201);
    let mode = json!({ "enabled": true, "reason": "new disks" });
    assert_eq!(kit.post("/ojs/v1/admin/system/maintenance", &mode).await.status(), 200);
    let _worker = kit.start_worker(&[]).await;
    let Some(browser) = Browser::start(&kit.gateway.url(""), BrowserOptions::default()).await else { return };
    for theme in ["light", "dark"] {
        browser.open(&format!("/ui/preferences?theme={theme}&to=/")).await;
        let pages = [
            "/",
            "/ui/jobs",
            "/ui/queues",
            "/ui/dead-letters",
            "/ui/workflows",
            "/ui/cron",
            "/ui/workers",
            "/ui/channels",
            "/ui/channels/news",
            "/ui/subscriptions",
            "/ui/subscriptions/hook",
            "/ui/push-rules",
            "/ui/check?all=1",
            "/ui/queues/mails",
            "/ui/try",
            "/ui/keys",
            "/ui/audit",
            "/ui/login",
        ];
        let job = format!("/ui/jobs/{id}");
        for path in pages.into_iter().chain([job.as_str()]) {
            browser.open(path).await;
            browser.run(&axe).await;
            let script = "const done = arguments[arguments.length - 1];
                axe.run().then((found) => done(found.violations
                    .filter((one) => ['serious', 'critical'].includes(one.impact))
                    .map((one) => one.id + ': ' + one.nodes.map((node) => node.target.join(' ')).join(', '))));";
            let found = browser.client.execute_async(script, Vec::new()).await.expect("axe runs");
            assert_eq!(found, json!([]), "{path} in {theme}");
        }
    }
    browser.close().await;
}
