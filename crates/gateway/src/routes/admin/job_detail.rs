//! One job in the shape of the admin API: the whole job, and what the specification puts beside it.

use common::json::{Object, ObjectWriter};
use model::job::RetryPolicy;
use serde_json::json;

use crate::error::ApiError;

/// The times that stand in `metadata` too.
const TIMES: [&str; 7] =
    ["created_at", "enqueued_at", "started_at", "scheduled_at", "completed_at", "cancelled_at", "discarded_at"];

/// The JSON of a job with every member that the admin API promises. What the client sent stays byte for byte.
pub(super) fn detail_json(job: &str) -> Result<String, ApiError> {
    let members = Object::of_stored(job).map_err(ApiError::internal)?;
    let mut detail = ObjectWriter::with_capacity(job.len() + 512);
    for (name, value) in members.iter().filter(|(name, _)| *name != "metadata") {
        detail.raw(name, value.get());
    }
    for (name, absent) in
        [("specversion", "\"1.0\""), ("args", "[]"), ("meta", "{}"), ("errors", "[]"), ("result", "null")]
    {
        if members.get(name).is_none() {
            detail.raw(name, absent);
        }
    }
    if members.get("retry_policy").is_none() {
        let standard = RetryPolicy::standard();
        let policy = match members.get("retry") {
            Some(policy) => policy.get().to_owned(),
            None => json!({ "max_attempts": standard.max_attempts }).to_string(),
        };
        detail.raw("retry_policy", &policy);
    }
    detail.raw("metadata", &metadata_json(&members));
    Ok(detail.finish())
}

/// The client's `metadata`, and the times of the job.
fn metadata_json(members: &Object<'_>) -> String {
    let mut metadata = ObjectWriter::with_capacity(256);
    let sent = members.get("metadata").and_then(|raw| Object::of_stored(raw.get()).ok());
    if let Some(sent) = &sent {
        for (name, value) in sent.iter().filter(|(name, _)| !TIMES.contains(name)) {
            metadata.raw(name, value.get());
        }
    }
    for name in TIMES {
        metadata.raw(name, members.get(name).map_or("null", |raw| raw.get()));
    }
    metadata.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_with_more_members_than_a_request_may_have_is_shown() {
        let members: Vec<String> = (0..300).map(|number| format!("\"x{number}\":{number}")).collect();
        let members = members.join(",");
        let job = format!("{{\"id\":\"x\",{members},\"metadata\":{{{members},\"x1\":2}}}}");
        let detail = detail_json(&job).expect("it was accepted once");
        assert!(detail.contains("\"x299\":299,\"specversion\""), "{detail}");
        assert!(detail.contains("\"x299\":299,\"x1\":2,\"created_at\":null"), "{detail}");
    }

    #[test]
    fn a_detail_has_every_promised_member_and_leaves_what_the_client_sent() {
        let job = r#"{"id":"x","state":"active","created_at":"t","type":"a","args":[1.50],"metadata":{"k":1e3,"created_at":"no"},
            "retry":{"max_attempts":7}}"#;
        let detail = detail_json(job).expect("a job");
        assert!(detail.contains("\"args\":[1.50]") && detail.contains("\"k\":1e3"), "{detail}");
        let detail: serde_json::Value = serde_json::from_str(&detail).expect("JSON");
        assert_eq!(detail["metadata"]["created_at"], "t");
        assert_eq!((&detail["retry_policy"]["max_attempts"], &detail["specversion"]), (&json!(7), &json!("1.0")));
        assert_eq!((&detail["errors"], &detail["meta"], &detail["result"]), (&json!([]), &json!({}), &json!(null)));
    }
}
