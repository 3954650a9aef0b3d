//! Canaries: random words in every place where a client or an operator can put payload or a secret. The scenario takes them
//! through every kind of job, result, failure, message, workflow, cron entry and subscription. Tests then look for them
//! where they must not be.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use testkit::{OtlpReceiver, RedisPersistence, RedisServer, ServiceProcess, WebhookReceiver, WebhookReply, eventually};

use crate::{
    canary_words::{Canaries, is_credential},
    channels_presence::take_part,
    kit::{GalleyKit, RULES_VARIABLE, TestFolder},
    subscriptions_delivery::{PRIVATE, figure, put},
};

/// Services with an endpoint that fails and repeats what it was sent.
pub(crate) struct Scenario {
    pub(crate) kit: GalleyKit,
    pub(crate) worker: ServiceProcess,
    pub(crate) pubsub_worker: ServiceProcess,
    pub(crate) canaries: Canaries,
    endpoint: WebhookReceiver,
    _folder: TestFolder,
}

impl Scenario {
    /// Starts the services on a Redis that writes every command to its disk.
    pub(crate) async fn start(variables: &[(&str, &str)]) -> Self {
        let canaries = Canaries::default();
        let redis = RedisServer::start_with_options(RedisPersistence::Always, &["--rdbcompression", "no"]);
        let failure = json!({ "error": canaries.plant("answer of an endpoint") }).to_string();
        let endpoint = WebhookReceiver::start([WebhookReply::new(500, "", &failure)]).await;
        let folder = TestFolder::with_rules(&rules(&canaries, &endpoint));
        let rules = folder.path_text("rules.toml");
        let mut variables = variables.to_vec();
        variables.extend([PRIVATE, (RULES_VARIABLE, &rules)]);
        variables.push(("GALLEY__QUEUE_WORKER__QUEUES", "default"));
        let kit = GalleyKit::start_with(redis, &variables).await;
        let worker = kit.start_worker(&variables).await;
        let pubsub_worker = ServiceProcess::start("pubsub-worker", &kit.redis, &variables).await;
        pubsub_worker.wait_until_ready().await;
        Self { kit, worker, pubsub_worker, canaries, endpoint, _folder: folder }
    }

    pub(crate) async fn run(&self) {
        self.jobs_that_wait().await;
        self.jobs_of_workers().await;
        self.pulled_jobs().await;
        self.workflow().await;
        self.cron().await;
        self.messages().await;
        self.subscriptions().await;
        self.refused_requests().await;
    }

    /// A level that is set at run time logs as much as one of the settings, and no more.
    async fn log_everything_again(&self) {
        for level in ["info", "trace"] {
            let request = self.kit.http.put(self.kit.gateway.url("/v1/admin/log-level"));
            let request =
                request.header("content-type", "application/json").body(json!({ "level": level }).to_string());
            assert_eq!(request.send().await.expect("an answer").status(), 200);
            for service in [&self.kit.gateway, &self.worker, &self.pubsub_worker] {
                eventually(&format!("{level} is logged"), || async {
                    (service.events("logging.level_changed").last()?["filter"] == level).then_some(())
                })
                .await;
            }
        }
    }

    fn plant(&self, place: &'static str) -> String {
        self.canaries.plant(place)
    }

    async fn post_with(&self, path: &str, headers: &[(&str, &str)], body: String) -> (u16, Value) {
        let mut request = self.kit.http.post(self.kit.gateway.url(path));
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let response = request.body(body).send().await.expect("the gateway answers");
        (response.status().as_u16(), response.json().await.unwrap_or_default())
    }

