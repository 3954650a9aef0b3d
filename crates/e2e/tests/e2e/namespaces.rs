//! A key of a namespace tries to reach what lies outside, by every route.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    keyed::{KeyRing, KeyedKit, outcome},
    namespaces_admin::admin_attempts,
    openapi,
};

/// In everything that a stranger must not see.
pub(crate) const CANARY: &str = "canary-of-others";

/// What lies outside of the namespace.
pub(crate) struct Outside {
    pub(crate) waiting: String,
    active: String,
    token: String,
    pub(crate) dead: String,
    pub(crate) workflow: String,
    pub(crate) admin: String,
}

fn job(queue: &str) -> Value {
    json!({ "type": "a.b", "args": [CANARY], "meta": { "k": CANARY }, "options": { "queue": queue } })
}

async fn json_of(response: reqwest::Response) -> Value {
    assert!(response.status().is_success(), "{}: {:?}", response.status(), response.text().await);
    response.json().await.expect("JSON")
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("text: {value}")).to_owned()
}

impl Outside {
    pub(crate) async fn make(keyed: &KeyedKit) -> Self {
        let post = async |path: &str, body: &Value| json_of(keyed.post(&keyed.admin, path, body).await).await;
        let enqueue = async |queue: &str| text(&post("/ojs/v1/jobs", &job(queue)).await["job"]["id"]);
        let active = enqueue("other.active").await;
        let fetched =
            post("/ojs/v1/workers/fetch", &json!({ "queues": ["other.active"], "worker_id": "other-worker" })).await;
        let token = text(&fetched["jobs"][0]["token"]);
        let dying = enqueue("other.dead").await;
        let claimed = post("/ojs/v1/workers/fetch", &json!({ "queues": ["other.dead"], "worker_id": "w" })).await;
        let error = json!({ "code": "x", "message": CANARY, "retryable": false });
        let nack = json!({ "job_id": dying, "token": claimed["jobs"][0]["token"], "error": error });
        post("/ojs/v1/workers/nack", &nack).await;
        let steps = json!([{ "type": "a.b", "args": [CANARY], "options": { "queue": "other.q" } }]);
        let workflow =
            post("/ojs/v1/workflows", &json!({ "type": "chain", "name": "other.flow", "steps": steps })).await;
        let template = json!({ "type": "a.b", "args": [CANARY], "options": { "queue": "other.q" } });
        post("/ojs/v1/cron", &json!({ "name": "other.cron", "expression": "0 0 1 1 *", "job_template": template }))
            .await;
        post("/v1/channels/other.ch/messages", &json!(CANARY)).await;
        let subscription =
            json!({ "channels": ["other.ch"], "deliver": { "queue": { "queue": "other.q", "type": "a.b" } } });
        json_of(keyed.send(&keyed.admin, Method::PUT, "/v1/subscriptions/other.sub", &subscription).await).await;
        Self {
            waiting: enqueue("other.q").await,
            active,
            token,
            dead: dying,
            workflow: text(&workflow["workflow"]["id"]),
            admin: keyed.admin.split('_').nth(1).expect("an id").to_owned(),
        }
    }

    /// What must be as it was.
    pub(crate) async fn state(&self, keyed: &KeyedKit) -> Value {
        let get = async |path: String| json_of(keyed.get(&keyed.admin, &path).await).await;
        let mut state = Vec::new();
        for id in [&self.waiting, &self.active, &self.dead] {
            state.push(get(format!("/ojs/v1/jobs/{id}")).await["job"]["state"].clone());
        }
        for queue in ["other.q", "other.active", "other.dead"] {
            let queue = get(format!("/ojs/v1/queues/{queue}")).await;
            state.push(queue["queue"].clone());
        }
        state.push(get(format!("/ojs/v1/workflows/{}", self.workflow)).await["workflow"]["state"].clone());
        state.push(get("/ojs/v1/cron/other.cron".to_owned()).await["cron"].clone());
        state.push(get("/v1/channels/other.ch".to_owned()).await["channel"]["head"].clone());
        state.push(get("/v1/subscriptions/other.sub".to_owned()).await["subscription"]["state"].clone());
        json!(state)
    }

