//! Redis behind real sentinels: what the store does when the primary moves.

use std::{sync::Arc, time::Duration};

use common::{id::JobId, settings::Settings, trace_context::TraceContext};
use model::job::NewJob;
use redis::{InfoDict, aio::ConnectionLike};
use store::{
    Redis,
    connection::{notifier::SubscriberEvent, server::ServerError},
};
use testkit::{
    CertificateFiles, RedisServer, SENTINEL_PASSWORD, SentinelProcesses, SentinelSet, TestAuthority, eventually,
    has_ipv6, skip,
};

use crate::kit::{JOB_BODY, StoreKit, consumer, normal_priority, queue};

const URL: &str = "GALLEY__REDIS__URL";
const TOPIC: &str = "after-the-failover";
const LONG: Duration = Duration::from_mins(1);
/// Where no server hangs: a request that is slow is not sent twice, and no connection to a slow server counts as lost.
const PATIENT: [(&str, &str); 2] =
    [("GALLEY__REDIS__CONNECT_TIMEOUT_MS", "20000"), ("GALLEY__REDIS__RESPONSE_TIMEOUT_MS", "20000")];
/// After how long a server that stands still is down when the test wants it to be.
const SOON: Duration = Duration::from_secs(1);

/// A store that knows the sentinels only. The kit looks at the server that becomes the primary.
async fn start(patience: &[(&str, &str)]) -> (Arc<StoreKit>, RedisServer, SentinelProcesses) {
    let SentinelSet { primary, replica, sentinels } = SentinelSet::start().await;
    let url = sentinels.url();
    let kit = StoreKit::with_server(replica, &[&[(URL, url.as_str())][..], patience].concat());
    (Arc::new(kit), primary, sentinels)
}

async fn try_enqueue(kit: &StoreKit) -> Option<JobId> {
    let now = kit.jobs.now().await.ok()?;
    let new = NewJob::parse(&serde_json::from_str(JOB_BODY).expect("JSON"), now).expect("valid");
    Some(kit.jobs.enqueue(new, TraceContext::default(), now).await.ok()?.expect("accepted").job.id)
}

/// Claims with a blocking read.
async fn claim(kit: &StoreKit) -> Option<Vec<JobId>> {
    let mut connection = kit.redis.open_dedicated(LONG).await.ok()?;
    let streams = [(queue(), normal_priority())];
    let claimed = kit.jobs.claim_blocking(&mut connection, &streams, &consumer(), LONG).await.ok()?;
    Some(claimed.iter().map(|claimed| claimed.job.id).collect())
}

/// The port of the server at the other end of a connection.
async fn port_of(connection: &mut impl ConnectionLike) -> Option<u16> {
    let info: InfoDict = redis::cmd("INFO").arg("server").query_async(connection).await.ok()?;
    info.get("tcp_port")
}

/// Commands, the pool and blocking reads lead to that server, and what is written is there.
async fn assert_all_lead_to(kit: &StoreKit, server: &RedisServer) {
    let id = eventually("a job is accepted", || try_enqueue(kit)).await;
    let mut direct = server.connection().await;
    let length: u64 = redis::cmd("XLEN").arg("galley:{default}:s:0").query_async(&mut direct).await.expect("a stream");
    assert_eq!(length, 1);
    assert_eq!(port_of(&mut kit.redis.clone()).await, Some(server.port()));
    let mut pooled = kit.redis.pooled_connection().await.expect("redis runs");
    assert_eq!(port_of(&mut pooled).await, Some(server.port()));
    assert_eq!(claim(kit).await, Some(vec![id]));
}

