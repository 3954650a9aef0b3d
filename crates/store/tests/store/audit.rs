//! The audit in Redis.

use store::audit::AuditEntry;

use crate::kit::StoreKit;

#[tokio::test]
async fn the_audit_is_read_from_the_newest_entry_in_pages_and_stays_small() {
    let kit = StoreKit::start();
    let redis = kit.redis.clone();
    assert_eq!(redis.read_audit(None, 10).await.expect("read"), Vec::<AuditEntry>::new());
    for n in 0..500 {
        redis.add_to_audit(&format!("{{\"n\":{n}}}"), 100).await.expect("written");
    }
    let first = redis.read_audit(None, 3).await.expect("read");
    let texts = |entries: &[AuditEntry]| entries.iter().map(|entry| entry.json.clone()).collect::<Vec<_>>();
    assert_eq!(texts(&first), [r#"{"n":499}"#, r#"{"n":498}"#, r#"{"n":497}"#]);
    let before = first.last().map(|entry| entry.position.to_string().parse().expect("a position"));
    assert_eq!(texts(&redis.read_audit(before, 2).await.expect("read")), [r#"{"n":496}"#, r#"{"n":495}"#]);
    let first = "0-0".parse().expect("a position");
    assert_eq!(redis.read_audit(Some(first), 1).await.expect("read"), []);
    // Redis drops whole nodes of a stream, which hold a hundred entries each
    assert!(redis.read_audit(None, 1000).await.expect("read").len() <= 200);
}
