//! The dashboard over HTTP: who sees what, forms that are refused, what pages weigh and cost.

use std::time::Instant;

use reqwest::{Client, Method, Response, redirect::Policy};
use serde_json::{Value, json};
use testkit::{RedisServer, ServiceProcess, eventually};

use crate::{
    idle_cost::{count_commands, wait_for_seconds},
    keyed_gateway::KeyedGateway,
    kit::{GalleyKit, job_body},
};

/// What browsers accept when they open a page.
const HTML: &str = "text/html,application/xhtml+xml,*/*;q=0.8";

/// Somebody with a browser, as far as HTTP goes.
pub(crate) struct Visitor {
    client: Client,
    base: String,
    pub(crate) cookie: Option<String>,
}

impl Visitor {
    pub(crate) fn new(gateway: &ServiceProcess) -> Self {
        // A connection each: the gateway may close an idle one while the next request is on its way
        let client = Client::builder().redirect(Policy::none()).pool_max_idle_per_host(0).build().expect("a client");
        Self { client, base: gateway.url("").trim_end_matches('/').to_owned(), cookie: None }
    }

    pub(crate) async fn send(&mut self, method: Method, path: &str, body: Option<String>) -> Response {
        let mut request = self.client.request(method, format!("{}{path}", self.base)).header("accept", HTML);
        if let Some(cookie) = &self.cookie {
            request = request.header("cookie", cookie);
        }
        if let Some(body) = body {
            request = request.header("content-type", "application/x-www-form-urlencoded").body(body);
        }
        let response = request.send().await.expect("an answer");
        for line in response.headers().get_all("set-cookie") {
            let line = line.to_str().expect("text");
            if line.starts_with("galley_session=") {
                self.cookie = line.split(';').next().map(ToOwned::to_owned);
            }
        }
        response
    }

    pub(crate) async fn page(&mut self, path: &str) -> (u16, String) {
        let response = self.send(Method::GET, path, None).await;
        (response.status().as_u16(), response.text().await.expect("text"))
    }

    /// Sends a form with the token of a page.
    pub(crate) async fn form(&mut self, path: &str, fields: &str) -> Response {
        let (_, page) = self.page("/ui/login").await;
        let token = page.split("name=\"csrf\" value=\"").nth(1).and_then(|rest| rest.split('"').next());
        let body = format!("csrf={}&{fields}", token.expect("a form"));
        self.send(Method::POST, path, Some(body)).await
    }

    pub(crate) async fn log_in(&mut self, key: &str) -> Response {
        self.form("/ui/login", &format!("key={key}&to=%2Fui%2Fqueues")).await
    }
}

const PAGES: [&str; 13] = [
    "/ui/jobs",
    "/ui/queues",
    "/ui/dead-letters",
    "/ui/workflows",
    "/ui/cron",
    "/ui/workers",
    "/ui/channels",
    "/ui/subscriptions",
    "/ui/push-rules",
    "/ui/try",
    "/ui/keys",
    "/ui/audit",
    "/ui/check?all=1",
];

#[tokio::test]
async fn somebody_logs_in_with_a_key_looks_around_and_logs_out() {
    let keyed = KeyedGateway::start(&[]).await;
    let mut visitor = Visitor::new(&keyed.kit.gateway);
    for path in PAGES {
        let (status, page) = visitor.page(path).await;
        assert_eq!(status, 401, "{path}");
        assert!(page.contains("name=\"key\""), "a form to log in: {path}");
    }
    let (status, page) = visitor.page("/").await;
    assert!(status == 200 && page.contains("href=\"/prodcons\"") && page.contains("/ui/login"), "{page}");
    let refused = visitor.log_in("glk_nobody_nothing").await;
    assert_eq!(refused.status(), 400);
    let response = visitor.log_in(&keyed.admin).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["location"]),
        (303, &"/ui/queues".parse().expect("text"))
    );
    let cookie = response.headers()["set-cookie"].to_str().expect("text").to_owned();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
    for path in PAGES {
        let (status, page) = visitor.page(path).await;
        assert_eq!(status, 200, "{path}: {page}");
    }
    // The cookie is for pages alone, and its text is stored nowhere
    let secret = visitor.cookie.clone().expect("a cookie");
    let api = visitor.send(Method::GET, "/ojs/v1/queues", None).await;
    assert_eq!(api.status(), 401);
    let keys = keyed.kit.redis_keys().await;
    assert_eq!(keys.iter().filter(|key| key.starts_with("galley:session:")).count(), 1);
    assert!(!keys.iter().any(|key| secret.contains(key.rsplit(':').next().expect("a part"))));
    assert_eq!(visitor.form("/ui/logout", "").await.status(), 303);
    visitor.cookie = Some(secret);
    assert_eq!(visitor.page("/ui/queues").await.0, 401, "the session is over, also for a copy of the cookie");
}

