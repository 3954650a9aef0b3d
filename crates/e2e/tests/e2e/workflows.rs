//! Workflows over HTTP, run by a queue-worker or pulled.

use serde_json::{Value, json};
use testkit::{RedisServer, ServiceProcess, eventually};

use crate::kit::{GalleyKit, job_body};

impl GalleyKit {
    async fn start_workflow(&self, body: &Value) -> Value {
        let response = self.post("/ojs/v1/workflows", body).await;
        assert_eq!(response.status(), 201);
        let location = response.headers()["location"].to_str().expect("text").to_owned();
        let answer: Value = response.json().await.expect("JSON");
        assert_eq!(location, format!("/ojs/v1/workflows/{}", answer["workflow"]["id"].as_str().expect("an id")));
        answer["workflow"].clone()
    }

    async fn workflow(&self, id: &Value) -> Value {
        let path = format!("/ojs/v1/workflows/{}", id.as_str().expect("an id"));
        let answer: Value = self.get(&path).await.json().await.expect("JSON");
        answer["workflow"].clone()
    }

    async fn workflow_reaches(&self, id: &Value, state: &str) -> Value {
        eventually(&format!("workflow {id} is {state}"), || async {
            let workflow = self.workflow(id).await;
            (workflow["state"] == state).then_some(workflow)
        })
        .await
    }

    async fn ack(&self, claimed: &Value, result: &Value) {
        let body = json!({ "job_id": claimed["id"], "token": claimed["token"], "result": result });
        assert_eq!(self.post("/ojs/v1/workers/ack", &body).await.status(), 200);
    }

    async fn cancel_workflow(&self, id: &Value) -> (u16, Value) {
        let url = self.gateway.url(&format!("/ojs/v1/workflows/{}", id.as_str().expect("an id")));
        let response = self.http.delete(url).send().await.expect("an answer");
        (response.status().as_u16(), response.json().await.expect("JSON"))
    }
}

#[tokio::test]
async fn a_worker_runs_a_chain_and_each_step_gets_the_results_before_it() {
    let kit = GalleyKit::start().await;
    let _worker = kit.start_worker(&[]).await;
    let retry = json!({ "initial_interval": "PT0.05S" });
    let steps = json!([
        { "type": "test.echo", "args": [{ "n": 1 }] },
        { "type": "test.fail_once", "args": [], "options": { "retry": retry, "priority": 5 } },
        { "type": "test.gather", "args": [], "options": { "queue": "demo" } },
    ]);
    let body = json!({ "type": "chain", "name": "three", "meta": { "k": 1 }, "steps": steps });
    let started = kit.start_workflow(&body).await;
    assert_eq!((&started["state"], &started["steps_total"]), (&json!("running"), &json!(3)));
    let over = kit.workflow_reaches(&started["id"], "completed").await;
    assert_eq!(over["members"][2]["result"], json!([[{ "n": 1 }], null]));
    assert_eq!((&over["name"], &over["meta"]["k"], &over["steps_completed"]), (&json!("three"), &json!(1), &json!(3)));
    let last = kit.job(over["members"][2]["id"].as_str().expect("an id")).await;
    assert_eq!((&last["workflow_id"], &last["workflow_index"]), (&started["id"], &json!(2)));
    assert_eq!(last["parent_results"], json!([[{ "n": 1 }], null]));
}

#[tokio::test]
async fn a_worker_runs_a_dag_and_each_job_gets_the_results_of_those_that_it_depends_on() {
    let kit = GalleyKit::start().await;
    let _worker = kit.start_worker(&[]).await;
    let step = |id: &str, job_type: &str, depends_on: &[&str]| json!({ "id": id, "type": job_type, "args": [id], "depends_on": depends_on });
    let steps = json!([
        step("all", "test.gather", &["left", "right"]),
        step("left", "test.gather", &["start"]),
        step("right", "test.gather", &["start", "other"]),
        step("start", "test.produce", &[]),
        step("other", "test.produce", &[]),
    ]);
    let started = kit.start_workflow(&json!({ "steps": steps, "options": { "queue": "demo" } })).await;
    assert_eq!(started["type"], "dag");
    let over = kit.workflow_reaches(&started["id"], "completed").await;
    let steps = over["steps"].as_array().expect("steps");
    let last = steps.iter().position(|step| step["id"] == "all").expect("a step");
    assert_eq!(over["members"][last]["result"], json!([["start"], ["start", "other"]]));
    assert_eq!(steps[last]["depends_on"], json!(["left", "right"]));
    let page =
        kit.get(&format!("/ui/workflows/{}", over["id"].as_str().expect("an id"))).await.text().await.expect("text");
    assert_eq!(page.matches("<path d=").count(), 5, "a line for each dependency: {page}");
}