    async fn jobs_that_wait(&self) {
        let soon = "+PT1H";
        for body in [
            json!({ "args": [self.plant("argument of a waiting job")], "meta": { "m": self.plant("meta of a job") },
                    "tags": [self.plant("tag of a job")], "x_more": self.plant("unknown member of a job") }),
            json!({ "args": [self.plant("argument of a scheduled job")], "scheduled_at": soon }),
            json!({ "args": [self.plant("argument of a pending job")], "pending": true }),
            json!({ "args": [self.plant("argument of a job that expires")], "expires_at": soon }),
            json!({ "args": [self.plant("argument of a unique job")], "unique": { "keys": ["args"] } }),
            json!({ "args": [self.plant("argument of a limited job")], "rate_limit": { "key": "k", "concurrency": 0 } }),
        ] {
            let mut body = body;
            body["type"] = json!("waits.here");
            body["queue"] = json!("waiting");
            self.kit.enqueue(&body).await;
        }
        let job = |place| json!({ "type": "waits.here", "queue": "waiting", "args": [self.plant(place)] });
        let batch = json!({ "jobs": [job("argument of a batch"), job("argument of a batch, too")] });
        assert_eq!(self.kit.post("/ojs/v1/jobs/batch", &batch).await.status(), 201);
        let line = job("argument of a stream").to_string();
        self.post_with("/ojs/v1/jobs/stream", &[("content-type", "application/x-ndjson")], line).await;
        let key = self.plant("idempotency key");
        let headers = [("content-type", "application/json"), ("idempotency-key", key.as_str())];
        let body = job("argument of an idempotent request").to_string();
        assert_eq!(self.post_with("/ojs/v1/jobs", &headers, body.clone()).await.0, 201);
        assert_eq!(self.post_with("/ojs/v1/jobs", &headers, body).await.0, 201, "the kept answer can be read");
        let cancelled = self.kit.enqueue(&job("argument of a cancelled job")).await;
        self.kit.cancel(&cancelled).await;
    }

    async fn jobs_of_workers(&self) {
        let argument = self.plant("argument and result of a job");
        let id = self.kit.enqueue(&json!({ "type": "test.echo", "args": [argument] })).await;
        assert_eq!(self.kit.wait_for_state(&id, "completed").await["result"], json!([argument]));
        let kept = json!({ "type": "test.echo", "args": [self.plant("argument that is kept")], "keep_envelope": true });
        let id = self.kit.enqueue(&kept).await;
        assert_eq!(self.kit.wait_for_state(&id, "completed").await["args"], kept["args"]);
        for (job_type, place) in [
            ("push.fails", "argument of a job that an endpoint refuses"),
            ("command.fails", "argument and output of a program that fails"),
        ] {
            let body = json!({ "type": job_type, "args": [self.plant(place)], "retry": { "max_attempts": 1 } });
            let id = self.kit.enqueue(&body).await;
            assert_eq!(self.kit.wait_for_state(&id, "discarded").await["args"], body["args"]);
        }
        let again = json!({ "type": "test.fail_always", "args": [self.plant("argument of a job that is retried")],
            "retry": { "initial_interval": "PT1H" } });
        let id = self.kit.enqueue(&again).await;
        self.kit.wait_for_state(&id, "retryable").await;
    }

    async fn pulled(&self, queue: &str, body: &Value) -> Value {
        let mut body = body.clone();
        body["queue"] = json!(queue);
        self.kit.enqueue(&body).await;
        let fetched = self.kit.fetch(queue).await.expect("a job");
        assert_eq!(fetched["args"], body["args"]);
        self.canaries.plant_known("token of an attempt", fetched["token"].as_str().expect("a token"));
        fetched
    }

    async fn end(&self, how: &str, claimed: &Value, more: Value) {
        let mut body = json!({ "job_id": claimed["id"], "token": claimed["token"] });
        for (name, value) in more.as_object().expect("an object") {
            body[name] = value.clone();
        }
        let response = self.kit.post(&format!("/ojs/v1/workers/{how}"), &body).await;
        assert_eq!(response.status(), 200, "{}", response.text().await.expect("text"));
    }