#[tokio::test]
async fn a_key_without_admin_write_sees_no_buttons_and_changes_nothing() {
    let keyed = KeyedGateway::start(&[]).await;
    keyed.enqueue("mails").await;
    let (reader, id) = keyed.make_key(&json!({ "name": "reader", "scopes": ["admin:read", "jobs:read"] })).await;
    let mut visitor = Visitor::new(&keyed.kit.gateway);
    visitor.log_in(&reader).await;
    let (_, page) = visitor.page("/ui/queues").await;
    assert!(page.contains("mails") && !page.contains("/ui/queues/mails/pause"), "{page}");
    let (_, page) = visitor.page("/ui/jobs").await;
    assert!(page.contains("test.echo") && !page.contains("formaction"), "{page}");
    for path in ["/ui/queues/mails/pause", "/ui/jobs/retry", "/ui/try", "/ui/keys", "/ui/dead-letters/retry"] {
        assert_eq!(visitor.form(path, "name=x").await.status(), 403, "{path}");
    }
    assert_eq!(visitor.page("/ui/channels").await.0, 403, "it may not read channels");
    let shown: Value =
        keyed.send(&keyed.admin, Method::GET, "/ojs/v1/queues/mails", None).await.json().await.expect("JSON");
    assert_eq!(shown["queue"]["paused"], false);
    // A key that is revoked ends the session
    let path = format!("/v1/admin/keys/{id}");
    assert_eq!(keyed.send(&keyed.admin, Method::DELETE, &path, None).await.status(), 200);
    assert_eq!(visitor.page("/ui/queues").await.0, 401);
}

