//! `galley-client`, and the example that uses it.

use std::{process::Stdio, time::Duration};

use galley_client::{Client, Error, Event, JobState, NewJob, NewWorkflow, Presence, WorkflowStep};
use serde_json::{Value, json};
use testkit::{RedisServer, ServiceProcess, TEST_TIMEOUT, binary_path, eventually};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    net::TcpListener,
    process::{Child, ChildStdout, Command},
    time::timeout,
};

use crate::{kit::GalleyKit, metrics};

fn client(kit: &GalleyKit) -> Client {
    Client::new(&kit.gateway.url("")).expect("a URL").patience(TEST_TIMEOUT)
}

fn job(args: impl serde::Serialize) -> NewJob {
    NewJob::new("test.echo", args).expect("arguments")
}

#[tokio::test]
async fn jobs_are_enqueued_waited_for_and_cancelled() {
    let kit = GalleyKit::start().await;
    let galley = client(&kit);
    let parked = galley.enqueue(job([1]).queue("parked").meta("tenant", "t").priority(7)).await.expect("a job");
    assert_eq!((parked.state, parked.queue.as_str(), parked.attempt), (JobState::Available, "parked", 0));
    assert_eq!((&parked.others["meta"], &parked.others["priority"]), (&json!({ "tenant": "t" }), &json!(7)));
    assert_eq!(galley.cancel(&parked.id).await.expect("cancelled").state, JobState::Cancelled);
    let later = galley.enqueue(job([1]).delay(Duration::from_hours(1))).await.expect("a job");
    assert_eq!(later.state, JobState::Scheduled);
    let waited = galley.wait(&later.id, Duration::from_millis(1)).await.expect("a job");
    assert_eq!(waited.state, JobState::Scheduled, "it is given as it is when the time is over");
    assert_eq!(galley.job("nobody").await.expect_err("no such job").code(), Some("not_found"));
    galley.enqueue(job([2]).queue("parked").unique()).await.expect("the first");
    let twice = galley.enqueue(job([2]).queue("parked").unique()).await.expect_err("a duplicate");
    assert!(matches!(twice, Error::Refused { status: 409, ref code, .. } if code == "duplicate"), "{twice}");
    let draft = |text: &str| job((7, text)).queue("parked").debounce("7", Duration::from_hours(1), None);
    let first = galley.enqueue(draft("old")).await.expect("the first");
    let last = galley.enqueue(draft("new")).await.expect("the first, put off");
    assert_eq!((&last.id, &last.others["args"]), (&first.id, &json!([7, "new"])));
    let once = galley.enqueue_once(job([3]).queue("parked"), "order-3").await.expect("a job");
    assert_eq!(galley.enqueue_once(job([3]).queue("parked"), "order-3").await.expect("the same").id, once.id);
    let all = galley.enqueue_all(&[job([4]), job(("five", 5))]).await.expect("two jobs");
    let _worker = kit.start_worker(&[]).await;
    let done = galley.wait(&all[1].id, TEST_TIMEOUT).await.expect("a job");
    assert_eq!((done.state, done.result_as().ok()), (JobState::Completed, Some(("five".to_owned(), 5))));
    assert_eq!(galley.cancel(&done.id).await.expect_err("it has ended").code(), Some("conflict"));
    let queues = galley.request(http::Method::GET, "/ojs/v1/queues", None, None).await.expect("queues");
    assert!(queues.to_string().contains("parked"), "{queues}");
}

#[tokio::test]
async fn a_subscription_misses_nothing_when_the_gateway_comes_back_and_tells_gaps() {
    let mut kit = GalleyKit::start().await;
    let galley = client(&kit);
    let message = async |news: &mut galley_client::Subscription| match timeout(TEST_TIMEOUT, news.next()).await {
        Ok(Ok(Event::Message(message))) => message.data,
        other => panic!("{other:?}"),
    };
    let mut news = galley.subscribe(["news"]);
    news.open().await.expect("it opens");
    galley.publish("news", &json!({ "n": 1 })).await.expect("published");
    assert_eq!(message(&mut news).await, json!({ "n": 1 }));
    let address = kit.gateway.address().to_string();
    // A port cannot be taken again while the old one still has it
    let elsewhere = ServiceProcess::start("gateway", &kit.redis, &[]).await;
    std::mem::replace(&mut kit.gateway, elsewhere).kill();
    client(&kit).publish_bytes("news", "text/plain", "while away").await.expect("published elsewhere");
    let listen = [("GALLEY__GATEWAY__LISTEN", address.as_str())];
    let _same_address = ServiceProcess::start("gateway", &kit.redis, &listen).await;
    assert_eq!(message(&mut news).await, json!("while away"));
    let last_id = news.last_id().expect("an id").to_owned();
    galley.publish("news", &json!(3)).await.expect("published");
    assert_eq!(message(&mut galley.subscribe(["news"]).after(last_id)).await, json!(3));
    assert_eq!(message(&mut galley.subscribe(["ne*"]).since("-PT1H")).await, json!({ "n": 1 }));
    let mut room = galley.subscribe(["room"]).join_as("ada", &json!({ "name": "Ada" })).presence();
    match timeout(TEST_TIMEOUT, room.next()).await {
        Ok(Ok(Event::Presence(Presence::Members { channel, members }))) => {
            assert_eq!((channel.as_str(), members[0].member.as_str()), ("room", "ada"));
        }
        other => panic!("{other:?}"),
    }
    let members = galley.members("room").await.expect("members");
    assert_eq!((members.len(), &members[0].info), (1, &json!({ "name": "Ada" })));
    let wanted = json!({ "data": { "/n": { "exists": true } } });
    let mut some = galley.subscribe(["news"]).since("-PT1H").filter(&wanted);
    assert_eq!(message(&mut some).await, json!({ "n": 1 }));
    galley.publish("news", &json!({ "n": 4 })).await.expect("published");
    assert_eq!(message(&mut some).await, json!({ "n": 4 }));
}