    async fn pulled_jobs(&self) {
        let first =
            self.pulled("pull", &json!({ "type": "p", "args": [self.plant("argument of a pulled job")] })).await;
        let id = first["id"].as_str().expect("an id");
        let data = json!({ "note": self.plant("progress of a job") });
        let report = json!({ "progress": 0.5, "data": data, "token": first["token"] });
        assert_eq!(self.kit.post(&format!("/ojs/v1/jobs/{id}/progress"), &report).await.status(), 200);
        assert_eq!(self.kit.job(id).await["progress_data"], data);
        let state = json!({ "s": self.plant("checkpoint of a job") });
        let saved = json!({ "state": state, "token": first["token"] });
        assert_eq!(self.kit.post(&format!("/ojs/v1/jobs/{id}/checkpoint"), &saved).await.status(), 200);
        let signal = json!({ "name": "n", "data": self.plant("signal of a job") });
        assert_eq!(self.kit.post(&format!("/ojs/v1/jobs/{id}/signals"), &signal).await.status(), 201);
        let streamed = json!({ "chunks": [self.plant("output of a job")], "token": first["token"] });
        assert_eq!(self.kit.post(&format!("/ojs/v1/jobs/{id}/output"), &streamed).await.status(), 200);
        let result = json!({ "r": self.plant("result of a pulled job") });
        self.end("ack", &first, json!({ "result": result })).await;
        assert_eq!(self.kit.job(id).await["result"], result);
        for (retry, state) in [
            (json!({ "max_attempts": 1, "on_exhaustion": "dead_letter" }), "discarded"),
            (json!({ "max_attempts": 2, "initial_interval": "PT1H" }), "retryable"),
        ] {
            let body = json!({ "type": "p", "args": [self.plant("argument of a failed job")], "retry": retry });
            let failed = self.pulled("pull", &body).await;
            let error = json!({ "code": "handler_error", "message": self.plant("message of a failure"),
                "details": { "d": self.plant("details of a failure") } });
            self.end("nack", &failed, json!({ "error": error })).await;
            let id = failed["id"].as_str().expect("an id");
            let shown = self.kit.wait_for_state(id, state).await;
            assert_eq!(shown["errors"][0]["message"], error["message"], "{shown}");
            if state == "discarded" {
                let answer = self.kit.post(&format!("/ojs/v1/dead-letter/{id}/retry"), &json!({})).await;
                assert_eq!(answer.status(), 200);
                let again = self.kit.fetch("pull").await.expect("the dead letter again");
                assert_eq!(again["args"], body["args"]);
                self.end("nack", &again, json!({ "error": error })).await;
            }
        }
    }

    async fn workflow(&self) {
        let step = |place| json!({ "type": "w", "args": [self.plant(place)], "options": { "queue": "flow" } });
        let body = json!({ "type": "chain", "name": self.plant("name of a workflow"),
            "meta": { "m": self.plant("meta of a workflow") },
            "steps": [step("argument of a workflow"), step("argument of a later step"), { "type": "group",
                "name": self.plant("nested name"), "for_each": "previous", "jobs": [step("nested argument")] }] });
        let started: Value = self.kit.post("/ojs/v1/workflows", &body).await.json().await.expect("JSON");
        let first = self.kit.fetch("flow").await.expect("a step");
        let result = json!({ "r": self.plant("result of a step") });
        self.end("ack", &first, json!({ "result": result })).await;
        let second = self.kit.fetch("flow").await.expect("the next step");
        assert_eq!((&second["parent_results"][0], &second["args"]), (&result, &body["steps"][1]["args"]));
        self.end("ack", &second, json!({ "result": [result] })).await;
        assert_eq!(self.kit.fetch("flow").await.expect("the nested job")["args"][1], result);
        let path = format!("/ojs/v1/workflows/{}", started["workflow"]["id"].as_str().expect("an id"));
        let shown: Value = self.kit.get(&path).await.json().await.expect("JSON");
        assert_eq!(shown["workflow"]["meta"], body["meta"], "{shown}");
    }

    async fn cron(&self) {
        let template = json!({ "type": "c", "args": [self.plant("argument of a cron entry")],
            "options": { "queue": "cron-jobs" } });
        let body = json!({ "name": "daily", "expression": "@daily", "job_template": template });
        assert_eq!(self.kit.post("/ojs/v1/cron", &body).await.status(), 201);
        assert_eq!(self.kit.post("/ojs/v1/cron/daily/trigger", &json!({})).await.status(), 201);
        assert_eq!(self.kit.fetch("cron-jobs").await.expect("its job")["args"], template["args"]);
    }

    async fn messages(&self) {
        let path = "/v1/channels/news/messages";
        take_part(&self.kit, "news", &json!({ "name": self.plant("info of a member") })).await;
        let (first, second) = (self.plant("message"), self.plant("message, following"));
        for word in [&first, &second] {
            let sent = self.post_with(path, &[("content-type", "text/plain")], word.clone()).await;
            assert_eq!(sent.0, 201);
        }
        let event = [
            ("content-type", "application/json"),
            ("ce-specversion", "1.0"),
            ("ce-id", "1"),
            ("ce-source", "/s"),
            ("ce-type", "t"),
            ("ce-subject", &self.plant("attribute of an event")),
        ];
        let data = json!({ "d": self.plant("data of an event") });
        assert_eq!(self.post_with(path, &event, data.to_string()).await.0, 201);
        let key = [("content-type", "text/plain"), ("idempotency-key", "publish-once")];
        let once = self.plant("message of an idempotent request");
        for _ in 0..2 {
            assert_eq!(self.post_with(path, &key, once.clone()).await.0, 201);
        }
        let batch = json!([{ "data": self.plant("message of a batch") }]);
        assert_eq!(self.kit.post("/v1/channels/news/messages/batch", &batch).await.status(), 200);
        let history: Value = self.kit.get(path).await.json().await.expect("JSON");
        let shown = history["items"].as_array().expect("messages");
        assert_eq!(shown.len(), 5, "{history}");
        assert_eq!((&shown[0]["data"], &shown[1]["data"], &shown[2]["data"]), (&json!(first), &json!(second), &data));
        assert_eq!(shown[2]["attributes"]["subject"], event[5].1);
    }

