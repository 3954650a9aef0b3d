//! Redis over TLS: every connection, and who is refused.

use std::collections::HashSet;

use serde_json::{Value, json};
use testkit::{CertificateFiles, PATIENCE, RedisServer, ServiceProcess, TestAuthority, eventually, redis, skip};

use crate::{
    http_client::CheckedClient,
    kit::{GalleyKit, job_body},
    sse::ChannelEventsClient,
};

type Settings = Vec<(&'static str, String)>;

struct TlsRedis {
    authority: TestAuthority,
    client: CertificateFiles,
    redis: RedisServer,
}

impl TlsRedis {
    /// None where the server has no TLS.
    fn start(names: &[&str]) -> Option<Self> {
        let authority = TestAuthority::new();
        let (server, client) = (authority.issue("redis", names), authority.issue("client", &[]));
        let Some(redis) = RedisServer::start_with_tls(&authority, &server) else {
            skip("this redis-server was built without TLS");
            return None;
        };
        Some(Self { authority, client, redis })
    }

    /// The settings of a service that may connect.
    fn settings(&self) -> Settings {
        vec![
            ("GALLEY__REDIS__URL", self.redis.tls_url("localhost")),
            ("GALLEY__REDIS__TLS_CA_FILE", self.authority.ca_file()),
            ("GALLEY__REDIS__TLS_CERT_FILE", self.client.cert.clone()),
            ("GALLEY__REDIS__TLS_KEY_FILE", self.client.key.clone()),
        ]
    }
}

fn borrowed<'a>(settings: &'a [(&'static str, String)]) -> Vec<(&'a str, &'a str)> {
    settings.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

#[tokio::test]
async fn jobs_and_channels_run_over_tls_and_no_connection_is_plain() {
    let Some(tls) = TlsRedis::start(&["localhost"]) else { return };
    let settings = tls.settings();
    let settings = borrowed(&settings);
    let start = async |name| ServiceProcess::start(name, &tls.redis, &settings).await;
    let (gateway, worker, listener) =
        (start("gateway").await, start("queue-worker").await, start("pubsub-worker").await);
    for service in [&gateway, &worker, &listener] {
        service.wait_until_ready().await;
    }
    let kit = GalleyKit { gateway, http: CheckedClient::new(), redis: tls.redis };
    let later = json!({ "type": "test.noop", "args": [], "scheduled_at": "+PT0.2S", "priority": 5 });
    for body in [job_body("test.echo", &json!([1])), later] {
        let id = kit.enqueue(&body).await;
        kit.wait_for_state(&id, "completed").await;
    }
    let subscription = json!({ "channels": ["orders"], "deliver": { "log": {} } });
    let url = kit.gateway.url("/v1/subscriptions/billing");
    let put = kit.http.put(url).header("content-type", "application/json").body(subscription.to_string());
    assert!(put.send().await.expect("the gateway answers").status().is_success());
    let mut stream = ChannelEventsClient::open(kit.gateway.url("/v1/channels/orders/stream"), None).await;
    // Longer than a record of TLS
    let long = "x".repeat(200_000);
    kit.post("/v1/channels/orders/messages", &json!(long)).await;
    assert_eq!(stream.expect("message").await["data"], json!(long));
    kit.post("/v1/channels/orders/messages", &json!("short")).await;
    listener.wait_for_logged_body("\"short\"").await;
    assert_eq!(kit.get("/ojs/v1/queues").await.status(), 200, "the pool too");
    kit.get("/prodcons").await;
    eventually("the list is emptied", || async { (!worker.tasks().is_empty()).then_some(()) }).await;
    assert_only_tls(&kit).await;
}

/// Every connection but the one that asks came in on the port with TLS. There are those of pub/sub, of blocking reads, of
/// the pool, of threads, and the shared ones.
async fn assert_only_tls(kit: &GalleyKit) {
    // A reader blocks most of the time, and a thread opens its connection with its first command
    eventually("there are connections of all kinds", || has_all_kinds_of_connections(kit)).await;
}

/// Whether there are some of all kinds. Asserts that none is plain.
async fn has_all_kinds_of_connections(kit: &GalleyKit) -> Option<()> {
    let plain_port = kit.redis.port().to_string();
    let list = kit.redis_command(&["CLIENT", "LIST"]).await;
    let list: String = redis::from_redis_value(list).expect("text");
    let field = |line: &str, name: &str| {
        let value = line.split(' ').find_map(|field| field.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default();
        value.to_owned()
    };
    let (mut encrypted, mut kinds) = (0, HashSet::new());
    for line in list.lines() {
        if field(line, "cmd") == "client|list" {
            continue;
        }
        assert!(!field(line, "laddr").ends_with(&format!(":{plain_port}")), "a plain connection: {line}");
        encrypted += 1;
        if field(line, "sub") != "0" {
            kinds.insert("pub/sub");
        }
        if field(line, "flags").contains('b') {
            kinds.insert("blocking");
        }
    }
    (encrypted >= 8 && kinds.len() == 2).then_some(())
}

/// Starts services that must stop by themselves.
async fn assert_refused(kit: &GalleyKit, settings: &[(&'static str, String)], expected: &[&str]) {
    for service in ["gateway", "queue-worker", "pubsub-worker"] {
        let listen = format!("GALLEY__{}__LISTEN", service.to_uppercase().replace('-', "_"));
        let mut variables = borrowed(settings);
        variables.push((&listen, "127.0.0.1:0"));
        // A service whose Redis is slow starts without it
        variables.extend(PATIENCE);
        let output = kit.run_binary(service, &[], &variables).await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.starts_with(&format!("{service}: ")) && said.lines().count() == 1, "{said}");
        assert!(expected.iter().all(|expected| said.contains(expected)), "{expected:?} in {said}");
    }
}

#[tokio::test]
async fn another_authority_another_name_and_a_client_without_a_certificate_are_refused_with_what_to_change() {
    let Some(tls) = TlsRedis::start(&["redis.test"]) else { return };
    let mut settings = tls.settings();
    let ca_file = tls.authority.ca_file();
    let stranger = TestAuthority::new();
    let kit = GalleyKit::start_with(tls.redis, &[]).await;

    assert_refused(&kit, &settings, &["its certificate has another name", "redis.test", "redis.tls_server_name"]).await;
    settings.push(("GALLEY__REDIS__TLS_SERVER_NAME", "redis.test".to_owned()));
    let served = ServiceProcess::start("gateway", &kit.redis, &borrowed(&settings)).await;
    served.wait_until_ready().await;
    settings[1].1 = stranger.ca_file();
    assert_refused(&kit, &settings, &["its certificate is not trusted", "redis.tls_ca_file"]).await;
    settings[1].1 = ca_file;
    let of_stranger = stranger.issue("client", &[]);
    (settings[2].1, settings[3].1) = (of_stranger.cert, of_stranger.key);
    assert_refused(&kit, &settings, &["it refuses TLS with this client", "redis.tls_cert_file"]).await;
    settings[2].1.clear();
    settings[3].1.clear();
    assert_refused(&kit, &settings, &["it refuses TLS with this client", "redis.tls_cert_file"]).await;
}

/// Puts a file in the place of another as a whole: a service that reloads files may read it at any time.
fn replace(path: &str, contents: &[u8]) {
    let new = format!("{path}.new");
    std::fs::write(&new, contents).expect("a file");
    std::fs::rename(&new, path).expect("renamed");
}

#[tokio::test]
async fn certificates_that_change_are_used_by_the_connections_that_follow() {
    let Some(tls) = TlsRedis::start(&["localhost"]) else { return };
    let mut settings = tls.settings();
    settings.push(("GALLEY__RELOAD__INTERVAL_MS", "100".to_owned()));
    let gateway = ServiceProcess::start("gateway", &tls.redis, &borrowed(&settings)).await;
    gateway.wait_until_ready().await;
    let kit = GalleyKit { gateway, http: CheckedClient::new(), redis: tls.redis };
    let ca_file = tls.authority.ca_file();
    let ca = std::fs::read(&ca_file).expect("a file");
    let reloaded = async |event: &str, count: usize| {
        eventually(event, || async { (kit.gateway.events(event).len() >= count).then_some(()) }).await;
    };
    let cut = async || {
        kit.redis_command(&["CLIENT", "KILL", "SKIPME", "yes", "TYPE", "normal"]).await;
    };

    replace(&ca_file, &std::fs::read(TestAuthority::new().ca_file()).expect("a file"));
    reloaded("files.reloaded", 1).await;
    assert_eq!(kit.get("/ojs/v1/queues").await.status(), 200, "open connections go on");
    cut().await;
    kit.gateway.wait_for_event("redis.unavailable").await;
    replace(&ca_file, &ca);
    kit.gateway.wait_until_ready().await;
    assert_eq!(kit.get("/ojs/v1/queues").await.status(), 200, "the pool has the right authority again");

    replace(&tls.client.key, b"no key");
    reloaded("files.reload_failed", 1).await;
    let connected = kit.gateway.events("redis.reconnected").len();
    cut().await;
    // It may not have noticed yet, and be ready on the connection that was cut
    reloaded("redis.reconnected", connected + 1).await;
    kit.gateway.wait_until_ready().await;
    let id = kit.enqueue(&job_body("a", &json!([1]))).await;
    assert_eq!(kit.job(&id).await["state"], "available", "what cannot be used changes nothing");
    assert!(!kit.gateway.raw_log().contains("no key"), "nothing of a file is logged");
    // Another pair of the same authority
    let _ = tls.authority.issue("client", &[]);
    reloaded("files.reloaded", 3).await;
    cut().await;
    kit.gateway.wait_until_ready().await;
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named() {
    let kit = GalleyKit::start().await;
    let authority = TestAuthority::new();
    let (one, other) = (authority.issue("one", &[]), authority.issue("other", &[]));
    let url = ("GALLEY__REDIS__URL", format!("rediss://localhost:{}/5", kit.redis.port()));
    let with = |name: &'static str, value: &str| (name, value.to_owned());
    let cases: [(Settings, Vec<&str>); 4] = [
        (vec![with("GALLEY__REDIS__TLS_CA_FILE", "/no/such.pem")], vec!["redis.tls_ca_file", "/no/such.pem"]),
        (vec![with("GALLEY__REDIS__TLS_CA_FILE", &one.key)], vec!["redis.tls_ca_file", "no certificate"]),
        (
            vec![with("GALLEY__REDIS__TLS_CERT_FILE", &one.cert), with("GALLEY__REDIS__TLS_KEY_FILE", &one.cert)],
            vec!["redis.tls_key_file", "no private key"],
        ),
        (
            vec![with("GALLEY__REDIS__TLS_CERT_FILE", &one.cert), with("GALLEY__REDIS__TLS_KEY_FILE", &other.key)],
            vec!["redis.tls_cert_file", "redis.tls_key_file", "cannot be used"],
        ),
    ];
    for (mut settings, expected) in cases {
        settings.push(url.clone());
        assert_refused(&kit, &settings, &expected).await;
    }
}

#[tokio::test]
async fn a_password_from_a_file_is_used_and_is_never_written_anywhere() {
    const CANARY: &str = "canary-9fK2-redis-password";
    let redis = RedisServer::start();
    let rules = ["SETUSER", "keeper", "on", &format!(">{CANARY}"), "~*", "&*", "+@all"];
    redis::cmd("ACL").arg(&rules).exec_async(&mut redis.connection().await).await.expect("a user");
    let folder = crate::kit::TestFolder::new();
    folder.write("password", &format!("{CANARY}\n"));
    let file = folder.path_text("password");
    let settings = [
        ("GALLEY__REDIS__USERNAME", "keeper"),
        ("GALLEY__REDIS__PASSWORD_FILE", file.as_str()),
        ("GALLEY__LOG__LEVEL", "trace"),
    ];
    let kit = GalleyKit::start_with(redis, &settings).await;
    let worker = kit.start_worker(&settings).await;
    let id = kit.enqueue(&job_body("test.echo", &json!([1]))).await;
    kit.wait_for_state(&id, "completed").await;
    // What it says when the password is refused
    let change = ["SETUSER", "keeper", "resetpass", ">another"];
    redis::cmd("ACL").arg(&change).exec_async(&mut kit.redis.connection().await).await.expect("changed");
    let kill = ["KILL", "SKIPME", "yes", "TYPE", "normal"];
    redis::cmd("CLIENT").arg(&kill).exec_async(&mut kit.redis.connection().await).await.expect("killed");
    kit.gateway.wait_for_event("redis.unavailable").await;
    let refused = kit.run_binary("gateway", &[], &[&settings[..], &PATIENCE].concat()).await;
    let said = [String::from_utf8_lossy(&refused.stderr), String::from_utf8_lossy(&refused.stdout)].concat();
    assert!(said.contains("user or password is wrong"), "{said}");
    let metrics = kit.get("/metrics").await.text().await.expect("text");
    let health: Value = kit.get("/ojs/v1/health").await.json().await.expect("JSON");
    for text in [said, kit.gateway.raw_log(), worker.raw_log(), metrics, health.to_string()] {
        assert!(!text.contains(CANARY), "the password is shown: {text}");
    }
}