    /// Attempts by operation: each must be refused.
    #[expect(clippy::too_many_lines, reason = "a table: one line for each attempt")]
    fn attempts(&self) -> Vec<(&'static str, Method, String, Value)> {
        let (get, post, put, patch, delete) = (Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE);
        let null = Value::Null;
        let dead_letters = json!({ "filter": { "queue": "other.dead" }, "confirm": true });
        let of_job = |id: &str, rest: &str| format!("/ojs/v1/jobs/{id}{rest}");
        let dead = |rest: &str| format!("/ojs/v1/dead-letter/{}{rest}", self.dead);
        let queue = |rest: &str| format!("/ojs/v1/queues/other.q{rest}");
        let cron = |rest: &str| format!("/ojs/v1/cron/other.cron{rest}");
        let channel = |rest: &str| format!("/v1/channels/other.ch{rest}");
        let subscription = |rest: &str| format!("/v1/subscriptions/other.sub{rest}");
        let key = |rest: &str| format!("/v1/admin/keys/{}{rest}", self.admin);
        let worker = |rest: &str| format!("/ojs/v1/workers/other-worker{rest}");
        let step = |queue: &str| json!({ "type": "a.b", "args": [], "options": { "queue": queue } });
        let flow =
            |name: &str, queue: &str| json!({ "type": "chain", "name": name, "steps": [step("acme.q"), step(queue)] });
        let batch = json!({
            "type": "batch", "name": "acme.batch", "jobs": [step("acme.q")], "callbacks": { "on_complete": step("other.q") },
        });
        let around = |inner: Value| json!({ "type": "group", "name": "acme.outer", "jobs": [step("acme.q"), inner] });
        let entry =
            |name: &str, queue: &str| json!({ "name": name, "expression": "0 0 1 1 *", "job_template": step(queue) });
        let to_queue = |queue: &str| json!({ "queue": { "queue": queue, "type": "a.b" } });
        let follow = |channels: Value, deliver: Value| json!({ "channels": channels, "deliver": deliver });
        let scopes = json!(["jobs:read"]);
        vec![
            ("enqueue", post.clone(), "/ojs/v1/jobs".into(), job("other.q")),
            ("enqueue", post.clone(), "/ojs/v1/jobs".into(), json!({ "type": "a.b", "args": [] })),
            ("showJob", get.clone(), of_job(&self.waiting, ""), null.clone()),
            ("showJob", get.clone(), of_job(&self.active, ""), null.clone()),
            ("cancelJob", delete.clone(), of_job(&self.waiting, ""), null.clone()),
            ("activateJob", post.clone(), of_job(&self.waiting, "/activate"), null.clone()),
            ("retryJob", post.clone(), of_job(&self.dead, "/retry"), null.clone()),
            (
                "reportProgress",
                post.clone(),
                of_job(&self.active, "/progress"),
                json!({ "token": self.token, "percent": 5 }),
            ),
            (
                "putProgress",
                put.clone(),
                of_job(&self.active, "/progress"),
                json!({ "token": self.token, "percent": 5 }),
            ),
            (
                "saveCheckpoint",
                post.clone(),
                of_job(&self.active, "/checkpoint"),
                json!({ "token": self.token, "state": 5 }),
            ),
            (
                "writeOutput",
                post.clone(),
                of_job(&self.active, "/output"),
                json!({ "token": self.token, "chunks": [5] }),
            ),
            ("followOutput", get.clone(), of_job(&self.active, "/output"), null.clone()),
            ("setCheckpoint", put.clone(), of_job(&self.waiting, "/checkpoint"), json!({ "state": 5 })),
            ("showCheckpoint", get.clone(), of_job(&self.active, "/checkpoint"), null.clone()),
            ("deleteCheckpoint", delete.clone(), of_job(&self.active, "/checkpoint"), null.clone()),
            ("streamJobEvents", get.clone(), of_job(&self.waiting, "/events"), null.clone()),
            ("fetch", post.clone(), "/ojs/v1/workers/fetch".into(), json!({ "queues": ["other.q"], "worker_id": "x" })),
            (
                "fetch",
                post.clone(),
                "/ojs/v1/workers/fetch".into(),
                json!({ "queues": ["acme.q", "other.q"], "worker_id": "x" }),
            ),
            ("ack", post.clone(), "/ojs/v1/workers/ack".into(), json!({ "job_id": self.active, "token": self.token })),
            (
                "nack",
                post.clone(),
                "/ojs/v1/workers/nack".into(),
                json!({ "job_id": self.active, "token": self.token, "error": { "code": "x", "message": "y" } }),
            ),
            ("sendSignal", post.clone(), of_job(&self.waiting, "/signals"), json!({ "name": "n", "data": 5 })),
            ("listSignals", get.clone(), of_job(&self.waiting, "/signals"), null.clone()),
            (
                "nack",
                post.clone(),
                "/ojs/v1/workers/nack".into(),
                json!({ "job_id": self.active, "token": self.token, "wait": { "step": "s", "signal": "n" } }),
            ),
            ("jobLogs", get.clone(), of_job(&self.waiting, "/logs"), null.clone()),
            ("jobProgress", get.clone(), of_job(&self.waiting, "/progress"), null.clone()),
            (
                "writeLog",
                post.clone(),
                "/ojs/v1/workers/log".into(),
                json!({ "job_id": self.active, "token": self.token, "lines": [{ "message": "x" }] }),
            ),
            ("statsHistory", get.clone(), "/ojs/v1/admin/stats/history?queue=other.q".into(), null.clone()),
            ("listWorkers", get.clone(), "/ojs/v1/workers".into(), null.clone()),
            ("showWorker", get.clone(), worker(""), null.clone()),
            ("quietWorker", post.clone(), worker("/quiet"), null.clone()),
            ("resumeWorker", post.clone(), worker("/resume"), null.clone()),
            ("terminateWorker", post.clone(), worker("/terminate"), null.clone()),
            ("listDeadLetters", get.clone(), "/ojs/v1/dead-letter?queue=other.dead".into(), null.clone()),
            ("deleteDeadLetters", delete.clone(), "/ojs/v1/dead-letter".into(), dead_letters.clone()),
            ("retryDeadLetters", post.clone(), "/ojs/v1/dead-letter/retry".into(), dead_letters),
            ("showDeadLetter", get.clone(), dead(""), null.clone()),
            ("deleteDeadLetter", delete.clone(), dead(""), null.clone()),
            ("retryDeadLetter", post.clone(), dead("/retry"), null.clone()),
            ("showQueue", get.clone(), queue(""), null.clone()),
            ("deleteQueue", delete.clone(), queue(""), json!({ "confirm": "other.q" })),
            ("queueStats", get.clone(), queue("/stats"), null.clone()),
            ("pauseQueue", post.clone(), queue("/pause"), null.clone()),
            ("pauseQueue", post.clone(), "/ojs/v1/queues/other%2Eq/pause".into(), null.clone()),
            ("pauseQueue", post.clone(), "/ojs/v1/queues/sub.other.sub/pause".into(), null.clone()),
            ("resumeQueue", post.clone(), queue("/resume"), null.clone()),
            ("drainQueue", post.clone(), queue("/drain"), null.clone()),
            ("limitQueue", put.clone(), queue("/limits"), json!({ "concurrency": 1 })),
            ("purgeQueue", delete.clone(), queue("/jobs"), json!({ "confirm": "other.q" })),
            ("streamQueueEvents", get.clone(), queue("/events"), null.clone()),
            ("createWorkflow", post.clone(), "/ojs/v1/workflows".into(), flow("other.new", "acme.q")),
            ("createWorkflow", post.clone(), "/ojs/v1/workflows".into(), flow("acme.new", "other.q")),
            ("createWorkflow", post.clone(), "/ojs/v1/workflows".into(), batch),
            ("createWorkflow", post.clone(), "/ojs/v1/workflows".into(), around(flow("other.new", "acme.q"))),
            ("createWorkflow", post.clone(), "/ojs/v1/workflows".into(), around(flow("acme.new", "other.q"))),
            ("showWorkflow", get.clone(), format!("/ojs/v1/workflows/{}", self.workflow), null.clone()),
            ("cancelWorkflow", delete.clone(), format!("/ojs/v1/workflows/{}", self.workflow), null.clone()),
            ("registerCron", post.clone(), "/ojs/v1/cron".into(), entry("other.cron", "acme.q")),
            ("registerCron", post.clone(), "/ojs/v1/cron".into(), entry("other.new", "acme.q")),
            ("registerCron", post.clone(), "/ojs/v1/cron".into(), entry("acme.new", "other.q")),
            ("showCron", get.clone(), cron(""), null.clone()),
            ("deleteCron", delete.clone(), cron(""), null.clone()),
            ("switchCron", patch.clone(), cron(""), json!({ "enabled": false })),
            ("enableCron", post.clone(), cron("/enable"), null.clone()),
            ("disableCron", post.clone(), cron("/disable"), null.clone()),
            ("triggerCron", post.clone(), cron("/trigger"), null.clone()),
            ("nextRuns", get.clone(), cron("/next"), null.clone()),
            ("listEvents", get.clone(), "/ojs/v1/events?queues=other.q".into(), null.clone()),
            ("streamEvents", get.clone(), "/ojs/v1/events/stream?queues=other.q".into(), null.clone()),
            ("streamChannel", get.clone(), channel("/stream"), null.clone()),
            ("streamChannels", get.clone(), "/v1/stream?channel=other.ch".into(), null.clone()),
            ("streamChannels", get.clone(), "/v1/stream?channel=acme.x&channel=other.*".into(), null.clone()),
            ("streamChannels", get.clone(), "/v1/stream?channel=*".into(), null.clone()),
            ("streamChannels", get.clone(), "/v1/stream?channel=acme*".into(), null.clone()),
            ("streamChannels", get.clone(), "/v1/stream?channel=*.ch".into(), null.clone()),
            ("channel", get.clone(), channel(""), null.clone()),
            ("history", get.clone(), channel("/messages"), null.clone()),
            ("history", get.clone(), "/v1/channels/%6Fther.ch/messages".into(), null.clone()),
            ("channelMembers", get.clone(), "/v1/channels/other.ch/members".into(), null.clone()),
            ("publish", post.clone(), channel("/messages"), json!({})),
            ("publishMany", post.clone(), channel("/messages/batch"), json!({ "messages": [{ "data": 1 }] })),
            ("listJobs", get.clone(), "/ojs/v1/admin/jobs?state=discarded&queue=other.dead".into(), null.clone()),
            ("checkQueue", get.clone(), "/ojs/v1/admin/fsck?queue=other.q".into(), null.clone()),
            ("repairQueue", post.clone(), "/ojs/v1/admin/fsck".into(), json!({ "queue": "other.q", "repair": true })),
            ("showSubscription", get.clone(), subscription(""), null.clone()),
            ("putSubscription", put.clone(), subscription(""), follow(json!(["acme.ch"]), json!({ "log": {} }))),
            (
                "putSubscription",
                put.clone(),
                "/v1/subscriptions/acme.a".into(),
                follow(json!(["other.ch"]), json!({ "log": {} })),
            ),
            (
                "putSubscription",
                put.clone(),
                "/v1/subscriptions/acme.a".into(),
                follow(json!(["*"]), json!({ "log": {} })),
            ),
            (
                "putSubscription",
                put.clone(),
                "/v1/subscriptions/acme.a".into(),
                follow(json!(["acme.*", "acme*"]), json!({ "log": {} })),
            ),
            (
                "putSubscription",
                put.clone(),
                "/v1/subscriptions/acme.a".into(),
                follow(json!(["acme.ch"]), to_queue("other.q")),
            ),
            ("deleteSubscription", delete.clone(), subscription(""), null.clone()),
            ("pauseSubscription", post.clone(), subscription("/pause"), null.clone()),
            ("resumeSubscription", post.clone(), subscription("/resume"), null.clone()),
            ("seekSubscription", post.clone(), subscription("/seek"), json!({ "to": "start" })),
            (
                "createKey",
                post.clone(),
                "/v1/admin/keys".into(),
                json!({ "name": "k", "scopes": scopes, "namespace": "other" }),
            ),
            ("showKey", get.clone(), key(""), null.clone()),
            ("updateKey", patch, key(""), json!({ "name": "x" })),
            ("revokeKey", delete, key(""), null.clone()),
            ("rotateKey", post.clone(), key("/rotate"), null.clone()),
            ("makeToken", post, "/v1/tokens".into(), json!({ "namespace": "other" })),
            ("listAudit", get, "/v1/admin/audit".into(), null),
        ]
    }
}

