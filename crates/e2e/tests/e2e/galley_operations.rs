//! `galley` for operators: channels, maintenance mode, statistics, attempts of rules, dead letters by error.

use serde_json::json;
use testkit::{WebhookReceiver, WebhookReply, eventually};

use crate::{galley::GalleyProgram, kit::job_body, push_handlers::pushing};

#[tokio::test(flavor = "multi_thread")]
async fn channels_and_what_they_keep_are_listed_page_by_page() {
    let galley = GalleyProgram::start().await;
    assert!(galley.run(&["channels", "list"]).await.err.contains("no channels"));
    for number in 0..3 {
        galley.run(&["publish", "news", &format!("hello {number}")]).await.done();
    }
    galley.run(&["publish", "orders", "\u{1b}[31m"]).await.done();
    let list = galley.run(&["channels", "list"]).await.done();
    let row = list.lines().find(|line| line.starts_with("news")).expect("a row");
    assert_eq!(row.split_whitespace().nth(1), Some("3"), "{list}");
    let page = galley.run(&["channels", "list", "--limit", "1"]).await;
    assert!(page.err.contains("--after news"), "{}", page.err);
    assert_eq!(galley.run(&["channels", "list", "--after", "news", "--quiet"]).await.done(), "orders\n");
    let shown = galley.run(&["channels", "show", "news"]).await.done();
    assert!(shown.lines().any(|line| line.starts_with("length") && line.ends_with('3')), "{shown}");
    let first = galley.run(&["channels", "history", "news", "--limit", "2"]).await;
    let next = first.err.split("--after ").nth(1).expect("there are more").trim().to_owned();
    let rest = galley.run(&["channels", "history", "news", "--after", &next]).await;
    assert!(rest.out.contains("hello 2") && !rest.out.contains("hello 1"), "{}", rest.out);
    assert!(!rest.err.contains("--after"), "{}", rest.err);
    let hostile = galley.run(&["channels", "history", "orders"]).await.done();
    assert!(hostile.contains("\\u{1b}[31m"), "{hostile}");
    assert_eq!(galley.run(&["channels", "show", "nobody"]).await.code, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn maintenance_mode_is_asked_for_shown_and_ended() {
    let galley = GalleyProgram::start().await;
    let asked = galley.run(&["maintenance", "on"]).await;
    assert!(asked.code == 2 && asked.err.contains("all queues"), "{}", asked.err);
    let on = ["maintenance", "on", "--reason", "a new disk", "--estimate", "PT30M", "--yes"];
    let shown = galley.run(&on).await.done();
    assert!(shown.contains("on") && shown.contains("a new disk") && shown.contains("estimated end"), "{shown}");
    galley.kit.enqueue(&job_body("test.echo", &json!([1]))).await;
    assert!(galley.kit.fetch("default").await.is_none(), "nothing is handed out");
    assert_eq!(galley.json(&["maintenance", "show"]).await["maintenance"], true);
    assert!(galley.run(&["maintenance", "off"]).await.done().contains("off"));
    assert!(galley.kit.fetch("default").await.is_some());
    assert_eq!(galley.run(&["maintenance", "on", "--estimate", "soon", "--yes"]).await.code, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn statistics_are_shown_now_and_as_a_line_of_the_last_hour() {
    let galley = GalleyProgram::start().await;
    let _worker = galley.kit.start_worker(&[("GALLEY__STATISTICS__FLUSH_MS", "100")]).await;
    let id = galley.kit.enqueue(&job_body("test.echo", &json!([1]))).await;
    galley.kit.wait_for_state(&id, "completed").await;
    let processed = |shown: &str| {
        let row = shown.lines().find(|line| line.starts_with("processed  ")).expect("a row").to_owned();
        row.split_whitespace().nth(1).map(str::to_owned)
    };
    let shown = eventually("the worker has sent its sums", || async {
        let shown = galley.run(&["stats"]).await.done();
        (processed(&shown).as_deref() == Some("1")).then_some(shown)
    })
    .await;
    assert!(shown.contains('█') && shown.lines().any(|line| line.starts_with("completed") && line.ends_with('1')));
    let queue = galley.run(&["stats", "--queue", "default", "--period", "1h", "--since", "-P1D"]).await.done();
    assert_eq!(processed(&queue).as_deref(), Some("1"), "{queue}");
    assert_eq!(galley.json(&["stats", "--queue", "default"]).await["period"], "1m");
    for wrong in [&["stats", "--period", "2m"][..], &["stats", "--queue", "nowhere"], &["stats", "--since", "soon"]] {
        assert_eq!(galley.run(wrong).await.code, 1, "{wrong:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_of_a_rule_are_listed_and_the_job_of_one_is_sent_again() {
    let galley = GalleyProgram::start().await;
    let receiver = WebhookReceiver::start([WebhookReply::new(422, "", "not like this")]).await;
    let (_worker, _folder) = pushing(&galley.kit, &receiver, "").await;
    let id = galley.kit.enqueue(&job_body("email.send", &json!([]))).await;
    galley.kit.wait_for_state(&id, "discarded").await;
    let list = ["push-rules", "attempts", "*", "--outcome", "failed"];
    let attempt = eventually("the attempt is logged", || async {
        galley.json(&list).await["items"][0]["id"].as_str().map(str::to_owned)
    })
    .await;
    let rules = galley.run(&["push-rules", "list"]).await.done();
    let row: Vec<&str> = rules.lines().nth(1).expect("a rule").split_whitespace().collect();
    assert_eq!((row[0], &row[2..]), ("*", &["0", "1"][..]), "{rules}");
    assert_eq!(galley.json(&["push-rules", "show", "*"]).await["attempts"]["failed"], 1);
    assert_eq!(galley.run(&["push-rules", "show", "other"]).await.code, 1);
    let table = galley.run(&list).await.done();
    assert!(["422", "not like this", &id].iter().all(|text| table.contains(text)), "{table}");
    receiver.reply_with(WebhookReply::ok("2"));
    let again = galley.run(&["push-rules", "resend", "*", &attempt]).await.done();
    assert!(again.contains(&id), "{again}");
    galley.kit.wait_for_state(&id, "completed").await;
    assert_eq!(galley.run(&["push-rules", "resend", "*", "f1-1"]).await.code, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_counted_by_type_of_error() {
    let galley = GalleyProgram::start().await;
    let die = async |queue: &str, error_type: &str| {
        let retry = json!({ "max_attempts": 1, "on_exhaustion": "dead_letter" });
        let id = galley.kit.enqueue(&json!({ "type": "a", "args": [], "queue": queue, "retry": retry })).await;
        let fetched = galley.kit.fetch(queue).await.expect("a job");
        let error = json!({ "code": "handler_error", "type": error_type, "message": "m" });
        let body = json!({ "job_id": id, "worker_id": "puller", "token": fetched["token"], "error": error });
        assert_eq!(galley.kit.post("/ojs/v1/workers/nack", &body).await.status(), 200);
    };
    for (queue, error_type) in [("mail", "Smtp.Refused"), ("mail", "Smtp.Refused"), ("other", "Tls\u{1b}[2J")] {
        die(queue, error_type).await;
    }
    let stats = galley.json(&["dead", "stats"]).await;
    assert_eq!((&stats["total"], &stats["examined"], &stats["complete"]), (&json!(3), &json!(3), &json!(true)));
    assert_eq!(stats["by_error_type"]["Smtp.Refused"], 2, "{stats}");
    let shown = galley.run(&["dead", "stats"]).await.done();
    assert!(shown.contains("Smtp.Refused") && shown.contains("Tls\\u{1b}[2J") && shown.contains("other"), "{shown}");
}
