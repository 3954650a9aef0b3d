//! A key of a namespace tries to reach what lies outside by every page and form of the dashboard.

use std::collections::BTreeSet;

use reqwest::{Client, Method, redirect::Policy};

use crate::{
    keyed::{KeyRing, KeyedKit},
    keys::rows,
    namespaces::{CANARY, Outside},
};

/// What is sent: the route as the page of scopes has it, the path, and a form.
type Attempt = (&'static str, String, String);

/// Pages that show what the key has, and nothing of what it has not.
fn pages(outside: &Outside) -> Vec<(&'static str, String)> {
    let mut pages: Vec<(&str, String)> = [
        ("/", "/"),
        ("/ui/jobs", "/ui/jobs"),
        ("/ui/jobs", "/ui/jobs?q=state:available"),
        ("/ui/jobs", "/ui/jobs?q=canary"),
        ("/ui/workflows", "/ui/workflows"),
        ("/ui/channels", "/ui/channels"),
        ("/ui/subscriptions", "/ui/subscriptions"),
        ("/ui/keys", "/ui/keys"),
        ("/ui/queues", "/ui/queues"),
        ("/ui/cron", "/ui/cron"),
        ("/ui/check", "/ui/check?all=1"),
        ("/ui/dead-letters", "/ui/dead-letters"),
        ("/ui/try", "/ui/try"),
    ]
    .map(|(route, path)| (route, path.to_owned()))
    .into();
    // A job that somebody else enqueued is no example
    pages.push(("/ui/try", format!("/ui/try?from={}", outside.waiting)));
    pages
}

/// Requests that name something outside: each is refused, and does not tell whether it exists.
fn attempts(outside: &Outside) -> Vec<(Method, Attempt)> {
    let job = |rest: &str| format!("/ui/jobs/{}{rest}", outside.waiting);
    let (workflow, admin) = (&outside.workflow, &outside.admin);
    let get = [
        ("/ui/jobs/{id}", job("")),
        ("/ui/jobs/{id}/raw", job("/raw")),
        ("/ui/live", "/ui/live?page=overview".to_owned()),
        ("/ui/live", format!("/ui/live?page=job&id={}", outside.waiting)),
        ("/ui/live", "/ui/live?page=channel&name=other.ch".to_owned()),
        ("/ui/workflows/{id}", format!("/ui/workflows/{workflow}")),
        ("/ui/channels/{channel}", "/ui/channels/other.ch".to_owned()),
        ("/ui/subscriptions/{name}", "/ui/subscriptions/other.sub".to_owned()),
        ("/ui/queues/{queue}", "/ui/queues/other.q".to_owned()),
        ("/ui/queues/{queue}", "/ui/queues/other%2Eq".to_owned()),
        ("/ui/dead-letters", "/ui/dead-letters?queue=other.dead".to_owned()),
        ("/ui/audit", "/ui/audit".to_owned()),
        ("/ui/workers", "/ui/workers".to_owned()),
        ("/ui/check", "/ui/check?queue=other.q".to_owned()),
        ("/ui/push-rules", "/ui/push-rules".to_owned()),
        ("/ui/push-rules/{rule}", "/ui/push-rules/other".to_owned()),
    ];
    let post = [
        ("/ui/jobs/{id}/{action}", job("/cancel"), ""),
        ("/ui/jobs/{id}/{action}", job("/change"), "priority=9"),
        ("/ui/jobs/{id}/{action}", format!("/ui/jobs/{}/retry", outside.dead), ""),
        ("/ui/jobs/{id}/{action}", format!("/ui/jobs/{}/delete", outside.dead), ""),
        ("/ui/try", "/ui/try".to_owned(), "type=a.b&queue=other.q"),
        ("/ui/workflows/{id}/{action}", format!("/ui/workflows/{workflow}/cancel"), ""),
        ("/ui/channels/{channel}/publish", "/ui/channels/other.ch/publish".to_owned(), "body=1"),
        ("/ui/subscriptions/{name}/{action}", "/ui/subscriptions/other.sub/pause".to_owned(), ""),
        ("/ui/subscriptions/{name}/{action}", "/ui/subscriptions/other.sub/delete".to_owned(), "confirm=other.sub"),
        ("/ui/subscriptions/{name}/{action}", "/ui/subscriptions/other.sub/seek".to_owned(), "to=start"),
        ("/ui/subscriptions/{name}/{action}", "/ui/subscriptions/other.sub/resend".to_owned(), "attempt=1-0-0"),
        ("/ui/keys/{id}/{action}", format!("/ui/keys/{admin}/rotate"), ""),
        ("/ui/keys/{id}/{action}", format!("/ui/keys/{admin}/revoke"), ""),
        ("/ui/queues/{queue}/{action}", "/ui/queues/other.q/pause".to_owned(), ""),
        ("/ui/queues/{queue}/{action}", "/ui/queues/other.q/limits".to_owned(), "concurrency=1"),
        ("/ui/queues/{queue}/{action}", "/ui/queues/other.q/purge".to_owned(), "confirm=other.q"),
        ("/ui/queues/{queue}/{action}", "/ui/queues/other.q/delete".to_owned(), "confirm=other.q"),
        ("/ui/workers/{id}/{action}", "/ui/workers/other-worker/stop".to_owned(), ""),
        ("/ui/cron/{name}/{action}", "/ui/cron/other.cron/run".to_owned(), ""),
        ("/ui/cron/{name}/{action}", "/ui/cron/other.cron/delete".to_owned(), "confirm=other.cron"),
        ("/ui/check/repair", "/ui/check/repair".to_owned(), "queue=other.q"),
        ("/ui/maintenance/{action}", "/ui/maintenance/on".to_owned(), "reason=x"),
        ("/ui/log-level/{action}", "/ui/log-level/set".to_owned(), "level=debug"),
        ("/ui/push-rules/{rule}/{action}", "/ui/push-rules/other/resend".to_owned(), "attempt=f1-1"),
        ("/ui/dead-letters/{action}", "/ui/dead-letters/retry".to_owned(), "queue=other.dead&everything=1&sure=9"),
        ("/ui/jobs/{id}", "/ui/jobs/cancel".to_owned(), "q=queue:other.q&everything=1&sure=9"),
    ];
    let get = get.map(|(route, path)| (Method::GET, (route, path, String::new())));
    get.into_iter().chain(post.map(|(route, path, form)| (Method::POST, (route, path, form.to_owned())))).collect()
}

/// Requests whose names are a choice among many: what lies outside is left out.
fn choices(outside: &Outside) -> Vec<Attempt> {
    vec![
        ("/ui/jobs/{id}", "/ui/jobs/cancel".to_owned(), "everything=1&sure=1000".to_owned()),
        ("/ui/jobs/{id}", "/ui/jobs/delete".to_owned(), "q=state:discarded&everything=1&sure=1000".to_owned()),
        ("/ui/dead-letters/{action}", "/ui/dead-letters/delete".to_owned(), "everything=1&sure=1000".to_owned()),
        ("/ui/jobs/{id}", "/ui/jobs/cancel".to_owned(), format!("id={}&sure=1", outside.waiting)),
        ("/ui/jobs/{id}", "/ui/jobs/retry".to_owned(), format!("id={}&sure=1", outside.dead)),
        ("/ui/dead-letters/{action}", "/ui/dead-letters/delete".to_owned(), format!("id={}&sure=1", outside.dead)),
        ("/ui/dead-letters/{action}", "/ui/dead-letters/retry".to_owned(), format!("id={}&sure=1", outside.dead)),
    ]
}

/// Sends it as a program does, which has no cookie and needs no token of a form. The status and the text of the answer;
/// of a stream no text: it has no end.
async fn send(keyed: &KeyedKit, key: &str, method: Method, path: &str, form: &str) -> (u16, String) {
    let client = Client::builder().redirect(Policy::none()).build().expect("a client");
    let request = client.request(method, keyed.kit.gateway.url(path)).header("authorization", format!("Bearer {key}"));
    let request = request.header("content-type", "application/x-www-form-urlencoded").body(form.to_owned());
    let answer = request.send().await.expect("an answer");
    let is_stream = answer.headers().get("content-type").is_some_and(|kind| kind == "text/event-stream");
    let status = answer.status().as_u16();
    (status, if is_stream { String::new() } else { answer.text().await.expect("text") })
}

/// Whether a text names something outside. What the client named itself may be repeated.
fn tells(text: &str, path: &str, form: &str) -> bool {
    text.contains(CANARY) || (text.contains("other.") && !path.contains("other") && !form.contains("other"))
}

#[tokio::test]
async fn a_key_of_a_namespace_neither_sees_nor_changes_anything_outside_by_any_page() {
    let mut ring = KeyRing::new();
    let acme = ring.add_namespace("acme");
    let keyed = ring.start(&[]).await;
    let outside = Outside::make(&keyed).await;
    let before = outside.state(&keyed).await;
    let (mut problems, mut tried) = (Vec::new(), BTreeSet::new());
    for (route, path) in pages(&outside) {
        tried.insert(format!("GET {route}"));
        let (status, text) = send(&keyed, &acme, Method::GET, &path, "").await;
        if status != 200 || tells(&text, &path, "") || text.contains(&keyed.admin[4..12]) {
            problems.push(format!("GET {path} is answered {status}: {text}"));
        }
    }
    for (method, (route, path, form)) in attempts(&outside) {
        tried.insert(format!("{method} {route}"));
        let (status, text) = send(&keyed, &acme, method.clone(), &path, &form).await;
        if ![403, 404].contains(&status) || tells(&text, &path, &form) {
            problems.push(format!("{method} {path} {form} is answered {status}: {text}"));
        }
    }
    for (route, path, form) in choices(&outside) {
        tried.insert(format!("POST {route}"));
        let (status, text) = send(&keyed, &acme, Method::POST, &path, &form).await;
        if ![200, 303, 403, 404].contains(&status) || tells(&text, &path, &form) {
            problems.push(format!("POST {path} {form} is answered {status}: {text}"));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert_eq!(outside.state(&keyed).await, before, "something outside has changed");
    // A key that it makes has its namespace
    let (status, _) = send(&keyed, &acme, Method::POST, "/ui/keys", "name=k&scope=jobs:read").await;
    tried.insert("POST /ui/keys".to_owned());
    assert!([403, 200].contains(&status), "{status}");
    let needs_a_key = rows().into_iter().filter(|(_, path, cells)| path.starts_with("/ui") && cells["no key"] == "no");
    let missing: Vec<String> = needs_a_key
        .map(|(method, path, _)| format!("{method} {path}"))
        .filter(|route| !tried.contains(route))
        .collect();
    assert!(missing.is_empty(), "try these too: {missing:?}");
}
