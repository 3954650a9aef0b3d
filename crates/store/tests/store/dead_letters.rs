use common::id::JobId;
use model::job::{AttemptError, RetryAdvice};
use store::jobs::{Claimant, DiscardedFilter, DiscardedList, Settled};
use store::local_now;
use testkit::eventually;

use crate::kit::{StoreKit, consumer, failure, fence};

/// Lets a job of that queue and type die of that error.
async fn die(kit: &StoreKit, queue: &str, job_type: &str, error_type: &str) -> JobId {
    let body = format!(
        r#"{{"type":"{job_type}","args":[],"queue":"{queue}","retry":{{"max_attempts":1,"on_exhaustion":"dead_letter"}}}}"#
    );
    let id = kit.enqueue(&body).await;
    let (consumer, worker) = (consumer(), "w".parse().expect("a name"));
    let by = Claimant::Worker { consumer: &consumer, worker: &worker };
    let queue = queue.parse().expect("a name");
    let claimed = kit.jobs.claim(&queue, &mut Vec::new(), 1, by).await.expect("redis runs").jobs.pop().expect("a job");
    let failure = AttemptError::new("handler_error", error_type, "it failed", 1, local_now());
    kit.jobs.fail(&claimed, &fence(&consumer), failure, RetryAdvice::ByPolicy).await.expect("redis runs");
    id
}

async fn found(kit: &StoreKit, filter: DiscardedFilter) -> Vec<JobId> {
    let letters = kit.jobs.list_discarded(DiscardedList::DeadLetters, &filter, None, 100).await.expect("redis runs");
    let mut ids: Vec<JobId> = letters.jobs.into_iter().map(|(id, _)| id).collect();
    ids.sort_unstable();
    ids
}

#[tokio::test]
async fn dead_letters_are_found_by_what_they_have_in_common() {
    let kit = StoreKit::start();
    let mail = die(&kit, "mail", "email.send", "Smtp.Timeout").await;
    let other_mail = die(&kit, "mail", "email.receive", "Imap.Timeout").await;
    let bill = die(&kit, "billing", "invoice.send", "Smtp.Refused").await;
    let by = |queue: Option<&str>, job_type: Option<&str>, error_type: Option<&str>| DiscardedFilter {
        queue: queue.map(|queue| queue.parse().expect("a name")),
        job_type: job_type.map(ToOwned::to_owned),
        error_type: error_type.map(ToOwned::to_owned),
        ..DiscardedFilter::default()
    };
    assert_eq!(found(&kit, by(Some("mail"), None, None)).await, [mail, other_mail]);
    assert_eq!(found(&kit, by(None, Some("email.*"), None)).await, [mail, other_mail]);
    assert_eq!(found(&kit, by(None, None, Some("Smtp.*"))).await, [mail, bill]);
    assert_eq!(found(&kit, by(Some("mail"), Some("email.send"), Some("Smtp.Refused"))).await, []);
    let later = DiscardedFilter { since: Some(local_now() + 60_000), ..DiscardedFilter::default() };
    assert_eq!(found(&kit, later).await, []);
    let before = DiscardedFilter { until: Some(local_now() + 60_000), ..DiscardedFilter::default() };
    assert_eq!(found(&kit, before).await, [mail, other_mail, bill]);
    let stats = kit.jobs.dead_letter_stats(|_| true).await.expect("redis runs");
    let errors = kit.jobs.dead_letter_errors(&stats).await.expect("redis runs");
    assert_eq!((errors.examined, errors.complete), (3, true));
    assert_eq!(errors.by_type.iter().map(|(_, count)| count).sum::<u64>(), 3);
    assert!(errors.by_type.is_sorted_by(|(_, a), (_, b)| a >= b), "the most frequent first: {:?}", errors.by_type);
    assert_eq!(stats.by_queue.into_values().collect::<Vec<_>>(), [1, 2]);
    assert!(stats.oldest_at <= stats.newest_at && stats.oldest_at.is_some());
}

#[tokio::test]
async fn a_list_goes_on_where_it_stopped_though_letters_die_and_go_meanwhile() {
    let kit = StoreKit::start();
    let mut ids = Vec::new();
    for queue in ["a", "b"] {
        for _ in 0..25 {
            ids.push(die(&kit, queue, "x", "E").await);
        }
    }
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let letters = kit
            .jobs
            .list_discarded(DiscardedList::DeadLetters, &DiscardedFilter::default(), after.as_ref(), 7)
            .await
            .expect("redis runs");
        assert!(letters.jobs.len() <= 7);
        seen.extend(letters.jobs.iter().map(|(id, _)| *id));
        // The last one that was seen goes, and a new one dies: neither may make the list skip or repeat any
        if seen.len() < 20 {
            let last = *seen.last().expect("some");
            kit.jobs.delete_dead_letter(last).await.expect("redis runs");
            die(&kit, "a", "x", "E").await;
        }
        after = letters.next;
        let Some(next) = &after else { break };
        assert_eq!(next.to_string().parse(), Ok(next.clone()));
    }
    let distinct: std::collections::HashSet<JobId> = seen.iter().copied().collect();
    assert_eq!(distinct.len(), seen.len(), "none twice");
    assert!(ids.iter().all(|id| distinct.contains(id)), "none left out");
}