#[tokio::test]
async fn workers_run_a_batch_and_its_callbacks_get_all_results() {
    let kit = GalleyKit::start().await;
    let workers = [kit.start_worker(&[]).await, kit.start_worker(&[]).await];
    let mut jobs: Vec<Value> = (0..60).map(|n| job_body("test.produce", &json!([n]))).collect();
    jobs.push(json!({ "type": "test.fail_always", "args": [], "retry": { "max_attempts": 1 } }));
    let callbacks = json!({
        "on_complete": job_body("test.gather", &json!([])),
        "on_success": job_body("test.gather", &json!([])),
        "on_failure": job_body("test.noop", &json!([])),
    });
    let started = kit.start_workflow(&json!({ "type": "batch", "jobs": jobs, "callbacks": callbacks })).await;
    let over = kit.workflow_reaches(&started["id"], "failed").await;
    assert_eq!((&over["jobs_completed"], &over["jobs_failed"]), (&json!(60), &json!(1)));
    let mut results: Vec<Value> = (0..60).map(|n| json!(n)).collect();
    results.push(Value::Null);
    assert_eq!(over["callbacks"][0]["result"], json!(results));
    let states: Vec<&Value> = over["callbacks"].as_array().expect("an array").iter().map(|c| &c["state"]).collect();
    assert_eq!(states, ["completed", "cancelled", "completed"]);
    drop(workers);
}

#[tokio::test]
async fn a_program_that_pulls_is_given_the_results_and_one_call_tells_the_status() {
    let kit = GalleyKit::start().await;
    let steps = [job_body("a", &json!([])), job_body("b", &json!([])), job_body("c", &json!([]))];
    let started = kit.start_workflow(&json!({ "type": "chain", "steps": steps })).await;
    let first = kit.fetch("default").await.expect("a step");
    assert!(first["parent_results"].is_null());
    kit.ack(&first, &json!({ "report_id": 7 })).await;
    let second = kit.fetch("default").await.expect("the next step, at once");
    assert_eq!(second["parent_results"][0]["report_id"], 7);
    let running = kit.workflow(&started["id"]).await;
    let states: Vec<&Value> = running["members"].as_array().expect("an array").iter().map(|m| &m["state"]).collect();
    assert_eq!(states, ["completed", "active", "waiting"]);
    let listed: Value = kit.get("/ojs/v1/workflows?state=running&limit=5").await.json().await.expect("JSON");
    assert_eq!(listed["items"][0]["id"], started["id"]);

    let error = json!({ "code": "handler_error", "message": "no", "retryable": false });
    let nack = json!({ "job_id": second["id"], "token": second["token"], "error": error });
    assert_eq!(kit.post("/ojs/v1/workers/nack", &nack).await.status(), 200);
    let over = kit.workflow(&started["id"]).await;
    assert_eq!(
        (&over["state"], &over["steps_completed"], &over["jobs_failed"]),
        (&json!("failed"), &json!(1), &json!(1))
    );
    assert_eq!(kit.cancel_workflow(&started["id"]).await.0, 409);
    let listed: Value = kit.get("/ojs/v1/workflows").await.json().await.expect("JSON");
    assert_eq!(listed["items"], json!([]));
}