#[tokio::test]
async fn after_the_primary_is_killed_everything_goes_on_at_the_replica_that_is_promoted() {
    let (kit, mut primary, sentinels) = start(&PATIENT).await;
    let (_topics, mut heard) = kit.subscribe(&[TOPIC]);
    assert_eq!(heard.recv().await, Some(SubscriberEvent::Subscribed(vec![TOPIC.to_owned()])));
    let before = kit.enqueue(r#"{"type":"a","args":[],"queue":"other"}"#).await;
    kit.jobs.open_queue(&queue()).await.expect("redis runs");
    let blocked = {
        let kit = kit.clone();
        tokio::spawn(async move { claim(&kit).await })
    };
    eventually("somebody blocks", || async {
        let mut connection = primary.connection().await;
        let info: InfoDict = redis::cmd("INFO").arg("clients").query_async(&mut connection).await.ok()?;
        (info.get("blocked_clients") == Some(1)).then_some(())
    })
    .await;
    primary.wait_until_replicated().await;
    sentinels.set_down_after(SOON).await;
    primary.kill();
    assert_eq!(blocked.await.expect("no panic"), None, "a read ends with its server");
    sentinels.wait_until_primary_is(&kit.server).await;
    assert_all_lead_to(&kit, &kit.server).await;
    assert_eq!(kit.state(before).await, "available");
    assert_eq!(heard.recv().await, Some(SubscriberEvent::ConnectionLost));
    assert_eq!(heard.recv().await, Some(SubscriberEvent::Subscribed(vec![TOPIC.to_owned()])));
    redis::cmd("PUBLISH").arg(TOPIC).arg("m").exec_async(&mut kit.redis.clone()).await.expect("redis runs");
    let message = SubscriberEvent::Message { channel: TOPIC.to_owned(), payload: b"m".to_vec() };
    assert_eq!(heard.recv().await, Some(message));
}

#[tokio::test]
async fn after_a_failover_nothing_leads_to_the_old_primary() {
    let (kit, primary, sentinels) = start(&PATIENT).await;
    assert_all_lead_to(&kit, &primary).await;
    let (_topics, mut heard) = kit.subscribe(&[TOPIC]);
    assert_eq!(heard.recv().await, Some(SubscriberEvent::Subscribed(vec![TOPIC.to_owned()])));
    primary.wait_until_replicated().await;
    sentinels.fail_over().await;
    eventually("the old primary is a replica", || async {
        let mut connection = primary.connection().await;
        let info: InfoDict = redis::cmd("INFO").arg("replication").query_async(&mut connection).await.ok()?;
        (info.get::<String>("role")? == "slave").then_some(())
    })
    .await;
    // It was claimed, so it is still in the stream
    kit.redis_command(&["DEL", "galley:{default}:s:0"]).await;
    assert_all_lead_to(&kit, &kit.server).await;
    assert_eq!(heard.recv().await, Some(SubscriberEvent::ConnectionLost));
    assert_eq!(heard.recv().await, Some(SubscriberEvent::Subscribed(vec![TOPIC.to_owned()])));
}

#[tokio::test]
async fn a_replaced_primary_is_left_though_it_takes_writes_still() {
    // Nobody can make it a replica
    let SentinelSet { primary, replica, sentinels } =
        SentinelSet::start_with_options(&["--rename-command", "SLAVEOF", ""]).await;
    let url = sentinels.url();
    let kit = StoreKit::with_server(replica, &[PATIENT.as_slice(), &[(URL, url.as_str())]].concat());
    assert_all_lead_to(&kit, &primary).await;
    primary.wait_until_replicated().await;
    sentinels.fail_over().await;
    eventually("the store is at the new primary", || async {
        (port_of(&mut kit.redis.clone()).await? == kit.server.port()).then_some(())
    })
    .await;
    kit.redis_command(&["DEL", "galley:{default}:s:0"]).await;
    assert_all_lead_to(&kit, &kit.server).await;
    let mut direct = primary.connection().await;
    redis::cmd("SET").arg("k").arg("v").exec_async(&mut direct).await.expect("it takes writes");
}

#[tokio::test]
async fn a_primary_that_hangs_is_left_with_every_connection_to_it() {
    let (kit, primary, sentinels) = start(&[("GALLEY__REDIS__RESPONSE_TIMEOUT_MS", "2000")]).await;
    let (_topics, mut heard) = kit.subscribe(&[TOPIC]);
    assert_eq!(heard.recv().await, Some(SubscriberEvent::Subscribed(vec![TOPIC.to_owned()])));
    let mut dedicated = kit.redis.open_dedicated(LONG).await.expect("redis runs");
    drop(kit.redis.pooled_connection().await.expect("redis runs"));
    sentinels.set_down_after(SOON).await;
    primary.freeze();
    sentinels.wait_until_primary_is(&kit.server).await;
    assert_all_lead_to(&kit, &kit.server).await;
    assert_eq!(heard.recv().await, Some(SubscriberEvent::ConnectionLost));
    assert_eq!(heard.recv().await, Some(SubscriberEvent::Subscribed(vec![TOPIC.to_owned()])));
    // It is open, and the server could still take what is sent
    let refused = dedicated.query::<redis::Value>(&redis::cmd("PING")).await.expect_err("its server was left");
    assert!(refused.to_string().contains("left"), "{refused}");
}

#[tokio::test]
async fn sentinels_and_servers_may_have_addresses_of_ipv6() {
    if !has_ipv6() {
        return skip("this machine has no address ::1");
    }
    let SentinelSet { primary, replica, sentinels } = SentinelSet::start_at("::1").await;
    let url = sentinels.url();
    assert!(url.contains("[::1]:"), "{url}");
    let kit = StoreKit::with_server(replica, &[(URL, url.as_str()), PATIENT[0], PATIENT[1]]);
    assert_eq!(port_of(&mut kit.redis.clone()).await, Some(primary.port()));
    primary.wait_until_replicated().await;
    sentinels.fail_over().await;
    sentinels.wait_until_primary_is(&kit.server).await;
    eventually("the new primary is used", || async {
        (port_of(&mut kit.redis.clone()).await == Some(kit.server.port())).then_some(())
    })
    .await;
    assert_all_lead_to(&kit, &kit.server).await;
}

#[tokio::test]
async fn the_way_to_sentinels_and_primary_is_encrypted_and_each_has_its_own_password() {
    let authority = TestAuthority::new();
    let certificate = authority.issue("all", &["127.0.0.1"]);
    let Some(SentinelSet { primary, replica, sentinels }) = SentinelSet::start_with_tls(&authority, &certificate).await
    else {
        return skip("this redis-server was built without TLS");
    };
    let mut user = redis::cmd("ACL");
    // Without ROLE the server says in INFO what it is
    user.arg("SETUSER").arg("galley").arg("on").arg(">at-primary").arg("~*").arg("&*").arg("+@all").arg("-role");
    for server in [&primary, &replica] {
        user.exec_async(&mut server.connection().await).await.expect("a user");
    }
    let url = sentinels.url_of("galley", "at-primary");
    let (ca, CertificateFiles { cert, key }) = (authority.ca_file(), certificate);
    let variables = [
        (URL, url.as_str()),
        ("GALLEY__REDIS__SENTINEL_PASSWORD", SENTINEL_PASSWORD),
        ("GALLEY__REDIS__TLS_CA_FILE", &ca),
        ("GALLEY__REDIS__TLS_CERT_FILE", &cert),
        ("GALLEY__REDIS__TLS_KEY_FILE", &key),
        PATIENT[0],
        PATIENT[1],
    ];
    let kit = StoreKit::with_server(replica, &variables);
    kit.redis.check_at_start(&[]).await.expect("it may");
    assert_all_lead_to(&kit, &primary).await;
    let me: String = redis::cmd("ACL").arg("WHOAMI").query_async(&mut kit.redis.clone()).await.expect("redis runs");
    assert_eq!(me, "galley");
    for (password, expected) in [("", "redis.sentinel_password"), ("wrong", "redis.sentinel_password")] {
        let mut variables = variables;
        variables[1].1 = password;
        assert!(problem_at_start(&variables).await.contains(expected), "{password:?}");
    }
}

/// Why a process does not start with these settings.
async fn problem_at_start(variables: &[(&str, &str)]) -> String {
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let settings = Settings::from_sources(None, variables).expect("allowed settings");
    let redis = Redis::new(&settings.redis).expect("a URL");
    match redis.check_at_start(&[]).await {
        Err(ServerError::Unsuitable(problem)) => problem,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_server_where_a_sentinel_should_be_is_refused_at_start() {
    let server = RedisServer::start();
    let url = format!("redis+sentinel://127.0.0.1:{}/galley/5", server.port());
    let problem = problem_at_start(&[(URL, &url)]).await;
    assert!(problem.contains("no sentinel"), "{problem}");
}