#[tokio::test]
async fn a_subscription_that_asks_for_differences_gives_whole_messages() {
    let kit = GalleyKit::start().await;
    let galley = client(&kit);
    let mut news = galley.subscribe(["news", "x.*"]).deltas();
    news.open().await.expect("it opens");
    for number in 0..4 {
        galley
            .publish("news", &json!({ "number": number, "words": "lorem ipsum ".repeat(100) }))
            .await
            .expect("published");
    }
    for number in 0..4 {
        let Ok(Ok(Event::Message(message))) = timeout(TEST_TIMEOUT, news.next()).await else { panic!("a message") };
        assert_eq!(message.data["number"], number);
    }
    metrics::value_of(&kit.gateway, "galley_message_deltas_total ", metrics::is(3.0)).await;
}

#[tokio::test]
async fn a_difference_that_does_not_fit_leads_to_a_whole_message() {
    let event = |id: &str, kind: &str, data: &Value| format!("id: {id}\nevent: {kind}\ndata: {data}\n\n");
    let message = |id: &str| event(id, "message", &json!({ "id": id, "channel": "a", "time": "t", "data": id }));
    let misfit = event("1-2", "delta", &json!({ "channel": "a", "from": "1-0", "delta": "0\n0;" }));
    let streams = [
        format!("retry: 1\n{}{}{misfit}{}", event("1-0", "begin", &json!({})), message("1-1"), message("1-3")),
        format!("{}{}", event("1-1", "begin", &json!({})), message("1-2")),
    ];
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let serving = tokio::spawn(async move {
        let mut requests = Vec::new();
        for stream in streams {
            let (mut connection, _) = listener.accept().await.expect("a connection");
            let mut request = [0; 4096];
            let length = connection.read(&mut request).await.expect("a request");
            requests.push(String::from_utf8_lossy(&request[..length]).into_owned());
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
            connection.write_all(format!("{head}{stream}").as_bytes()).await.expect("an answer");
        }
        requests
    });
    let mut news = Client::new(&url).expect("a URL").subscribe(["a"]).deltas();
    for id in ["1-1", "1-2"] {
        let Ok(Ok(Event::Message(message))) = timeout(TEST_TIMEOUT, news.next()).await else { panic!("a message") };
        assert_eq!(message.data, id);
    }
    let requests = serving.await.expect("it served both");
    assert!(requests[0].contains("delta=fossil") && !requests[0].contains("last-event-id"), "{requests:?}");
    assert!(requests[1].contains("last-event-id: 1-1"), "{requests:?}");
}

#[tokio::test]
async fn a_gateway_that_stays_away_and_a_wrong_key_are_told_apart() {
    let kit = GalleyKit::start_with(RedisServer::start(), &[("GALLEY__AUTH__FIRST_KEY", KEY)]).await;
    let refused = client(&kit).enqueue(job([1])).await.expect_err("it has no key");
    assert!(matches!(refused, Error::Refused { status: 401, .. }), "{refused}");
    let refused = client(&kit).subscribe(["news"]).next().await.expect_err("it has no key");
    assert!(matches!(refused, Error::Refused { status: 401, .. }), "{refused}");
    client(&kit).key(KEY).expect("a key").enqueue(job([1])).await.expect("allowed");
    // Hangs up on everybody
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    let galley = Client::new(&format!("http://{address}")).expect("a URL").patience(Duration::ZERO);
    let away = galley.enqueue(job([1])).await.expect_err("it is away");
    assert!(matches!(away, Error::Unavailable { .. }), "{away}");
}