/// Lists: they are answered, without a trace of what lies outside.
const LISTS: [(&str, &str); 14] = [
    ("stats", "/ojs/v1/admin/stats"),
    ("adminListQueues", "/ojs/v1/admin/queues"),
    ("adminListDeadLetters", "/ojs/v1/admin/dead-letter"),
    ("adminDeadLetterStats", "/ojs/v1/admin/dead-letter/stats"),
    ("listDeadLetters", "/ojs/v1/dead-letter"),
    ("deadLetterStats", "/ojs/v1/dead-letter/stats"),
    ("listQueues", "/ojs/v1/queues"),
    ("listWorkflows", "/ojs/v1/workflows"),
    ("listCron", "/ojs/v1/cron"),
    ("listEvents", "/ojs/v1/events?limit=1000"),
    ("listChannels", "/v1/channels"),
    ("listJobs", "/ojs/v1/admin/jobs?limit=100"),
    ("listSubscriptions", "/v1/subscriptions"),
    ("listKeys", "/v1/admin/keys"),
];

/// Operations that name nothing, or that a test below tries.
const OTHERS: [&str; 9] = [
    "manifest",
    "health",
    "metrics",
    "getErrors",
    "enqueueBatch",
    "enqueueLines",
    "heartbeat",
    "socket",
    "streamEvents",
];