    async fn subscriptions(&self) {
        let secret = self.canaries.plant_signing_secret("secret of a subscription");
        let url =
            self.endpoint.url(&format!("/{}?k={}", self.plant("path of an endpoint"), self.plant("query of a URL")));
        let target = json!({ "url": url, "secrets": [secret],
            "headers": { "authorization": format!("Bearer {}", self.plant("header of a subscription")) } });
        let retry = json!({ "max_attempts": 2, "initial_interval": "PT1H" });
        for (name, ordering) in [("loose", "none"), ("strict", "channel")] {
            let channel = format!("{name}.events");
            put(
                &self.kit,
                name,
                &json!({ "channels": [channel], "deliver": { "http": target }, "ordering": ordering,
                "retry": retry, "description": self.plant("description of a subscription") }),
            )
            .await;
            let body = json!({ "d": self.plant("message that is not delivered") }).to_string();
            let path = format!("/v1/channels/{channel}/messages");
            assert_eq!(self.post_with(&path, &[("content-type", "application/json")], body).await.0, 201);
        }
        self.endpoint.wait_for_requests(3).await;
        eventually("the failed message is a job", || async {
            let stats: Value = self.kit.get("/ojs/v1/queues/sub.loose").await.json().await.ok()?;
            (stats["queue"]["waiting"] == 1).then_some(())
        })
        .await;
        eventually("the channel is blocked", || async {
            let shown: Value = self.kit.get("/v1/subscriptions/strict").await.json().await.ok()?;
            shown.to_string().contains("\"problem\":").then_some(())
        })
        .await;
        let options = json!({ "queue": { "queue": "from-messages", "type": "m" } });
        put(&self.kit, "to-queue", &json!({ "channels": ["to.queue"], "deliver": options })).await;
        let word = self.plant("message that becomes a job");
        self.post_with("/v1/channels/to.queue/messages", &[("content-type", "text/plain")], word.clone()).await;
        figure(&self.kit, "to-queue", "delivered", 1).await;
        let job = self.kit.fetch("from-messages").await.expect("the message");
        assert!(job["args"].to_string().contains(&word), "{job}");
    }
}

impl Scenario {
    /// Requests with keys and tokens that are none: no answer repeats one.
    async fn refused_requests(&self) {
        let (bearer, token) = (self.plant("key of a request"), self.plant("token in a query"));
        let id = "019539a4-b68c-7def-8000-1a2b3c4d5e6f";
        for path in ["/ojs/v1/jobs", "/ojs/v1/queues", "/v1/subscriptions", "/no/such/path"] {
            let request =
                self.kit.http.get(self.kit.gateway.url(path)).header("authorization", format!("Bearer {bearer}"));
            self.check_answer(request.send().await.expect("an answer")).await;
        }
        for path in ["/v1/channels/news/stream", "/v1/stream", "/v1/ws", "/ojs/v1/jobs", "/no/such/path"] {
            let request = self.kit.http.get(self.kit.gateway.url(&format!("{path}?token={token}")));
            let response = request.send().await.expect("an answer");
            if response.headers()["content-type"] != "text/event-stream" {
                self.check_answer(response).await;
            }
        }
        for call in ["ack", "nack", "heartbeat"] {
            let token = self.plant("wrong token of an attempt");
            let body = json!({ "job_id": id, "token": token, "worker_id": "w", "error": { "message": "m" },
                "active_jobs": [id], "tokens": { id: token } });
            self.check_answer(self.kit.post(&format!("/ojs/v1/workers/{call}"), &body).await).await;
        }
        let secret = self.plant("secret that is none");
        let url = self.kit.gateway.url("/v1/subscriptions/refused");
        let header = format!("Bearer {}\n", self.plant("header that is none"));
        for http in [
            json!({ "url": "http://a.example/", "secrets": [format!("{secret}!")] }),
            json!({ "url": format!("ftp://user:{secret}@a.example/") }),
            json!({ "url": "http://a.example/", "headers": { "authorization": header } }),
        ] {
            let body = json!({ "channels": ["a"], "deliver": { "http": http } }).to_string();
            let request = self.kit.http.put(&url).header("content-type", "application/json").body(body);
            let response = request.send().await.expect("an answer");
            assert_eq!(response.status(), 400);
            self.check_answer(response).await;
        }
    }