#[tokio::test]
async fn cancelling_a_workflow_stops_what_runs_and_what_waits() {
    let kit = GalleyKit::start().await;
    let worker = kit.start_worker(&[("GALLEY__QUEUE_WORKER__CONCURRENCY", "1")]).await;
    let jobs = [
        job_body("test.slow", &json!([600_000])),
        job_body("test.noop", &json!([])),
        job_body("test.noop", &json!([])),
    ];
    let started = kit.start_workflow(&json!({ "type": "group", "jobs": jobs })).await;
    kit.wait_for_state(started["members"][0]["id"].as_str().expect("an id"), "active").await;
    let (status, answer) = kit.cancel_workflow(&started["id"]).await;
    assert_eq!((status, &answer["workflow"]["state"]), (200, &json!("cancelled")));
    assert_eq!(answer["workflow"]["jobs_cancelled"], 3);
    worker.wait_for_event("attempt.lost").await;
    // Its place is free again, and nothing of the workflow is in front
    let next = kit.enqueue(&job_body("test.noop", &json!([]))).await;
    kit.wait_for_state(&next, "completed").await;
    assert_eq!(kit.cancel_workflow(&started["id"]).await.0, 409);
    assert_eq!(kit.workflow(&started["id"]).await["jobs_cancelled"], 3);
}

#[tokio::test]
async fn workflows_survive_a_worker_that_is_killed_in_the_middle() {
    let kit = GalleyKit::start_with(RedisServer::start(), &[]).await;
    let brisk = [("GALLEY__JOBS__LEASE_MS", "2000"), ("GALLEY__WORKFLOWS__CHECK_MS", "200")];
    let doomed = kit.start_worker(&brisk).await;
    let steps = [
        job_body("test.echo", &json!([1])),
        job_body("test.slow", &json!([4000])),
        job_body("test.gather", &json!([])),
    ];
    let group: Vec<Value> = (0..20).map(|_| job_body("test.slow", &json!([300]))).collect();
    let chain = kit.start_workflow(&json!({ "type": "chain", "steps": steps })).await;
    let group = kit.start_workflow(&json!({ "type": "group", "jobs": group })).await;
    kit.wait_for_state(chain["members"][1]["id"].as_str().expect("an id"), "active").await;
    doomed.kill();
    let _heir = ServiceProcess::start("queue-worker", &kit.redis, &brisk).await;
    let over = kit.workflow_reaches(&chain["id"], "completed").await;
    assert_eq!(over["members"][2]["result"], json!([[1], null]));
    let over = kit.workflow_reaches(&group["id"], "completed").await;
    assert_eq!(over["jobs_completed"], 20);
}

#[tokio::test]
async fn a_worker_splits_maps_and_gathers_and_runs_workflows_in_workflows() {
    let kit = GalleyKit::start().await;
    let _worker = kit.start_worker(&[]).await;
    let step = |id: &str, job_type: &str, args: Value, depends_on: &[&str]| json!({ "id": id, "type": job_type, "args": args, "depends_on": depends_on });
    let mut map = step("map", "test.echo", json!(["x"]), &["split"]);
    map["for_each"] = json!("split");
    let mut inner = json!({ "type": "chain", "name": "inner" });
    inner["steps"] = json!([job_body("test.gather", &json!([])), job_body("test.gather", &json!([]))]);
    (inner["id"], inner["depends_on"]) = (json!("inner"), json!(["map"]));
    let steps = json!([
        step("split", "test.echo", json!([1, [2], null]), &[]),
        map,
        inner,
        step("all", "test.gather", json!([]), &["map", "inner"])
    ]);
    let started = kit.start_workflow(&json!({ "type": "dag", "name": "outer", "steps": steps })).await;
    let over = kit.workflow_reaches(&started["id"], "completed").await;
    let mapped = json!([["x", 1], ["x", [2]], ["x", null]]);
    assert_eq!(over["members"][1]["result"], mapped, "{over}");
    assert_eq!(over["members"][2]["result"], json!([[mapped]]), "{over}");
    assert_eq!(over["members"][3]["result"], json!([mapped, [[mapped]]]), "{over}");
    assert_eq!((&over["steps"][1]["for_each"], &over["members"][1]["for_each"]), (&json!("split"), &json!(0)));
    assert_eq!(over["steps"][1]["workflow_id"], over["members"][1]["id"]);
    // The pages lead down and up
    let inner = kit.workflow(&over["members"][2]["id"]).await;
    assert_eq!((&inner["name"], &inner["parent_workflow_id"]), (&json!("inner"), &over["id"]));
    let (outer_id, inner_id) = (over["id"].as_str().expect("an id"), inner["id"].as_str().expect("an id"));
    let page = kit.get(&format!("/ui/workflows/{outer_id}")).await.text().await.expect("text");
    assert!(page.contains(&format!("href=\"/ui/workflows/{inner_id}\"")), "{page}");
    let page = kit.get(&format!("/ui/workflows/{inner_id}")).await.text().await.expect("text");
    assert!(page.contains(&format!("href=\"/ui/workflows/{outer_id}\"")), "{page}");
    let job = kit.job(inner["members"][0]["id"].as_str().expect("an id")).await;
    assert_eq!((&job["workflow_id"], &job["parent_results"]), (&inner["id"], &json!([mapped])));
}