#[tokio::test]
async fn a_form_without_its_token_and_one_of_another_page_are_refused_and_change_nothing() {
    let kit = GalleyKit::start().await;
    kit.enqueue(&json!({ "type": "a", "args": [], "options": { "queue": "mails" } })).await;
    let mut visitor = Visitor::new(&kit.gateway);
    visitor.page("/").await;
    for body in ["", "csrf=", "csrf=0000000000000000000000000000000000000000000000000000000000000000"] {
        let response = visitor.send(Method::POST, "/ui/queues/mails/pause", Some(body.to_owned())).await;
        assert_eq!(response.status(), 403, "{body}");
    }
    let mut other = Visitor::new(&kit.gateway);
    let (_, page) = other.page("/ui/login").await;
    let token = page.split("name=\"csrf\" value=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("a form");
    let stolen = visitor.send(Method::POST, "/ui/queues/mails/pause", Some(format!("csrf={token}"))).await;
    assert_eq!(stolen.status(), 403, "the token of another browser");
    let shown: Value = kit.get("/ojs/v1/queues/mails").await.json().await.expect("JSON");
    assert_eq!(shown["queue"]["paused"], false);
    let done = visitor.form("/ui/queues/mails/pause", "").await;
    assert_eq!(done.status(), 303);
    let shown: Value = kit.get("/ojs/v1/queues/mails").await.json().await.expect("JSON");
    assert_eq!(shown["queue"]["paused"], true);
}

#[tokio::test]
async fn a_first_visit_is_small_and_the_pages_allow_no_script_but_their_own() {
    let kit = GalleyKit::start().await;
    let mut visitor = Visitor::new(&kit.gateway);
    let response = visitor.send(Method::GET, "/", None).await;
    let policy = response.headers()["content-security-policy"].to_str().expect("text").to_owned();
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    let page = response.text().await.expect("text");
    let mut bytes = page.len();
    let mut assets = 0;
    for part in page.split("/ui/assets/").skip(1) {
        let name = part.split('"').next().expect("a name");
        let response = visitor.send(Method::GET, &format!("/ui/assets/{name}"), None).await;
        assert_eq!(response.status(), 200, "{name}");
        let kept = response.headers()["cache-control"].to_str().expect("text").to_owned();
        assert!(kept.contains("immutable"), "{kept}");
        bytes += response.bytes().await.expect("a body").len();
        assets += 1;
    }
    assert!(assets >= 3 && bytes < 150_000, "{assets} assets, {bytes} bytes");
    assert_eq!(visitor.page("/ui/assets/galley-000000000000.js").await.0, 404);
}

#[tokio::test]
async fn what_does_not_exist_and_odd_names_are_a_page_and_programs_get_json() {
    let kit = GalleyKit::start().await;
    let mut visitor = Visitor::new(&kit.gateway);
    for path in [
        "/ui/nothing",
        "/ui/jobs/not-an-id",
        "/ui/jobs/019539a4-b68c-7def-8000-1a2b3c4d5e6f",
        "/ui/workflows/x",
        "/ui/subscriptions/none",
        "/ui/%3Cscript%3E",
    ] {
        let (status, page) = visitor.page(path).await;
        assert_eq!(status, 404, "{path}");
        assert!(page.contains("<nav") && !page.contains("<script>"), "{path}: {page}");
    }
    let (status, page) = visitor.page("/ui/jobs?q=nonsense%3Ax").await;
    assert!(status == 200 && page.contains("role=\"alert\""), "{page}");
    let response = kit.get("/ui/nothing").await;
    assert_eq!(response.headers()["content-type"], "application/problem+json");
}

#[tokio::test]
async fn while_redis_is_away_pages_say_so_and_load_themselves_again() {
    let mut kit = GalleyKit::start().await;
    let mut visitor = Visitor::new(&kit.gateway);
    assert_eq!(visitor.page("/ui/queues").await.0, 200);
    kit.redis.kill();
    let (status, page) = visitor.page("/ui/queues").await;
    assert_eq!(status, 503);
    assert!(page.contains("http-equiv=\"refresh\"") && page.contains("Redis cannot be reached"), "{page}");
    let page = eventually("the overview says so", || async {
        let mut visitor = Visitor::new(&kit.gateway);
        let (_, page) = visitor.page("/").await;
        page.contains("Redis cannot be reached").then_some(page)
    })
    .await;
    assert!(page.contains("href=\"/prodcons\""), "{page}");
}

/// What the dashboard may cost Redis, a second, beside what the services cost without it.
const MAX_COMMANDS: u64 = 20;
/// How long commands are counted: what is looked at seldom, every twelve seconds, falls into it once.
const COUNTED_SECONDS: u64 = 12;
/// A look takes the commands of the seconds since the one before, and may begin just inside the time that counts.
const SECONDS_BETWEEN_LOOKS: u64 = 3;

#[tokio::test(flavor = "multi_thread")]
async fn alone_a_dashboard_with_many_viewers_and_a_thousand_queues_costs_at_most_twenty_commands_a_second() {
    // What the leader does for all queues at once now and then falls into neither of the times that are compared
    let steady = [("GALLEY__STATISTICS__FLUSH_MS", "500"), ("GALLEY__METRICS__INTERVAL_MS", "3600000")];
    let kit = GalleyKit::start_with(RedisServer::start(), &steady).await;
    let jobs: Vec<Value> =
        (0..1000).map(|number| json!({ "type": "a", "args": [], "queue": format!("q{number}") })).collect();
    for some in jobs.chunks(500) {
        assert_eq!(kit.post("/ojs/v1/jobs/batch", &json!({ "jobs": some })).await.status(), 201);
    }
    let connection = kit.redis.connection().await;
    wait_for_seconds(&connection, 3).await;
    let before = count_commands(&connection).await;
    wait_for_seconds(&connection, COUNTED_SECONDS).await;
    let without = count_commands(&connection).await - before;
    // The first visit looks at some queues, the others at nothing
    let (before, began) = (count_commands(&connection).await, Instant::now());
    let mut visitor = Visitor::new(&kit.gateway);
    for _ in 0..20 {
        assert_eq!(visitor.page("/").await.0, 200);
    }
    let visits = count_commands(&connection).await - before;
    // On a slow machine the services do more meanwhile, and the dashboard looks again
    let meanwhile = began.elapsed().as_secs() * (without / COUNTED_SECONDS + MAX_COMMANDS);
    assert!(visits < 700 + meanwhile, "twenty visits cost {visits} commands");
    let mut streams = Vec::new();
    for _ in 0..30 {
        let client = Client::new().get(kit.gateway.url("/ui/live?page=overview"));
        streams.push(client.send().await.expect("a stream"));
    }
    wait_for_seconds(&connection, 2).await;
    let before = count_commands(&connection).await;
    wait_for_seconds(&connection, COUNTED_SECONDS).await;
    let with = count_commands(&connection).await - before;
    assert!(
        with <= without + MAX_COMMANDS * (COUNTED_SECONDS + SECONDS_BETWEEN_LOOKS),
        "{with} commands with 30 viewers, {without} without any, in {COUNTED_SECONDS} seconds"
    );
    drop(streams);
}

#[tokio::test]
async fn a_job_goes_from_dead_to_done_through_forms_alone() {
    let kit = GalleyKit::start().await;
    let id = kit.enqueue(&job_body("x", &json!([1]))).await;
    let claimed = kit.fetch("default").await.expect("the job");
    let error = json!({ "code": "e", "message": "timed out", "retryable": false });
    let nack = json!({ "job_id": id, "token": claimed["token"], "error": error });
    assert_eq!(kit.post("/ojs/v1/workers/nack", &nack).await.status(), 200);
    let mut visitor = Visitor::new(&kit.gateway);
    let (_, page) = visitor.page("/ui/jobs?q=state%3Adiscarded+error%3A%22timed+out%22").await;
    assert!(page.contains(&id), "{page}");
    let asked = visitor.form("/ui/jobs/retry", "q=state%3Adiscarded&everything=1").await;
    assert_eq!(asked.status(), 200);
    let asked = asked.text().await.expect("text");
    assert!(asked.contains("Retry 1 jobs") && asked.contains("state:discarded"), "{asked}");
    assert_eq!(kit.job(&id).await["state"], "discarded", "nothing happens before it is confirmed");
    let done = visitor.form("/ui/jobs/retry", "q=state%3Adiscarded&everything=1&sure=1").await;
    assert_eq!(done.status(), 303);
    assert_eq!(kit.job(&id).await["state"], "available");
    assert_eq!(visitor.form(&format!("/ui/jobs/{id}/cancel"), "").await.status(), 303);
    assert_eq!(kit.job(&id).await["state"], "cancelled");
}
