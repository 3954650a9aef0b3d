//! Jobs that wait, on the pages of the dashboard: what they wait for, what came, what they saved and streamed, and the decision of a
//! person.

use serde_json::{Value, json};

use crate::{
    dashboard::Visitor,
    kit::{GalleyKit, job_body},
};

async fn nack(kit: &GalleyKit, job: &Value, signal: &str) {
    let wait = json!({ "step": "look <twice>", "signal": signal, "timeout_ms": 3_600_000 });
    let body = json!({ "job_id": job["id"], "token": job["token"], "wait": wait });
    assert_eq!(kit.post("/ojs/v1/workers/nack", &body).await.status(), 200);
}

async fn signals(kit: &GalleyKit, id: &str) -> Value {
    let answer: Value = kit.get(&format!("/ojs/v1/jobs/{id}/signals")).await.json().await.expect("JSON");
    answer["items"].clone()
}

#[tokio::test]
async fn a_person_sees_what_a_job_waits_for_and_decides_on_its_page() {
    let kit = GalleyKit::start().await;
    let id = kit.enqueue(&job_body("pay.out", &json!([1]))).await;
    let job = kit.fetch("default").await.expect("a job");
    nack(&kit, &job, "approval.payout").await;
    let mut visitor = Visitor::new(&kit.gateway);
    let (_, list) = visitor.page("/ui/jobs").await;
    assert!(list.contains("waits for approval.payout"), "{list}");
    let (_, page) = visitor.page(&format!("/ui/jobs/{id}")).await;
    assert!(page.contains("look &#60;twice&#62;") && page.contains("approval.payout"), "{page}");
    let decide = format!("/ui/jobs/{id}/decide");
    assert!(page.contains(&decide));
    for (form, status) in [
        ("signal=approval.payout", 400),
        ("signal=approval.payout&decision=perhaps", 400),
        ("signal=approval.other&decision=approve", 409),
    ] {
        assert_eq!(visitor.form(&decide, form).await.status(), status, "{form}");
    }
    assert_eq!(signals(&kit, &id).await, json!([]));
    let form = "signal=approval.payout&decision=reject&comment=too+much+%3Cb%3E";
    assert_eq!(visitor.form(&decide, form).await.status(), 303);
    let came = signals(&kit, &id).await;
    assert_eq!((&came[0]["data"]["approved"], &came[0]["data"]["comment"]), (&json!(false), &json!("too much <b>")));
    assert_eq!(kit.job(&id).await["state"], "available");
    assert_eq!(visitor.form(&decide, form).await.status(), 409, "it does not wait any more");
    let (_, page) = visitor.page(&format!("/ui/jobs/{id}")).await;
    assert!(!page.contains(&decide) && page.contains("too much ") && !page.contains("<b>\""), "{page}");
    // Only what a person decides has the buttons
    let again = kit.fetch("default").await.expect("it resumed");
    nack(&kit, &again, "answered").await;
    let (_, page) = visitor.page(&format!("/ui/jobs/{id}")).await;
    assert!(!page.contains(&decide) && page.contains("answered"), "{page}");
    assert_eq!(visitor.form(&decide, "signal=answered&decision=approve").await.status(), 409);
}

#[tokio::test]
async fn the_page_of_a_job_has_the_begin_of_its_output_and_its_checkpoint() {
    let kit = GalleyKit::start().await;
    let id = kit.enqueue(&job_body("write", &json!([1]))).await;
    let job = kit.fetch("default").await.expect("a job");
    let post = async |what: &str, mut body: Value| {
        body["token"] = job["token"].clone();
        assert_eq!(kit.post(&format!("/ojs/v1/jobs/{id}/{what}"), &body).await.status(), 200);
    };
    let mut visitor = Visitor::new(&kit.gateway);
    let (_, page) = visitor.page(&format!("/ui/jobs/{id}")).await;
    assert!(!page.contains("id=\"output\"") && !page.contains("id=\"checkpoint\""), "{page}");
    post("checkpoint", json!({ "state": { "cursor": "<page 7>" } })).await;
    post("output", json!({ "chunks": ["Once ", "<upon> ", { "a": 1 }] })).await;
    let (_, page) = visitor.page(&format!("/ui/jobs/{id}")).await;
    assert!(page.contains("Once &#60;upon&#62; {") && page.contains("&#60;page 7&#62;"), "{page}");
    post("output", json!({ "chunks": ["x".repeat(5000)] })).await;
    let (_, page) = visitor.page(&format!("/ui/jobs/{id}")).await;
    assert!(page.contains("galley jobs output") && page.len() < 60_000, "{} bytes", page.len());
}