#[tokio::test]
async fn a_step_for_each_element_of_what_is_no_array_fails_and_says_why() {
    let kit = GalleyKit::start().await;
    let steps = json!([job_body("a", &json!([])), { "type": "b", "args": [], "for_each": "previous" }]);
    let started = kit.start_workflow(&json!({ "type": "chain", "steps": steps })).await;
    kit.ack(&kit.fetch("default").await.expect("a step"), &json!({ "items": [] })).await;
    let over = kit.workflow(&started["id"]).await;
    assert_eq!((&over["state"], &over["members"][1]["error"]["code"]), (&json!("failed"), &json!("not_an_array")));
    let page =
        kit.get(&format!("/ui/workflows/{}", over["id"].as_str().expect("an id"))).await.text().await.expect("text");
    assert!(page.contains("which returned an object"), "{page}");
    assert_eq!(
        kit.get(&format!("/ojs/v1/workflows/{}", over["members"][1]["id"].as_str().expect("an id"))).await.status(),
        404
    );
}

#[tokio::test]
async fn the_nested_example_of_the_open_job_spec_is_accepted() {
    let kit = GalleyKit::start().await;
    let group = json!({ "type": "group", "id": "wf_019539a4-transform-group", "name": "parallel-transforms",
        "jobs": [job_body("transform.csv", &json!([])), job_body("transform.parquet", &json!([]))] });
    let steps = json!([job_body("data.extract", &json!([])), group, job_body("data.load", &json!([]))]);
    let response = kit.post("/ojs/v1/workflows", &json!({ "type": "chain", "name": "etl", "steps": steps })).await;
    assert_eq!(response.status(), 201);
    let answer: Value = response.json().await.expect("JSON");
    assert!(
        answer["warnings"][0].as_str().is_some_and(|text| text.starts_with("steps[1]: id is not used")),
        "{answer}"
    );
    kit.ack(&kit.fetch("default").await.expect("extract"), &json!("raw")).await;
    for transform in ["transform.csv", "transform.parquet"] {
        let claimed = kit.fetch("default").await.expect(transform);
        assert_eq!((&claimed["type"], &claimed["parent_results"]), (&json!(transform), &json!(["raw"])));
        kit.ack(&claimed, &json!(transform)).await;
    }
    let last = kit.fetch("default").await.expect("load");
    assert_eq!(last["parent_results"], json!(["raw", ["transform.csv", "transform.parquet"]]));
}

#[tokio::test]
async fn steps_of_a_dag_that_could_never_start_are_refused() {
    let kit = GalleyKit::start().await;
    let step = |id: &str, depends_on: &[&str]| json!({ "id": id, "type": "a", "args": [], "depends_on": depends_on });
    for (body, message) in [
        (json!({ "type": "dag", "jobs": [] }), "unknown member \"jobs\""),
        (json!({ "type": "dag", "steps": [job_body("a", &json!([]))] }), "steps[0].id is required"),
        (json!({ "type": "dag", "steps": [step("a", &["b"])] }), "steps[0].depends_on must name other steps"),
        (
            json!({ "type": "dag", "steps": [step("a", &["b"]), step("b", &["a"])] }),
            "in a circle: \"a\" -> \"b\" -> \"a\"",
        ),
    ] {
        let response = kit.post("/ojs/v1/workflows", &body).await;
        assert_eq!(response.status(), 400, "{body}");
        let answer: Value = response.json().await.expect("JSON");
        let said = answer["error"]["message"].as_str().expect("a message");
        assert!(said.contains(message), "{body}: {said}");
    }
}

