use std::{sync::Arc, time::Duration};

use store::jobs::Claimant;
use testkit::{AnswerHoldProxy, RedisServer, eventually};

use crate::kit::{JOB_BODY, StoreKit, consumer, normal_priority, queue};

#[tokio::test]
async fn two_workers_never_get_the_same_job() {
    let kit = StoreKit::start();
    for _ in 0..200 {
        kit.enqueue(JOB_BODY).await;
    }
    let (a, b) = (consumer(), consumer());
    let mut seen = std::collections::HashSet::new();
    loop {
        let (first, second) = tokio::join!(kit.claim(&a, 7), kit.claim(&b, 7));
        if first.is_empty() && second.is_empty() {
            break;
        }
        for claimed in first.into_iter().chain(second) {
            assert!(seen.insert(claimed.job.id));
        }
    }
    assert_eq!(seen.len(), 200);
}

#[tokio::test]
async fn a_claim_on_a_queue_that_does_not_exist_finds_and_writes_nothing() {
    let kit = StoreKit::start();
    assert!(kit.pull(None).await.is_none());
    assert!(kit.redis_keys().await.is_empty());
}

#[tokio::test]
async fn a_list_of_streams_that_is_old_is_read_again() {
    let kit = StoreKit::start();
    kit.enqueue(JOB_BODY).await;
    let consumer = consumer();
    let worker = "w".parse().expect("a name");
    let by = Claimant::Worker { consumer: &consumer, worker: &worker };
    let mut known = kit.jobs.priorities(&queue()).await.expect("redis runs");
    kit.enqueue(r#"{"type":"a","args":[],"priority":50}"#).await;
    let claimed = kit.jobs.claim(&queue(), &mut known, 1, by).await.expect("redis runs").jobs;
    assert_eq!(claimed[0].job.priority.get(), 50);
    assert_eq!(known.len(), 2);
}

#[tokio::test]
async fn a_blocked_claim_gets_a_job_the_moment_it_arrives() {
    let kit = Arc::new(StoreKit::start());
    kit.jobs.open_queue(&queue()).await.expect("redis runs");
    let blocked = {
        let kit = kit.clone();
        tokio::spawn(async move {
            let mut connection = kit.redis.open_dedicated(Duration::from_mins(1)).await.expect("redis runs");
            let streams = [(queue(), normal_priority())];
            kit.jobs.claim_blocking(&mut connection, &streams, &consumer(), Duration::from_mins(1)).await
        })
    };
    eventually("somebody blocks", || async {
        let info = kit.redis_command(&["INFO", "clients"]).await;
        format!("{info:?}").contains("blocked_clients:1").then_some(())
    })
    .await;
    let id = kit.enqueue(JOB_BODY).await;
    let claimed = blocked.await.expect("no panic").expect("redis runs");
    assert_eq!(claimed.iter().map(|claimed| claimed.job.id).collect::<Vec<_>>(), [id]);
}

#[tokio::test]
async fn a_worker_finds_what_was_handed_to_it_in_an_answer_it_never_got() {
    let kit = StoreKit::start();
    let id = kit.enqueue(JOB_BODY).await;
    let consumer = consumer();
    // The answer is thrown away
    drop(kit.claim_one(&consumer).await);
    let own = kit.jobs.recover_claims(&queue(), normal_priority(), &consumer, |_| true).await.expect("redis runs");
    assert_eq!(own.iter().map(|claimed| claimed.job.id).collect::<Vec<_>>(), [id]);
    // What is recorded meanwhile is not taken up again
    let looked_at = std::cell::Cell::new(0);
    assert_eq!(kit.complete(&consumer, &own[0], "1").await, store::jobs::Settled::Done);
    let count = |_| looked_at.replace(looked_at.get() + 1) < usize::MAX;
    assert!(
        kit.jobs.recover_claims(&queue(), normal_priority(), &consumer, count).await.expect("redis runs").is_empty()
    );
}

#[tokio::test]
async fn a_worker_finds_its_own_jobs_page_by_page() {
    let kit = StoreKit::start();
    for _ in 0..50 {
        kit.enqueue(JOB_BODY).await;
    }
    let consumer = consumer();
    let held = kit.claim(&consumer, 50).await;
    let known = held[7].entry;
    let own = kit
        .jobs
        .recover_claims(&queue(), normal_priority(), &consumer, |entry| entry != known)
        .await
        .expect("redis runs");
    assert_eq!(own.len(), 49);
}

#[tokio::test]
async fn limits_that_are_no_numbers_do_not_keep_pulled_jobs_from_getting_a_lease() {
    let kit = StoreKit::start();
    kit.enqueue(JOB_BODY).await;
    for broken in [["v", "abc"], ["t", "x"]] {
        let entry = [&["XADD", "galley:{default}:s:0", "*", "i", "1", "e", r#"{"type":"a","args":[]}"#], &broken[..]];
        kit.redis_command(&entry.concat()).await;
    }
    let by = Claimant::Pull { worker: None, lease: None };
    let claimed = kit.jobs.claim(&queue(), &mut Vec::new(), 10, by).await.expect("redis runs").jobs;
    assert_eq!(claimed.len(), 3);
    assert_eq!(kit.redis_command(&["ZCARD", "galley:{default}:leases"]).await, redis::Value::Int(3));
}

#[tokio::test]
async fn an_entry_that_cannot_be_read_does_not_keep_the_others_from_being_worked_on() {
    let kit = StoreKit::start();
    let first = kit.enqueue(JOB_BODY).await;
    for broken in [&["nonsense", "1"][..], &["i", "zz", "e", "{}"], &["i", "1"], &["i", "1", "e", "{}", "h", "[]"]] {
        kit.redis_command(&[&["XADD", "galley:{default}:s:0", "*"], broken].concat()).await;
    }
    let mut binary = redis::cmd("XADD");
    binary.arg("galley:{default}:s:0").arg("*").arg("i").arg("1").arg("e").arg(b"\xff\xfe").arg(b"\xff").arg("x");
    binary.exec_async(&mut kit.server.connection().await).await.expect("redis runs");
    let last = kit.enqueue(JOB_BODY).await;
    let claimed: Vec<_> = kit.claim(&consumer(), 10).await.into_iter().map(|claimed| claimed.job.id).collect();
    assert_eq!(claimed, [first, last]);
}

#[tokio::test]
async fn an_active_job_shows_who_has_it_and_since_when() {
    let kit = StoreKit::start();
    let id = kit.enqueue(JOB_BODY).await;
    let worker = "puller-1".parse().expect("a name");
    let by = Claimant::Pull { worker: Some(&worker), lease: None };
    kit.jobs.claim(&queue(), &mut Vec::new(), 1, by).await.expect("redis runs");
    let job = kit.job(id).await;
    assert_eq!(
        (job["state"].as_str(), job["attempt"].as_u64(), job["worker_id"].as_str()),
        (Some("active"), Some(1), Some("puller-1"))
    );
    assert!(job["started_at"].is_string());
    assert_eq!(job, kit.job(id).await, "a second look shows the same");
}

#[tokio::test]
async fn a_first_claim_of_large_jobs_gets_as_many_as_fit_and_parent_results_count() {
    let kit = StoreKit::start();
    let large = "x".repeat(1 << 20);
    for n in 0..12 {
        if n % 2 == 0 {
            kit.enqueue(&format!(r#"{{"type":"a","args":["{large}"]}}"#)).await;
        } else {
            // As the job of a workflow that gets large results
            let results = format!(r#"["{large}"]"#);
            let fields = ["i", "1f", "e", r#"{"type":"a","args":[]}"#, "r", &results];
            let add = ["XADD", "galley:{default}:s:0", "*"];
            kit.redis_command(&[&add[..], &fields].concat()).await;
        }
    }
    let worker = consumer();
    let first = kit.claim(&worker, 128).await;
    assert!((4..=5).contains(&first.len()), "about four mebibytes, not {} jobs", first.len());
    let mut all = first.len();
    loop {
        let more = kit.claim(&worker, 128).await.len();
        if more == 0 {
            break;
        }
        all += more;
    }
    assert_eq!(all, 12);
    // The same bound for what is recovered
    let mut known = std::collections::HashSet::new();
    loop {
        let lost = kit.jobs.recover_claims(&queue(), normal_priority(), &worker, |entry| !known.contains(&entry)).await;
        let lost = lost.expect("redis runs");
        if lost.is_empty() {
            break;
        }
        assert!(lost.len() <= 5, "about four mebibytes, not {} jobs", lost.len());
        known.extend(lost.into_iter().map(|claimed| claimed.entry));
    }
    assert_eq!(known.len(), 12);
}

#[tokio::test]
async fn claims_and_recoveries_ask_for_less_after_an_answer_that_did_not_come_in_time() {
    let server = RedisServer::start();
    let way = AnswerHoldProxy::start(&server).await;
    let slow = [("GALLEY__REDIS__URL", way.url()), ("GALLEY__REDIS__RESPONSE_TIMEOUT_MS", "200".to_owned())];
    let slow = slow.each_ref().map(|(name, value)| (*name, value.as_str()));
    let kit = StoreKit::with_server(server, &slow);
    let add = ["XADD", "galley:{default}:s:0", "*", "i", "1f", "e"];
    kit.redis_command(&["XGROUP", "CREATE", "galley:{default}:s:0", "workers", "0", "MKSTREAM"]).await;
    kit.redis_command(&["SADD", "galley:{default}:priorities", "0"]).await;
    let body = format!(r#"{{"type":"a","args":["{}"]}}"#, "x".repeat(100_000));
    for _ in 0..40 {
        kit.redis_command(&[&add[..], &[body.as_str()]].concat()).await;
    }
    let (worker, name) = (consumer(), "w".parse().expect("a name"));
    let by = Claimant::Worker { consumer: &worker, worker: &name };
    let mut priorities = vec![normal_priority()];
    // The budget halves with each: after 6 it has room for one such job
    for _ in 0..6 {
        way.hold_from(b"\r\n:1\r\n:1");
        let lost = kit.jobs.claim(&queue(), &mut priorities, 1, by).await;
        assert!(lost.is_err(), "it timed out");
        way.release();
    }
    let claimed = eventually("redis answers again", || async {
        kit.jobs.claim(&queue(), &mut vec![normal_priority()], 128, by).await.ok()
    })
    .await;
    assert!(claimed.jobs.len() <= 4, "not {} jobs", claimed.jobs.len());
    let lost = eventually("redis answers in time", || async {
        kit.jobs.recover_claims(&queue(), normal_priority(), &worker, |_| true).await.ok()
    })
    .await;
    assert!(lost.len() <= 4, "not {} jobs", lost.len());
}

#[tokio::test]
async fn jobs_that_were_pulled_in_an_answer_that_never_came_are_released_unspent() {
    let kit = StoreKit::start();
    let way = AnswerHoldProxy::start(&kit.server).await;
    // Only the client that pulls gives answers little time
    let (url, timeout) = (way.url(), ("GALLEY__REDIS__RESPONSE_TIMEOUT_MS", "500"));
    let hasty = StoreKit::with_variables(&[("GALLEY__REDIS__URL", &url), timeout]);
    for _ in 0..3 {
        kit.enqueue(JOB_BODY).await;
    }
    way.hold_from(b"\r\n:1\r\n:1");
    let by = Claimant::Pull { worker: None, lease: None };
    // On a slow machine a claim may be given up before Redis has it
    eventually("jobs are pulled", || async {
        let claim = hasty.jobs.claim(&queue(), &mut vec![normal_priority()], 2, by).await;
        assert!(claim.is_err(), "it timed out");
        (kit.redis_command(&["HLEN", "galley:{default}:active"]).await != redis::Value::Int(0)).then_some(())
    })
    .await;
    way.release();
    eventually("they are released", || async {
        (kit.redis_command(&["HLEN", "galley:{default}:active"]).await == redis::Value::Int(0)).then_some(())
    })
    .await;
    let attempts: Vec<u32> =
        kit.claim(&consumer(), 10).await.iter().map(|claimed| claimed.job.history.current_attempt()).collect();
    assert_eq!(attempts, [1, 1, 1]);
}

#[tokio::test]
async fn no_claim_over_http_lasts_longer_than_the_longest_attempt() {
    let kit = StoreKit::with_variables(&[("GALLEY__JOBS__MAX_ATTEMPT_TIMEOUT_MS", "500")]);
    let maintenance = kit.start_maintenance();
    // Each has one attempt: a second one would be pulled instead of the job after it
    for (body, lease) in [
        (r#"{"type":"a","args":[],"retry":{"max_attempts":1},"timeout_ms":600000}"#, None),
        (r#"{"type":"a","args":[],"retry":{"max_attempts":1},"visibility_timeout_ms":600000}"#, None),
        (r#"{"type":"a","args":[],"retry":{"max_attempts":1}}"#, Some(Duration::from_hours(1))),
    ] {
        let id = kit.enqueue(body).await;
        let claimed = kit.pull(lease).await.expect("the job");
        assert_eq!(claimed.job.id, id);
        eventually("its time is over", || async { (kit.job(id).await["error"]["code"] == "timeout").then_some(()) })
            .await;
    }
    maintenance.stop().await;
}

#[tokio::test]
async fn a_backlog_of_a_million_jobs_delays_neither_the_first_nor_the_newest() {
    const FILL: &str = "for n = 1, 100000 do redis.call('XADD', KEYS[1], '*', 'i', string.format('%x', n), \
                        'e', '{\"type\":\"a\",\"args\":[]}') end return redis.call('XLEN', KEYS[1])";
    let kit = StoreKit::start();
    let first = kit.enqueue(JOB_BODY).await;
    for _ in 0..10 {
        kit.redis_command(&["EVAL", FILL, "1", "galley:{default}:s:0"]).await;
    }
    let newest = kit.enqueue(JOB_BODY).await;
    assert_eq!(kit.jobs.queue_stats(&queue()).await.expect("redis runs").available, 1_000_002);
    assert_eq!(kit.claim_one(&consumer()).await.job.id, first);
    assert_eq!(kit.state(newest).await, "available");
    assert!(kit.jobs.cancel(newest).await.expect("redis runs").is_ok());
    assert_eq!(kit.pull(None).await.expect("the next job").job.summary.job_type.as_str(), "a");
}

#[tokio::test]
async fn jobs_of_an_older_and_of_a_newer_version_are_run_and_what_is_none_delays_nobody() {
    let kit = StoreKit::start();
    kit.enqueue(JOB_BODY).await;
    let stream = "galley:{default}:s:0";
    for fields in [
        // Fields, members and options of the envelope that this version does not know
        &["i", "1", "e", r#"{"type":"newer","args":[],"options_v9":{"a":1},"retry":{"jitter_v9":true}}"#, "zz", "9"][..],
        &["i", "2", "e", r#"{"type":"older","args":[]}"#],
        &["i", "3", "e", r#"{"v":9,"sealed":"?"}"#],
        &["i", "not hex", "e", r#"{"type":"a","args":[]}"#],
        &["other", "fields"],
    ] {
        let mut command = vec!["XADD", stream, "*"];
        command.extend(fields);
        kit.redis_command(&command).await;
    }
    kit.enqueue(r#"{"type":"last","args":[]}"#).await;
    let claimed = kit.claim(&consumer(), 10).await;
    let types: Vec<&str> = claimed.iter().map(|claimed| claimed.job.summary.job_type.as_str()).collect();
    assert_eq!(types, ["test.echo", "newer", "older", "last"]);
}