const KEY: &str = "glk_rustclient_0123456789012345678901234567890123456789012";

/// A program of the example, and what it prints.
struct Program {
    _process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Program {
    fn start(name: &str, kit: &GalleyKit) -> Self {
        let mut command = Command::new(binary_path(name));
        command.env("GALLEY_URL", kit.gateway.url("")).env("LISTEN", "127.0.0.1:0").stdout(Stdio::piped());
        let mut process = command.kill_on_drop(true).spawn().expect("it starts");
        let lines = BufReader::new(process.stdout.take().expect("its output")).lines();
        Self { _process: process, lines }
    }

    async fn line(&mut self) -> String {
        let line = timeout(TEST_TIMEOUT, self.lines.next_line()).await.expect("a line in time");
        line.expect("text").expect("it still runs")
    }
}

#[tokio::test]
async fn the_service_in_rust_does_what_its_readme_says() {
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/rust-service/README.md");
    let readme = std::fs::read_to_string(readme).expect("it is there");
    let blocks: Vec<&str> =
        readme.split("```sh\n").skip(1).map(|block| block.split_once("```").expect("an end").0).collect();
    let [worker, web, news, good, bad] = blocks[..] else { panic!("{blocks:?}") };
    assert_eq!(worker, "GALLEY__QUEUE_WORKER__QUEUES=reports cargo run --bin report_worker\n");
    assert_eq!((web, news), ("cargo run --bin report_web\n", "cargo run --bin report_news\n"));
    let kit = GalleyKit::start().await;
    let url = kit.gateway.url("");
    let variables = [("GALLEY_URL", url.as_str()), ("GALLEY__QUEUE_WORKER__QUEUES", "reports")];
    let worker = ServiceProcess::start_worker("report_worker", &kit.redis, &variables).await;
    worker.wait_until_ready().await;
    let (mut web, mut news) = (Program::start("report_web", &kit), Program::start("report_news", &kit));
    let address = web.line().await;
    let shell = async |block: &str| {
        let script = block.replace("http://127.0.0.1:3000/reports", &address);
        let output = Command::new("bash").args(["-euo", "pipefail", "-c", &script]).kill_on_drop(true).output();
        let output = timeout(TEST_TIMEOUT, output).await.expect("it ends in time").expect("bash runs");
        assert!(output.status.success(), "{script}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    };
    let report = shell(good).await;
    assert!(report.len() > 10 && readme.contains(&format!("`{report}`")), "{report}");
    let built = news.line().await;
    assert!(built.starts_with("Sales is built: "), "{built}");
    let failed = shell(bad).await;
    assert!(failed.contains("a report has at most 100 pages"), "{failed}");
    assert!(failed.contains("conflict"), "one that has ended cannot be cancelled: {failed}");
}

#[tokio::test]
async fn workflows_are_made_of_steps_that_are_workflows_or_for_each_element() {
    let kit = GalleyKit::start().await;
    let _worker = kit.start_worker(&[]).await;
    let galley = client(&kit);
    let job = |job_type: &str| NewJob::new(job_type, ["x"]).expect("an argument");
    let inner = NewWorkflow::group().step(job("test.produce")).step(job("test.produce"));
    let each = WorkflowStep::from(job("test.echo")).for_each("inner");
    let workflow = NewWorkflow::dag().name("nested").step_after("inner", [], inner).step_after("each", ["inner"], each);
    let started = galley.start_workflow(&workflow).await.expect("accepted");
    let over = eventually("it has ended", || async {
        let shown = galley.workflow(&started.id).await.expect("an answer");
        (shown.state == "completed").then_some(shown)
    })
    .await;
    let results: Vec<_> = over.members.iter().map(|member| (member.workflow, member.result.clone())).collect();
    let expected = [json!(["x", "x"]), json!([["x", "x"], ["x", "x"]])].map(|result| (true, Some(result)));
    assert_eq!(results, expected);
    let shown = galley.workflow(&over.members[0].id).await.expect("it exists");
    assert_eq!(shown.parent_workflow_id, Some(started.id));
    let waiting = NewWorkflow::chain().step(NewWorkflow::group().step(job("nobody").queue("nobody")));
    let waiting = galley.start_workflow(&waiting).await.expect("accepted");
    assert_eq!(galley.cancel_workflow(&waiting.id).await.expect("cancelled").state, "cancelled");
    let inner = galley.workflow(&waiting.members[0].id).await.expect("it exists");
    assert_eq!(inner.state, "cancelled");
    let refused = galley.cancel_workflow(&waiting.id).await.expect_err("it has ended");
    assert_eq!(refused.code(), Some("conflict"));
}
