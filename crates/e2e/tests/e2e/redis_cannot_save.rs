//! A Redis that cannot save to its disk takes no writes (`MISCONF`). Everything can still be read, and whatever writes says
//! why it cannot.

use serde_json::{Value, json};
use testkit::{RedisPersistence, RedisServer, eventually, redis};

use crate::kit::{GalleyKit, job_body};

/// Calls that only read.
const READS: [&str; 15] = [
    "/ojs/v1/queues",
    "/ojs/v1/queues/default",
    "/ojs/v1/queues/default/stats",
    "/ojs/v1/dead-letter",
    "/ojs/v1/dead-letter/stats",
    "/ojs/v1/workers",
    "/ojs/v1/cron",
    "/ojs/v1/workflows",
    "/ojs/v1/events",
    "/v1/channels",
    "/v1/channels/c",
    "/v1/channels/c/messages",
    "/v1/channels/c/messages?since=2020-01-01T00:00:00Z",
    "/v1/subscriptions",
    "/v1/subscriptions/s",
];

impl GalleyKit {
    /// Makes Redis's next save fail, as a full or broken disk does.
    async fn break_saving(&self) {
        let folder = tempfile::tempdir().expect("a folder");
        self.redis_command(&["CONFIG", "SET", "dir", folder.path().to_str().expect("UTF-8")]).await;
        drop(folder);
        self.redis_command(&["CONFIG", "SET", "save", "3600 1"]).await;
        self.redis_command(&["BGSAVE"]).await;
        eventually("saving fails", || async {
            let info: redis::InfoDict =
                redis::from_redis_value(self.redis_command(&["INFO", "persistence"]).await).expect("fields");
            (info.get::<String>("rdb_last_bgsave_status")? == "err").then_some(())
        })
        .await;
    }

    /// Asserts that a call is refused because Redis cannot save.
    async fn assert_says_why(&self, method: &str, path: &str, body: &Value) {
        let method = method.parse().expect("a method");
        let request = self.http.request(method, self.gateway.url(path)).header("content-type", "application/json");
        let answer = request.body(body.to_string()).send().await.expect("the gateway answers");
        let (status, has_delay) = (answer.status(), answer.headers().contains_key("retry-after"));
        let said: Value = answer.json().await.expect("JSON");
        let code = if path.starts_with("/ojs") { &said["error"]["code"] } else { &said["code"] };
        assert_eq!((status.as_u16(), code.as_str()), (503, Some("backend_cannot_save")), "{path}: {said}");
        assert!(has_delay, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_cannot_save_can_be_read_and_writes_say_why() {
    let options = &["--enable-protected-configs", "yes"];
    let kit = GalleyKit::start_with(RedisServer::start_with_options(RedisPersistence::None, options), &[]).await;
    let id = kit.enqueue(&job_body("test.noop", &json!([]))).await;
    let dead = json!({ "type": "a", "args": [], "queue": "d", "retry": { "max_attempts": 1, "on_exhaustion": "dead_letter" } });
    let dead = kit.enqueue(&dead).await;
    let fetched = kit.fetch("d").await.expect("a job");
    let failure = json!({ "job_id": fetched["id"], "error": { "code": "x", "message": "m" } });
    assert_eq!(kit.post("/ojs/v1/workers/nack", &failure).await.status(), 200);
    assert_eq!(kit.post("/v1/channels/c/messages", &json!("m")).await.status(), 201);
    let subscription = json!({ "channels": ["c"], "deliver": { "log": {} } });
    let request = kit.http.put(kit.gateway.url("/v1/subscriptions/s")).header("content-type", "application/json");
    assert!(request.body(subscription.to_string()).send().await.expect("an answer").status().is_success());
    kit.break_saving().await;
    for path in READS {
        let answer = kit.get(path).await;
        let (status, said) = (answer.status(), answer.text().await.expect("text"));
        assert_eq!(status, 200, "{path}: {said}");
    }
    assert_eq!(kit.job(&id).await["state"], "available");
    for (method, path, body) in [
        ("POST", "/ojs/v1/jobs".to_owned(), job_body("a", &json!([]))),
        ("POST", "/ojs/v1/jobs/batch".to_owned(), json!({ "jobs": [job_body("a", &json!([]))] })),
        ("DELETE", format!("/ojs/v1/jobs/{id}"), json!({})),
        ("POST", "/ojs/v1/queues/default/pause".to_owned(), json!({})),
        ("POST", "/ojs/v1/queues/default/resume".to_owned(), json!({})),
        ("PUT", "/ojs/v1/queues/default/limits".to_owned(), json!({ "concurrency": 1 })),
        ("POST", format!("/ojs/v1/dead-letter/{dead}/retry"), json!({})),
        ("DELETE", format!("/ojs/v1/dead-letter/{dead}"), json!({})),
        ("POST", "/ojs/v1/workers/fetch".to_owned(), json!({ "queues": ["default"] })),
        ("POST", "/v1/channels/c/messages".to_owned(), json!("m")),
        ("POST", "/v1/subscriptions/s/pause".to_owned(), json!({})),
        ("DELETE", "/v1/subscriptions/s".to_owned(), json!({})),
    ] {
        kit.assert_says_why(method, &path, &body).await;
    }
    let why = eventually("it is not ready", || async {
        let ready = kit.get("/health/ready").await;
        if ready.status() == 503 { ready.text().await.ok() } else { None }
    })
    .await;
    assert!(why.contains("MISCONF"), "{why}");
    kit.redis_command(&["CONFIG", "SET", "stop-writes-on-bgsave-error", "no"]).await;
    eventually("it takes writes again", || async {
        let answer = kit.post("/ojs/v1/jobs", &job_body("test.noop", &json!([]))).await;
        (answer.status() == 201).then_some(())
    })
    .await;
}