#[tokio::test]
async fn workflows_that_cannot_be_nested_are_refused_and_nothing_is_written() {
    let kit = GalleyKit::start_with(RedisServer::start(), &[("GALLEY__WORKFLOWS__MAX_JOBS", "2")]).await;
    let before = kit.redis_keys().await;
    let good = job_body("a", &json!([]));
    let each = |of: &str| json!({ "type": "a", "args": [], "for_each": of });
    let inner = |steps: &[&Value]| json!({ "type": "chain", "steps": steps });
    for (body, message) in [
        (
            json!({ "type": "group", "jobs": [good, inner(&[])] }),
            "jobs[1]: steps must be a JSON array of 1 to 2 jobs, got 0",
        ),
        (
            json!({ "type": "group", "jobs": [good, inner(&[&good, &good])] }),
            "at most 2 jobs, those of workflows in it among them, got 3",
        ),
        (inner(&[&good, &each("split")]), "steps[1].for_each must be \"previous\" in a chain"),
        (
            json!({ "type": "group", "jobs": [each("previous")] }),
            "jobs[0]: for_each is for the steps of a \"chain\" or a \"dag\"",
        ),
        ((0..6).fold(good.clone(), |steps, _| inner(&[&steps])), "workflows can be nested at most 5 levels deep"),
    ] {
        let response = kit.post("/ojs/v1/workflows", &body).await;
        assert_eq!(response.status(), 400, "{body}");
        let answer: Value = response.json().await.expect("JSON");
        let said = answer["error"]["message"].as_str().expect("a message");
        assert!(said.contains(message), "{body}: {said}");
    }
    assert_eq!(kit.redis_keys().await, before);
}

#[tokio::test]
async fn bad_workflows_are_refused_clearly_and_nothing_is_written() {
    let kit = GalleyKit::start_with(RedisServer::start(), &[("GALLEY__WORKFLOWS__MAX_JOBS", "2")]).await;
    let before = kit.redis_keys().await;
    let good = job_body("a", &json!([]));
    for (body, status, code, message) in [
        (json!({}), 400, "invalid_request", "type is required"),
        (
            json!({ "type": "tree", "jobs": [good] }),
            400,
            "invalid_request",
            "\"chain\", \"group\", \"batch\" or \"dag\"",
        ),
        (json!({ "type": "chain", "steps": [] }), 400, "invalid_request", "steps must be a JSON array of 1 to 2 jobs"),
        (json!({ "type": "group", "jobs": [good, good, good] }), 400, "invalid_request", "1 to 2 jobs, got 3"),
        (
            json!({ "type": "group", "jobs": [good, { "type": "A", "args": [] }] }),
            400,
            "invalid_request",
            "jobs[1]: type must match",
        ),
        (json!({ "type": "batch", "jobs": [good] }), 400, "invalid_request", "callbacks is required"),
        (
            json!({ "type": "group", "jobs": [{ "type": "a", "args": [], "retry": { "max_attempts": -1 } }] }),
            422,
            "invalid_request",
            "jobs[0]: retry.max_attempts",
        ),
    ] {
        let response = kit.post("/ojs/v1/workflows", &body).await;
        assert_eq!(response.status(), status, "{body}");
        let answer: Value = response.json().await.expect("JSON");
        let said = answer["error"]["message"].as_str().expect("a message");
        assert!(answer["error"]["code"] == code && said.contains(message), "{body}: {said}");
    }
    assert_eq!(kit.get("/ojs/v1/workflows?state=failed").await.status(), 400);
    assert_eq!(kit.get("/ojs/v1/workflows?limit=0").await.status(), 400);
    for id in ["019539a4-b68c-7def-8000-1a2b3c4d5e6f", "no-id"] {
        assert_eq!(kit.get(&format!("/ojs/v1/workflows/{id}")).await.status(), 404);
        assert_eq!(kit.cancel_workflow(&json!(id)).await.0, 404);
    }
    assert_eq!(kit.redis_keys().await, before);

    let id = "019539a4-b68c-7def-8000-1a2b3c4d5e6f";
    let body = json!({ "type": "chain", "id": id, "steps": [good] });
    assert_eq!(kit.start_workflow(&body).await["id"], id);
    let again = kit.post("/ojs/v1/workflows", &body).await;
    assert_eq!(again.status(), 409);
    let answer: Value = again.json().await.expect("JSON");
    assert_eq!(answer["error"]["code"], "duplicate");
}