#[tokio::test]
async fn dead_letters_of_one_millisecond_are_listed_once_though_the_last_one_seen_is_deleted() {
    let kit = StoreKit::start();
    let mut ids = Vec::new();
    for _ in 0..50 {
        let id = die(&kit, "a", "x", "E").await;
        kit.redis_command(&["ZADD", "galley:{a}:dead", "XX", "1700000000000", &id.to_string()]).await;
        ids.push(id);
    }
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = kit
            .jobs
            .list_discarded(DiscardedList::DeadLetters, &DiscardedFilter::default(), after.as_ref(), 7)
            .await
            .expect("redis runs");
        seen.extend(page.jobs.iter().map(|(id, _)| *id));
        kit.jobs.delete_dead_letter(*seen.last().expect("some")).await.expect("redis runs");
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    ids.reverse();
    assert_eq!(seen, ids, "the newest first, each once");
}

#[tokio::test]
async fn many_dead_letters_are_tried_again_at_once_and_keep_their_errors() {
    let kit = StoreKit::start();
    let ids = [die(&kit, "q", "x", "E").await, die(&kit, "q", "x", "E").await];
    assert_eq!(kit.jobs.redrive_all(&ids).await.expect("redis runs"), 2);
    assert_eq!(kit.jobs.redrive_all(&ids).await.expect("redis runs"), 0, "they are none any more");
    let job = kit.job(ids[0]).await;
    assert_eq!((job["state"].as_str(), job["attempt"].as_u64()), (Some("available"), Some(0)));
    assert_eq!(job["errors"][0]["type"], "E");
    die(&kit, "q", "x", "F").await;
    let letters = kit
        .jobs
        .list_discarded(DiscardedList::DeadLetters, &DiscardedFilter::default(), None, 10)
        .await
        .expect("redis runs")
        .jobs;
    let left: Vec<JobId> = letters.into_iter().map(|(id, _)| id).collect();
    assert_eq!(kit.jobs.delete_dead_letters(&left).await.expect("redis runs"), left.len());
    assert!(kit.jobs.dead_letter_stats(|_| true).await.expect("redis runs").by_queue.is_empty());
}

