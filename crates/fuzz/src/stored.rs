//! What is read back from Redis, where other programs can write.

use model::{
    cron::CronEntry,
    job::{Envelope, JobHistory, KeyLimit},
    subscription::{Redelivery, Subscription},
    workflow::Membership,
};
use serde_json::value::RawValue;
use store::{
    connection::notification::Notification,
    jobs::{Consumer, DiscardedCursor, JobRecord, PurgeCursor},
    keys,
    maintenance::CheckCursor,
    sealing::Sealer,
    workers::{IssuedDirective, WorkerKey},
};

use crate::NOW;

/// The fields of a job's record, each `NAME<line feed>VALUE<NUL>`.
pub(crate) fn job_record(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let fields = text.split('\0').filter_map(|field| field.split_once('\n'));
    let fields: Vec<(String, String)> = fields.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let id = "01a20358-99fa-7000-8000-3239590134ff".parse().expect("an id");
    if let Ok(job) = JobRecord::parse(id, &"default".parse().expect("a name"), fields) {
        let _ = (job.limit_key(), job.created_at(), job.deadline(), job.is_expired(NOW));
        let shown = job.view(model::job::JobState::Available).to_json();
        // The members of an envelope are shown as they are stored
        let _ = serde_json::from_str::<&RawValue>(&shown);
    }
}

pub(crate) fn stored_json(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(history) = JobHistory::parse(text) {
        let again = JobHistory::parse(&history.to_json()).expect("a history that was written can be read");
        let _ = again.current_attempt();
    }
    if let Ok(envelope) = Envelope::from_job_json(text)
        && let Ok(fields) = envelope.fields()
    {
        let _ = (fields.summary(), fields.unique(&"default".parse().expect("a name")), fields.test_directive());
    }
    if let Ok(entry) = serde_json::from_str::<CronEntry>(text) {
        let _ = (entry.schedule(NOW), entry.next_runs(NOW, 2), entry.next_check_at(NOW), entry.to_json());
    }
    let _ = serde_json::from_str::<Subscription>(text);
    if let Ok(raw) = serde_json::from_str::<&RawValue>(text) {
        let _ = Redelivery::from_args(raw);
    }
}

/// Sealed texts and bytes, as somebody may have written them into Redis: nothing is opened that was not sealed here.
pub(crate) fn sealed_value(data: &[u8]) {
    const KEYS: &str = "current = \"a\"\nfingerprint_key = \"MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDI=\"\n[keys]\n\
        a = \"MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=\"\n";
    let keys = Sealer::parse(KEYS, false).expect("keys");
    assert!(keys.open_bytes(&["p"], data).is_err());
    let sealed = keys.seal_bytes(&["p"], data).expect("there are keys");
    assert_eq!(keys.open_bytes(&["p"], &sealed).expect("it was sealed here"), data);
    let Ok(text) = std::str::from_utf8(data) else { return };
    assert!(keys.open(&["p"], text.to_owned()).is_err());
    let stored = keys.seal(&["p"], text).into_owned();
    assert_eq!(keys.open(&["p"], stored).expect("it was sealed here"), text);
    // A file of keys
    if let Ok(keys) = Sealer::parse(text, true) {
        let stored = keys.seal(&["p"], "{}").into_owned();
        assert_eq!(keys.open(&["p"], stored).expect("it was sealed here"), "{}");
    }
}

/// Notifications, cursors, and names in lists.
pub(crate) fn notification(data: &[u8]) {
    if let Some(notification) = Notification::decode(data) {
        let again = Notification::decode(notification.encode().as_bytes());
        assert!(again.is_some(), "{notification:?}");
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = (text.parse::<Membership>(), text.parse::<WorkerKey>(), text.parse::<IssuedDirective>());
    let _ = (text.parse::<CheckCursor>(), text.parse::<PurgeCursor>(), text.parse::<DiscardedCursor>());
    let _ = (Consumer::parse(text), keys::parse_attempt_name(text), KeyLimit::split_field(text));
}
