//! `galley jobs` with a search: list, count, retry, cancel and delete all that match.

use serde_json::{Value, json};

use crate::galley::GalleyProgram;

/// Jobs of a queue that failed for good.
async fn fail_jobs(galley: &GalleyProgram, count: usize, queue: &str, message: &str) -> Vec<String> {
    let mut ids = Vec::new();
    for number in 0..count {
        let id = galley.kit.enqueue(&json!({ "type": "mail.send", "args": [number], "queue": queue })).await;
        let fetched = galley.kit.fetch(queue).await.expect("a job");
        let error = json!({ "code": "smtp", "message": message, "retryable": false });
        let body = json!({ "job_id": id, "worker_id": "puller", "token": fetched["token"], "error": error });
        assert_eq!(galley.kit.post("/ojs/v1/workers/nack", &body).await.status(), 200);
        ids.push(id);
    }
    ids
}

fn ids(answer: &Value) -> Vec<&str> {
    answer["items"].as_array().expect("a list").iter().map(|job| job["id"].as_str().expect("an id")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_search_finds_is_listed_counted_retried_cancelled_and_deleted() {
    let galley = GalleyProgram::start().await;
    let mut failed = fail_jobs(&galley, 3, "mail", "timed out after 30 s").await;
    // Within a millisecond ids are in no order
    failed.sort_unstable();
    fail_jobs(&galley, 1, "other", "mailbox full").await;
    let found = galley.json(&["jobs", "list", "state:discarded", "error:timed out"]).await;
    let mut seen = ids(&found);
    seen.sort_unstable();
    assert_eq!(seen, failed);
    let table = galley.run(&["jobs", "list", "--state", "discarded", "--queue", "mail"]).await.done();
    assert!(table.lines().count() == 4 && table.contains("timed out after 30 s"), "{table}");
    let page = galley.run(&["jobs", "list", "--state", "discarded", "--limit", "1"]).await;
    assert!(page.err.contains("--after"), "{}", page.err);
    let search = "state:discarded error:\"timed out\"";
    let counted = galley.run(&["jobs", "retry", "--matching", search, "--dry-run"]).await.done();
    assert!(counted.starts_with("3 jobs"), "{counted}");
    let asked = galley.run(&["jobs", "retry", "--matching", search]).await;
    assert!(asked.code == 2 && asked.err.contains("3 jobs") && asked.err.contains("timed out"), "{}", asked.err);
    assert_eq!(galley.run(&["jobs", "retry", "--matching", search, "--yes"]).await.done().trim(), "3 retried");
    assert_eq!(galley.json(&["queues", "show", "mail"]).await["queue"]["available"], 3);
    let limited = ["jobs", "cancel", "--matching", "queue:mail state:available", "--limit", "2", "--yes"];
    assert_eq!(galley.run(&limited).await.done().trim(), "2 cancelled");
    let deleted = galley.run(&["jobs", "delete", "--matching", "queue:mail state:cancelled", "--yes"]).await.done();
    assert_eq!(deleted.trim(), "2 deleted");
    let wrong = galley.run(&["jobs", "list", "staet:discarded"]).await;
    assert!(wrong.code == 1 && wrong.err.contains("state"), "{}", wrong.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_arguments_of_a_failed_job_are_mended_before_it_runs_again() {
    let galley = GalleyProgram::start().await;
    let id = fail_jobs(&galley, 1, "mail", "no such user").await.remove(0);
    let changed =
        galley.run(&["jobs", "change", &id, "--args", "[12345678901234567890123]", "--priority", "7"]).await.done();
    assert!(changed.contains("12345678901234567890123"), "{changed}");
    galley.run(&["jobs", "retry", &id]).await.done();
    let fetched = galley.kit.fetch("mail").await.expect("a job");
    assert_eq!(fetched["priority"], 7);
    assert_eq!(galley.run(&["jobs", "change", &id]).await.code, 2, "nothing to change");
    let ended = fail_jobs(&galley, 1, "other", "x").await.remove(0);
    let unasked = galley.run(&["jobs", "delete", &ended]).await;
    assert!(unasked.code == 2 && unasked.err.contains(&ended), "{}", unasked.err);
    galley.run(&["jobs", "delete", &ended, "--yes"]).await.done();
    assert_eq!(galley.run(&["jobs", "get", &ended]).await.code, 1);
}