    async fn check_answer(&self, response: reqwest::Response) {
        let (url, text) = (response.url().path().to_owned(), response.text().await.expect("text"));
        let found = self.canaries.found_in(text.as_bytes()).into_iter().find(|place| is_credential(place));
        assert_eq!(found, None, "{url}: {text}");
    }
}

/// Rules with secrets, for an endpoint and for a program.
fn rules(canaries: &Canaries, endpoint: &WebhookReceiver) -> String {
    let url = endpoint.url(&format!("/{}", canaries.plant("path of a rule")));
    let (secret, header) = (canaries.plant_signing_secret("secret of a rule"), canaries.plant("header of a rule"));
    format!(
        "[[rule]]\ntype = \"push.*\"\nhttp = {{ url = \"{url}\", allow_private = true, secrets = [\"{secret}\"], \
         headers = {{ authorization = \"Bearer {header}\" }} }}\n\
         [[rule]]\ntype = \"command.*\"\n[rule.command]\nprogram = \"/bin/sh\"\nargs = [\"-c\", \"cat >&2; exit 3\"]\n"
    )
}

#[tokio::test]
async fn logs_of_every_level_metrics_and_traces_hold_no_payload_and_no_secret() {
    let receiver = OtlpReceiver::start(([127, 0, 0, 1], 0).into());
    let endpoint = receiver.url();
    let variables = [
        ("GALLEY__TELEMETRY__OTLP_ENDPOINT", endpoint.as_str()),
        ("GALLEY__TELEMETRY__OTLP_LOGS_ENDPOINT", &endpoint),
        ("GALLEY__TELEMETRY__OTLP_METRICS_ENDPOINT", &endpoint),
        ("GALLEY__LOG__LEVEL", "trace"),
    ];
    let scenario = Scenario::start(&variables).await;
    scenario.log_everything_again().await;
    scenario.run().await;
    let Scenario { kit, worker, pubsub_worker, canaries, .. } = &scenario;
    for service in [&kit.gateway, worker, pubsub_worker] {
        let log = service.raw_log();
        let leaked = canaries.found_in(log.as_bytes());
        let shown = log.lines().find(|line| !canaries.found_in(line.as_bytes()).is_empty()).unwrap_or_default();
        assert!(leaked.is_empty(), "{leaked:?} in a log: {shown}");
        let metrics = kit.http.get(service.url("/metrics")).send().await.expect("metrics").text().await.expect("text");
        assert_eq!(canaries.found_in(metrics.as_bytes()), BTreeSet::new(), "metrics");
    }
    // The last problems are from the log, too
    let debug = kit.get("/v1/admin/debug").await.text().await.expect("text");
    assert_eq!(canaries.found_in(debug.as_bytes()), BTreeSet::new(), "{debug}");
    let listed = kit.get("/v1/subscriptions").await.text().await.expect("text");
    let found = canaries.found_in(listed.as_bytes()).into_iter().find(|place| is_credential(place));
    assert_eq!(found, None, "{listed}");
    let Scenario { kit, worker, pubsub_worker, canaries, .. } = scenario;
    let GalleyKit { gateway, redis, .. } = kit;
    // Ending sends what is left
    for service in [gateway, worker, pubsub_worker] {
        assert!(service.terminate().await.success());
    }
    drop(redis);
    eventually("something of everything", || async {
        let (spans, records, points) = (receiver.spans(), receiver.log_records(), receiver.points());
        let is_there = |name: &str| {
            spans.iter().any(|span| span.service == name)
                && records.iter().any(|record| record.service == name && record.level == "TRACE")
                && points.iter().any(|point| point.service == name)
        };
        ["gateway", "queue-worker"].into_iter().all(is_there).then_some(())
    })
    .await;
    assert_eq!(canaries.found_in(receiver.received_text().as_bytes()), BTreeSet::new(), "traces, logs and metrics");
}