#[tokio::test]
async fn a_list_that_finds_little_among_much_stops_and_says_where_to_go_on() {
    let kit = StoreKit::start();
    let wanted = die(&kit, "q", "wanted", "E").await;
    let large = format!(r#"{{"type":"large","args":["{}"],"#, "x".repeat(1_000_000));
    for _ in 0..40 {
        let body = format!(r#"{large}"queue":"q","retry":{{"max_attempts":1,"on_exhaustion":"dead_letter"}}}}"#);
        kit.enqueue(&body).await;
    }
    let (consumer, worker) = (consumer(), "w".parse().expect("a name"));
    let by = Claimant::Worker { consumer: &consumer, worker: &worker };
    let queue = "q".parse().expect("a name");
    for _ in 0..40 {
        let claimed = kit.jobs.claim(&queue, &mut Vec::new(), 1, by).await.expect("redis runs").jobs.pop();
        let failure = AttemptError::new("handler_error", "E", "it failed", 1, local_now());
        kit.jobs
            .fail(&claimed.expect("a job"), &fence(&consumer), failure, RetryAdvice::ByPolicy)
            .await
            .expect("redis runs");
    }
    let filter = DiscardedFilter { job_type: Some("wanted".to_owned()), ..DiscardedFilter::default() };
    let first = kit.jobs.list_discarded(DiscardedList::DeadLetters, &filter, None, 10).await.expect("redis runs");
    assert!(first.jobs.is_empty() && first.next.is_some(), "40 MB are more than it looks through");
    let second = kit
        .jobs
        .list_discarded(DiscardedList::DeadLetters, &filter, first.next.as_ref(), 10)
        .await
        .expect("redis runs");
    assert_eq!(second.jobs.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [wanted]);
    assert_eq!(second.next, None);
}

/// A dead letter that had so long to be over, and a bit longer to be started; if that is short, both are over.
async fn dead_with(kit: &StoreKit, ms: i64) -> JobId {
    let retry = r#""retry":{"max_attempts":1,"on_exhaustion":"dead_letter"}"#;
    let limit = r#""rate_limit":{"key":"k","concurrency":1},"timeout_ms":5000,"visibility_timeout_ms":7000"#;
    let times = format!(r#""expires_at":"+PT{}.1S","total_timeout_ms":{ms}"#, ms / 1000);
    let id = kit.enqueue(&format!(r#"{{"type":"a","args":["keep me"],{times},{limit},{retry}}}"#)).await;
    let worker = consumer();
    let claimed = kit.claim_one(&worker).await;
    if ms < 1000 {
        let expires_at = claimed.job.summary.expires_at.expect("a time");
        eventually("its time is over", || async {
            (kit.jobs.now().await.expect("redis runs") > expires_at).then_some(())
        })
        .await;
    }
    kit.jobs.fail(&claimed, &fence(&worker), failure(1), RetryAdvice::ByPolicy).await.expect("redis runs");
    id
}

#[tokio::test]
async fn a_dead_letter_that_is_tried_again_keeps_its_limits_and_loses_the_times_that_are_over() {
    let kit = StoreKit::start();
    for (ms, keeps_times) in [(1, false), (3_600_000, true)] {
        let id = dead_with(&kit, ms).await;
        let job = kit.jobs.redrive(id).await.expect("redis runs").expect("a dead letter");
        for member in ["\"expires_at\"", "\"total_timeout_ms\""] {
            assert_eq!(job.contains(member), keeps_times, "{member} in {job}");
        }
        let timer = kit.redis_command(&["ZSCORE", "galley:{default}:timers", &format!("expire {id}")]).await;
        assert_eq!(timer != redis::Value::Nil, keeps_times, "{timer:?}");

        let worker = consumer();
        let again = kit.claim_one(&worker).await;
        assert_eq!((again.job.id, again.job.timeout_ms, again.job.lease_ms), (id, Some(5000), Some(7000)));
        assert_eq!(again.job.limit_key().map(ToString::to_string).as_deref(), Some("k"));
        assert_eq!((again.job.history.attempts, again.job.history.errors.len()), (0, 1), "its error is to be seen");
        let held = kit.redis_command(&["ZSCORE", "galley:{default}:admitted:k", &id.to_string()]).await;
        assert!(held != redis::Value::Nil, "its key counts it");
        if keeps_times {
            let expires_at = again.job.summary.expires_at.expect("a time");
            let deadline = again.job.created_at() + ms;
            assert_eq!(again.job.deadline(), Some(deadline));
            let at: f64 = redis::from_redis_value(timer).expect("a time");
            assert_eq!(at.to_string(), deadline.min(expires_at).to_string());
        }
        assert_eq!(kit.complete(&worker, &again, "1").await, Settled::Done);
    }
}

#[tokio::test]
async fn an_offset_passes_over_those_that_match_and_reads_no_more_than_a_page_may() {
    let kit = StoreKit::start();
    let mut ids = Vec::new();
    for job_type in ["x", "y", "x", "x"] {
        ids.push(die(&kit, "a", job_type, "E").await);
    }
    for (died_at, id) in (1_700_000_000_000_u64..).zip(&ids) {
        kit.redis_command(&["ZADD", "galley:{a}:dead", "XX", &died_at.to_string(), &id.to_string()]).await;
    }
    let of_x = DiscardedFilter { job_type: Some("x".to_owned()), ..DiscardedFilter::default() };
    let list = async |filter: &DiscardedFilter, offset: usize| {
        kit.jobs.list_discarded_from(DiscardedList::DeadLetters, filter, None, offset, 10).await.expect("redis runs")
    };
    let page = list(&of_x, 2).await;
    assert_eq!(page.jobs.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [ids[0]], "the newest first");
    let page = list(&of_x, 3).await;
    assert!(page.jobs.is_empty() && page.next.is_none() && !page.ended_early(), "the end of the list");
    // Newer ones that are gone count as read
    let queue = "a".parse().expect("a name");
    let gone: Vec<String> = (0..10_000).map(|seed| JobId::derived(1, &queue, seed).to_string()).collect();
    let mut command = vec!["ZADD", "galley:{a}:dead"];
    for id in &gone {
        command.extend(["1700000001000", id]);
    }
    kit.redis_command(&command).await;
    let page = list(&of_x, 1).await;
    assert!(page.ended_early(), "the scan ended at its bound: {:?}", page.jobs);
    let next = page.next.expect("more").to_string();
    assert!(gone.iter().any(|id| next.ends_with(id.as_str())), "{next}");
}
