//! Starting, checking and configuring the binaries.

use std::process::Command;

use crate::kit::Kit;

#[tokio::test(flavor = "multi_thread")]
async fn healthcheck_says_whether_the_service_on_this_machine_is_ready() {
    let kit = Kit::start().await;
    let listen = kit.gateway.address().to_string();
    let check = |listen: &str| {
        let mut command = Command::new(e2e::binary("gateway"));
        command.arg("healthcheck").env("GALLEY__GATEWAY__LISTEN", listen).output().expect("it runs").status.success()
    };
    assert!(check(&listen));
    assert!(
        check(&listen.replace("127.0.0.1", "0.0.0.0")),
        "an address that listens everywhere is asked through loopback"
    );
    drop(kit);
    assert!(!check(&listen));
}

#[test]
fn a_setting_that_is_not_allowed_ends_the_process_with_a_message_that_names_it() {
    for (binary, name, value, expected) in [
        ("gateway", "GALLEY__GATEWAY__LISTEN", "nowhere", "setting gateway.listen must be an address and port"),
        (
            "queue-worker",
            "GALLEY__QUEUE_WORKER__CONCURRENCY",
            "0",
            "setting queue_worker.concurrency must be 1 to 10000, got 0",
        ),
        ("pubsub-worker", "GALLEY__PUBSUB_WORKER__CHANNELS", "galley:wake", "setting pubsub_worker.channels must be"),
        ("gateway", "GALLEY__NO__SUCH", "1", "unknown field `no`"),
        ("gateway", "GALLEY_CONFIG", "/no/such/file.toml", "/no/such/file.toml"),
    ] {
        let output = Command::new(e2e::binary(binary)).env(name, value).output().expect("it runs");
        assert!(!output.status.success(), "{name}={value}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(said.contains(expected), "{name}={value}: {said}");
    }
}

#[tokio::test]
async fn an_address_that_is_taken_ends_the_process_with_a_message_that_says_so() {
    let kit = Kit::start().await;
    let output = Command::new(e2e::binary("gateway"))
        .env("GALLEY__REDIS__URL", kit.redis.url())
        .env("GALLEY__GATEWAY__LISTEN", kit.gateway.address().to_string())
        .output()
        .expect("it runs");
    assert!(!output.status.success());
    let said = [output.stdout, output.stderr].concat();
    assert!(String::from_utf8_lossy(&said).contains("gateway.listen: cannot listen on"));
}