#[tokio::test]
async fn a_key_of_a_namespace_neither_sees_nor_changes_anything_outside_by_any_route() {
    let mut ring = KeyRing::new();
    let acme = ring.add_namespace("acme");
    let keyed = ring.start(&[]).await;
    let outside = Outside::make(&keyed).await;
    let before = outside.state(&keyed).await;
    let mut attempts = outside.attempts();
    attempts.extend(admin_attempts(&outside.waiting, &outside.dead));
    let mut problems = Vec::new();
    for (operation, method, path, body) in &attempts {
        let answer = keyed.send(&acme, method.clone(), path, body).await;
        let status = answer.status().as_u16();
        if status != 403 && status != 404 {
            // A stream of events has no end
            let is_stream = answer.headers().get("content-type").is_some_and(|kind| kind == "text/event-stream");
            let text = if is_stream { String::new() } else { answer.text().await.unwrap_or_default() };
            problems.push(format!("{operation}: {method} {path} {body} is answered {status}: {text}"));
        } else if answer.text().await.is_ok_and(|text| text.contains(CANARY)) {
            problems.push(format!("{operation}: {method} {path} shows a secret"));
        }
    }
    for (operation, path) in LISTS {
        let answer = keyed.get(&acme, path).await;
        let status = answer.status();
        let text = answer.text().await.expect("text");
        if status != 200 || text.contains("other.") || text.contains(CANARY) || text.contains(&keyed.admin[4..12]) {
            problems.push(format!("{operation}: GET {path} is answered {status}: {text}"));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert_eq!(outside.state(&keyed).await, before, "something outside has changed");
    let tried: BTreeSet<String> = attempts.iter().map(|(operation, ..)| (*operation).to_owned()).collect();
    let listed = LISTS.iter().map(|(operation, _)| (*operation).to_owned());
    let tried: BTreeSet<String> = tried.into_iter().chain(listed).chain(OTHERS.map(str::to_owned)).collect();
    let missing: Vec<String> =
        openapi::operations_that_need_a_key().into_iter().filter(|operation| !tried.contains(operation)).collect();
    assert!(missing.is_empty(), "try these too: {missing:?}");
}

#[tokio::test]
async fn a_key_of_a_namespace_works_inside_and_items_outside_fail_by_themselves() {
    let mut ring = KeyRing::new();
    let acme = ring.add(
        "scopes = [\"jobs:write\", \"jobs:read\", \"work\", \"channels:publish\", \"channels:subscribe\"]\nnamespace = \"acme\"",
    );
    let keyed = ring.start(&[]).await;
    let outside = Outside::make(&keyed).await;
    let made = json_of(keyed.post(&acme, "/ojs/v1/jobs", &job("acme.q")).await).await;
    let id = text(&made["job"]["id"]);
    assert_eq!(keyed.get(&acme, &format!("/ojs/v1/jobs/{id}")).await.status(), 200);
    let before = outside.state(&keyed).await;
    let batch = json!({ "jobs": [job("acme.q"), job("other.q")] });
    let answer = keyed.post(&acme, "/ojs/v1/jobs/batch", &batch).await;
    let (status, answer) = (answer.status().as_u16(), answer.text().await.expect("text"));
    assert!(status == 403 || answer.contains("name_not_allowed"), "{status} {answer}");
    let lines = format!("{}\n{}\n", job("acme.q"), job("other.q"));
    let request = keyed.kit.http.post(keyed.kit.gateway.url("/ojs/v1/jobs/stream"));
    let request = request.header("authorization", format!("Bearer {acme}"));
    let answer = request.header("content-type", "application/x-ndjson").body(lines).send().await.expect("an answer");
    assert!(answer.text().await.expect("text").contains("name_not_allowed"));
    // A heartbeat of a job outside renews nothing and tells nothing
    let beat =
        json!({ "worker_id": "other-worker", "active_jobs": [{ "job_id": outside.active, "token": outside.token }] });
    let answer = keyed.post(&acme, "/ojs/v1/workers/heartbeat", &beat).await.text().await.expect("text");
    assert!(!answer.contains(CANARY), "{answer}");
    assert_eq!(outside.state(&keyed).await, before);
    // The answer of another client's request is not to be had with its Idempotency-Key
    let send = async |key: &str| {
        let request = keyed.kit.http.post(keyed.kit.gateway.url("/ojs/v1/jobs"));
        let request = request.header("authorization", format!("Bearer {key}")).header("idempotency-key", "same");
        request.header("content-type", "application/json").body(job("other.q").to_string()).send().await
    };
    assert_eq!(send(&keyed.admin).await.expect("an answer").status(), 201);
    assert_eq!(outcome(send(&acme).await.expect("an answer")).await, (403, "name_not_allowed".to_owned()));
}
