//! API keys in Redis, and copies of those in use.

use common::time::Millis;
use futures_util::future::join_all;
use model::access::{Access, ApiKey, ApiKeyRecord, Scope};
use store::api_keys::{ApiKeyCache, ApiKeys};
use testkit::eventually;

use crate::kit::StoreKit;

fn record(key: &ApiKey) -> ApiKeyRecord {
    let access = Access {
        id: key.id().to_string(),
        name: "a key".to_owned(),
        scopes: [Scope::Work].into_iter().collect(),
        ..Access::everything()
    };
    ApiKeyRecord { id: key.id().clone(), access, hash: key.hash(), previous: None, created_at: Some(1000) }
}

async fn last_used_at(keys: &ApiKeys, key: &ApiKey) -> Option<Millis> {
    keys.get_listed(key.id()).await.expect("redis runs").expect("a key").last_used_at
}

#[tokio::test]
async fn a_key_is_stored_without_its_secret_and_changes_of_many_at_once_all_count() {
    let kit = StoreKit::start();
    let (keys, key) = (ApiKeys::new(&kit.redis), ApiKey::generate());
    keys.create(&record(&key)).await.expect("redis runs").expect("there is room");
    assert_eq!(keys.get(key.id()).await.expect("redis runs"), Some(record(&key)));
    let stored = kit.redis_command(&["HGETALL", "galley:{api_keys}:keys"]).await;
    let secret = key.expose().rsplit('_').next().expect("a secret").to_owned();
    assert!(!format!("{stored:?}").contains(&secret));

    let changes = ('0'..'8').map(|digit| keys.update(key.id(), move |record| record.access.name.push(digit)));
    for changed in join_all(changes).await {
        assert!(changed.expect("redis runs").is_some());
    }
    let name = keys.get(key.id()).await.expect("redis runs").expect("a key").access.name;
    assert!(('0'..'8').all(|digit| name.matches(digit).count() == 1), "{name}");

    assert!(keys.revoke(key.id()).await.expect("redis runs"));
    assert!(!keys.revoke(key.id()).await.expect("redis runs"), "once");
    assert_eq!(keys.get(key.id()).await.expect("redis runs"), None);
    assert!(keys.update(key.id(), |_| ()).await.expect("redis runs").is_none());
}

#[tokio::test]
async fn keys_are_listed_in_pages_by_id() {
    let kit = StoreKit::start();
    let (keys, mut made) = (ApiKeys::new(&kit.redis), Vec::new());
    for _ in 0..5 {
        let key = ApiKey::generate();
        keys.create(&record(&key)).await.expect("redis runs").expect("there is room");
        made.push(key.id().clone());
    }
    made.sort();
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = keys.list(after.as_ref(), 2, |record| record.id != made[1]).await.expect("redis runs");
        assert!(page.keys.len() <= 2);
        seen.extend(page.keys.into_iter().map(|listed| listed.record.id));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    made.remove(1);
    assert_eq!(seen, made);
}

#[tokio::test]
async fn the_last_use_never_goes_back_and_a_revoked_key_leaves_none() {
    let kit = StoreKit::start();
    let (keys, key) = (ApiKeys::new(&kit.redis), ApiKey::generate());
    keys.note_use(key.id().as_str(), 5000).await.expect("redis runs");
    keys.create(&record(&key)).await.expect("redis runs").expect("there is room");
    assert_eq!(last_used_at(&keys, &key).await, None, "before it existed");
    for (at, expected) in [(5000, 5000), (5000, 5000), (4000, 5000), (6000, 6000)] {
        keys.note_use(key.id().as_str(), at).await.expect("redis runs");
        assert_eq!(last_used_at(&keys, &key).await, Some(expected));
    }
    assert!(keys.revoke(key.id()).await.expect("redis runs"));
    let left = kit.redis_command(&["EXISTS", "galley:{api_keys}:uses", "galley:{api_keys}:keys"]).await;
    assert_eq!(left, testkit::redis::Value::Int(0));
}

#[tokio::test]
async fn a_copy_is_used_until_a_change_is_heard() {
    let kit = StoreKit::start();
    let (keys, key) = (ApiKeys::new(&kit.redis), ApiKey::generate());
    let cache = ApiKeyCache::start(&keys, &kit.notifier);
    let id = key.id().as_str();
    assert!(cache.get(id).await.expect("redis runs").is_none());
    keys.create(&record(&key)).await.expect("redis runs").expect("there is room");
    assert!(cache.get(id).await.expect("redis runs").is_some(), "what does not exist is not kept");
    // The copy: a change that nobody announces is not seen at once
    eventually("the subscription is there, and a copy is kept", || async {
        let (one, two) = (cache.get(id).await.ok()??, cache.get(id).await.ok()??);
        std::sync::Arc::ptr_eq(&one, &two).then_some(())
    })
    .await;
    let changed = cache.changed();
    assert!(keys.revoke(key.id()).await.expect("redis runs"));
    changed.await;
    eventually("the revocation is heard", || async { cache.get(id).await.ok()?.is_none().then_some(()) }).await;
}
