//! `galley jobs logs`.

use serde_json::json;

use crate::galley::GalleyProgram;

#[tokio::test(flavor = "multi_thread")]
async fn what_a_handler_logged_is_shown_and_followed_to_the_end_of_the_job() {
    let galley = GalleyProgram::start().await;
    let id = galley.kit.enqueue(&json!({ "type": "mail.send", "args": [], "queue": "mail" })).await;
    let fetched = galley.kit.fetch("mail").await.expect("a job");
    let log = async |message: &str| {
        let lines = json!([{ "level": "warn", "message": message }]);
        let body = json!({ "job_id": id, "worker_id": "puller", "token": fetched["token"], "lines": lines });
        assert_eq!(galley.kit.post("/ojs/v1/workers/log", &body).await.status(), 200);
    };
    log("first \u{1b}[31mline").await;
    let shown = galley.run(&["jobs", "logs", &id]).await.done();
    assert!(shown.contains("warn  first \\u{1b}[31mline"), "{shown}");
    let follow = ["jobs", "logs", &id, "--follow"];
    let following = galley.run(&follow);
    let ending = async {
        log("second line").await;
        let body = json!({ "job_id": id, "worker_id": "puller", "token": fetched["token"], "result": 1 });
        assert_eq!(galley.kit.post("/ojs/v1/workers/ack", &body).await.status(), 200);
    };
    let (followed, ()) = tokio::join!(following, ending);
    let followed = followed.done();
    let lines: Vec<&str> = followed.lines().collect();
    assert!(lines.len() == 2 && lines[1].ends_with("second line"), "each line once: {followed}");
}
