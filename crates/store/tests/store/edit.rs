//! Changing jobs that wait or ended, and deleting ended ones.

use common::{id::JobId, time};
use model::job::{JobState, RetryAdvice};
use serde_json::json;
use store::jobs::{EditRefusal, JobChanges};

use crate::kit::{StoreKit, consumer, failure, fence};

fn args(text: &str) -> JobChanges {
    JobChanges { args: Some(text.to_owned()), ..JobChanges::default() }
}

fn priority(number: i64) -> JobChanges {
    JobChanges { priority: Some(number.try_into().expect("a priority")), ..JobChanges::default() }
}

fn at(text: &str) -> JobChanges {
    let time = time::parse_time(text, store::local_now()).expect("a time");
    JobChanges { scheduled_at: Some(time), ..JobChanges::default() }
}

async fn edit(kit: &StoreKit, id: JobId, changes: &JobChanges) -> Result<serde_json::Value, EditRefusal> {
    let job = kit.jobs.edit(id, changes).await.expect("redis runs")?;
    Ok(serde_json::from_str(&job).expect("JSON"))
}

#[tokio::test]
async fn a_waiting_job_gets_other_arguments_another_priority_and_another_time() {
    let kit = StoreKit::start();
    let id = kit.enqueue(r#"{"type":"a","args":[1],"x":1e3}"#).await;
    let first = kit.enqueue(r#"{"type":"a","args":[0]}"#).await;
    let job = edit(&kit, id, &args("[2.50]")).await.expect("it waits");
    assert_eq!((&job["args"], &job["x"], &job["state"]), (&json!([2.5]), &json!(1e3), &json!("available")));
    let job = edit(&kit, id, &priority(7)).await.expect("it waits");
    assert_eq!((&job["priority"], &job["id"]), (&json!(7), &json!(id.to_string())));
    let job = edit(&kit, id, &at("2999-01-01T00:00:00Z")).await.expect("it waits");
    assert_eq!((&job["state"], &job["scheduled_at"]), (&json!("scheduled"), &json!("2999-01-01T00:00:00Z")));
    let job = edit(&kit, id, &at("+PT1H")).await.expect("it waits");
    assert_eq!(job["state"], json!("scheduled"));
    kit.jobs.retry_now(id).await.expect("redis runs").expect("it waits");
    let claimed = kit.claim(&consumer(), 2).await;
    let claimed: Vec<JobId> = claimed.iter().map(|claimed| claimed.job.id).collect();
    assert_eq!(claimed, [id, first], "by its new priority");
    assert_eq!(edit(&kit, id, &args("[]")).await, Err(EditRefusal::State(JobState::Active)));
}

#[tokio::test]
async fn a_limited_job_stays_limited_and_a_unique_one_keeps_the_arguments_it_is_unique_by() {
    let kit = StoreKit::start();
    let body = r#"{"type":"a","args":[1],"rate_limit":{"key":"k","concurrency":1}}"#;
    let running = kit.enqueue(body).await;
    let held = kit.claim_one(&consumer()).await;
    assert_eq!(held.job.id, running);
    let waiting = kit.enqueue(body).await;
    let job = edit(&kit, waiting, &args("[2]")).await.expect("it waits");
    assert_eq!((&job["args"], &job["state"]), (&json!([2]), &json!("available")));
    assert!(kit.claim(&consumer(), 5).await.is_empty(), "its key has no room");
    let stats = kit.jobs.queue_stats(&crate::kit::queue()).await.expect("redis runs");
    assert_eq!((stats.available, stats.active), (1, 1));

    let unique = kit.enqueue(r#"{"type":"u","args":[1],"unique":{"keys":["args"]}}"#).await;
    assert_eq!(edit(&kit, unique, &args("[2]")).await, Err(EditRefusal::Unique));
    assert!(edit(&kit, unique, &priority(3)).await.is_ok());
    let by_type = kit.enqueue(r#"{"type":"t","args":[1],"unique":{"keys":["type"]}}"#).await;
    assert!(edit(&kit, by_type, &args("[2]")).await.is_ok());
}

#[tokio::test]
async fn an_ended_job_is_changed_before_it_runs_again_and_can_be_deleted() {
    let kit = StoreKit::start();
    let body = r#"{"type":"a","args":[1],"retry":{"max_attempts":1,"on_exhaustion":"dead_letter"}}"#;
    let id = kit.enqueue(body).await;
    let worker = consumer();
    let claimed = kit.claim_one(&worker).await;
    kit.jobs.fail(&claimed, &fence(&worker), failure(1), RetryAdvice::ByPolicy).await.expect("redis runs");
    let job = edit(&kit, id, &args("[\"mended\"]")).await.expect("it was discarded");
    assert_eq!((&job["state"], &job["args"]), (&json!("discarded"), &json!(["mended"])));
    assert_eq!(job["errors"].as_array().map(Vec::len), Some(1));
    let refused = edit(&kit, id, &at("+PT1H")).await;
    assert_eq!(refused, Err(EditRefusal::State(JobState::Discarded)));
    edit(&kit, id, &priority(4)).await.expect("it was discarded");
    kit.jobs.redrive(id).await.expect("redis runs").expect("it was discarded");
    let again = kit.claim_one(&worker).await;
    let shown = kit.job(again.job.id).await;
    assert_eq!((again.job.id, &shown["args"], &shown["priority"]), (id, &json!(["mended"]), &json!(4)));
    assert_eq!(kit.jobs.delete_ended(id).await.expect("redis runs"), Err(EditRefusal::State(JobState::Active)));
    kit.jobs.fail(&again, &fence(&worker), failure(1), RetryAdvice::ByPolicy).await.expect("redis runs");
    assert_eq!(kit.jobs.delete_ended(id).await.expect("redis runs"), Ok(()));
    assert!(kit.jobs.locate(id).await.expect("redis runs").is_none());
    assert_eq!(kit.jobs.delete_ended(id).await.expect("redis runs"), Err(EditRefusal::NotFound));
    let stats = kit.jobs.queue_stats(&crate::kit::queue()).await.expect("redis runs");
    assert_eq!(stats.dead, 0);
}
