//! Signatures as a receiver finds them, in Rust and with the code of the document in Python.

use std::{
    io::Write,
    process::{Command, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use delivery::http::{
    Endpoint, PushRequest, Secret,
    signature::{PublicKey, SignatureError, SignatureHeaders, verify, verify_with_public_keys},
};
use serde_json::json;

use crate::kit::{ReceivedRequest, SECRET, Server, WebhookReply, now_ms, secret, settings, system_network};

const PRIVATE: &str = "whsk_nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=";
const OTHER_PRIVATE: &str = "whsk_xaqN9D+fg3vtt0QvMdy3sWbThTUHbwlLhc46LgtEWPc=";
const NEW: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

async fn received(secrets: Vec<Secret>) -> ReceivedRequest {
    let server = Server::start([WebhookReply::ok("1")]).await;
    let settings = delivery::http::EndpointSettings { secrets, ..settings(&server.url("/")) };
    let endpoint = Endpoint::new(settings, &system_network()).expect("allowed");
    let headers = [("ce-type", "a.b"), ("ce-subject", "饭 \"1\""), ("traceparent", "00-1-2-01")];
    let body = Bytes::from_static(b"{\"n\": 1.0}\xff");
    endpoint
        .post(PushRequest { id: "job-1", values: &[], headers: &headers, body, sent_at: now_ms() })
        .await
        .expect("a success");
    server.requests().remove(0)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

fn signed(received: &ReceivedRequest) -> SignatureHeaders<'_> {
    let header = |name| received.header(name).expect(name);
    SignatureHeaders {
        id: header("webhook-id"),
        timestamp: header("webhook-timestamp"),
        signature: header("webhook-signature"),
    }
}

#[tokio::test]
async fn a_request_is_signed_with_each_secret() {
    let new: Secret = NEW.parse().expect("a secret");
    let received = received(vec![new.clone(), secret()]).await;
    for (known, result) in [
        (vec![secret()], Ok(())),
        (vec![new], Ok(())),
        (
            vec!["whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA".parse().expect("a secret")],
            Err(SignatureError::NoMatchingSignature),
        ),
    ] {
        assert_eq!(verify(&known, signed(&received), &received.body, now()), result);
    }
    assert_eq!(
        verify(&[secret()], signed(&received), b"{\"n\": 1}\xff", now()),
        Err(SignatureError::NoMatchingSignature)
    );
    assert_eq!(
        verify(&[secret()], signed(&received), &received.body, now() + 400),
        Err(SignatureError::TimestampOutsideTolerance)
    );
    assert_eq!(received.header("ce-type"), Some("a.b"));
    assert_eq!(received.header("ce-subject"), Some("%E9%A5%AD%20%221%22"));
    assert_eq!(received.header("traceparent"), Some("00-1-2-01"));
}

#[tokio::test]
async fn without_a_secret_there_is_no_signature() {
    let received = received(vec![]).await;
    assert_eq!(received.header("webhook-signature"), None);
    assert_eq!(received.header("webhook-id"), Some("job-1"));
}

/// Whether a function of the document, the n-th, takes a request for one of Galley's.
fn python_says(nth: usize, secrets: &[&str], headers: &serde_json::Value, body: &[u8]) -> String {
    let document = include_str!("../../../../docs/push.md");
    let code = document.split("```python\n").nth(nth).and_then(|rest| rest.split("```").next()).expect("code");
    let program = format!(
        "{code}\nimport json, sys\ncase = json.load(sys.stdin)\n\
         print(is_from_galley(case['secrets'], case['headers'], bytes(case['body'])))"
    );
    let python = std::env::var("GALLEY_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let mut child = Command::new(python)
        .args(["-c", &program])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python");
    let case = json!({ "secrets": secrets, "headers": headers, "body": body });
    child.stdin.take().expect("a pipe").write_all(case.to_string().as_bytes()).expect("python reads");
    let output = child.wait_with_output().expect("python ends");
    assert!(output.status.success(), "python failed");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn headers_of(received: &ReceivedRequest) -> serde_json::Value {
    let names = ["webhook-id", "webhook-timestamp", "webhook-signature"];
    names.into_iter().map(|name| (name.to_owned(), json!(received.header(name).expect(name)))).collect()
}

#[tokio::test]
async fn another_implementation_verifies_a_key_pair_and_needs_only_the_public_key() {
    let python = std::env::var("GALLEY_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    if !Command::new(python).args(["-c", "import cryptography"]).status().is_ok_and(|status| status.success()) {
        testkit::skip("there is no cryptography for python");
        return;
    }
    let (pair, other): (Secret, Secret) = (PRIVATE.parse().expect("a key"), OTHER_PRIVATE.parse().expect("a key"));
    let (public, other_public) = (pair.public_key().expect("its key"), other.public_key().expect("its key"));
    // While one is replaced by the other, and beside a shared secret
    let received = received(vec![secret(), pair, other]).await;
    let headers = headers_of(&received);
    for (keys, body, says) in [
        (&[&*public][..], &received.body[..], "True"),
        (&[&other_public], &received.body, "True"),
        (&["whpk_PUAXw+hDiVqStwqnTRt+vJyYLM8uxJaMwM1V8Sr0Zgw=", &public], &received.body, "True"),
        (&["whpk_PUAXw+hDiVqStwqnTRt+vJyYLM8uxJaMwM1V8Sr0Zgw="], &received.body, "False"),
        (&[&public], b"{}", "False"),
    ] {
        assert_eq!(python_says(2, keys, &headers, body), says, "{keys:?}");
    }
    assert_eq!(python_says(1, &[SECRET], &headers, &received.body), "True", "the shared secret signs too");
    let keys = [public.parse::<PublicKey>().expect("a key")];
    assert_eq!(verify_with_public_keys(&keys, signed(&received), &received.body, now()), Ok(()));
}

#[tokio::test]
async fn the_documents_ten_lines_of_python_verify_a_request() {
    let received = received(vec![NEW.parse().expect("a secret"), secret()]).await;
    let headers = headers_of(&received);
    assert_eq!(python_says(1, &[SECRET], &headers, &received.body), "True");
    assert_eq!(python_says(1, &[NEW], &headers, &received.body), "True");
    assert_eq!(python_says(1, &[SECRET], &headers, b"{}"), "False");
    assert_eq!(python_says(1, &["whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"], &headers, &received.body), "False");
    let mut old = headers;
    old["webhook-timestamp"] = json!((now() - 400).to_string());
    assert_eq!(python_says(1, &[SECRET], &old, &received.body), "False");
}
