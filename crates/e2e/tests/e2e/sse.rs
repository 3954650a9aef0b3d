//! A client of event streams.

use reqwest::Response;
use serde_json::Value;
use testkit::TEST_TIMEOUT;

use crate::http_client::CheckedClient;

pub(crate) const KEEP_ALIVE: &str = ": keep-alive\n";

pub(crate) struct ChannelEventsClient {
    response: Response,
    text: String,
    /// The id that a browser would come back with.
    pub(crate) last_id: String,
}

#[derive(Debug)]
pub(crate) struct ReceivedSseEvent {
    pub(crate) event: String,
    pub(crate) data: Value,
}

impl ChannelEventsClient {
    /// Opens a stream and reads how it begins: from then on nothing escapes it.
    pub(crate) async fn open(url: String, last: Option<&str>) -> Self {
        let response = connect(url, last).await;
        let mut stream = Self { response, text: String::new(), last_id: String::new() };
        let first = stream.block().await.expect("a beginning");
        let id = &stream.last_id;
        let expected = format!("retry: 3000\nid: {id}\nevent: begin\ndata: {{\"after\":\"{id}\"}}");
        assert_eq!(first, expected);
        stream
    }

    /// Waits for a keep-alive, behind which no event ends.
    pub(crate) async fn keep_alive(&mut self) {
        while !self.text.contains(KEEP_ALIVE) {
            assert!(self.read().await, "it ends: {:?}", self.text);
        }
        // Several may have come, and the beginning of one
        assert!(KEEP_ALIVE.starts_with(&self.text.replace(KEEP_ALIVE, "")), "{:?}", self.text);
    }

    /// Everything until the end.
    pub(crate) async fn rest(&mut self) -> String {
        while self.read().await {}
        std::mem::take(&mut self.text)
    }

    /// Reads some more; false at the end, however the connection ended.
    async fn read(&mut self) -> bool {
        let chunk = tokio::time::timeout(TEST_TIMEOUT, self.response.chunk()).await.expect("something comes in time");
        let Ok(Some(chunk)) = chunk else { return false };
        self.text += std::str::from_utf8(&chunk).expect("text");
        true
    }

    /// The next block of lines as it came; none at the end, however the connection ended.
    pub(crate) async fn block(&mut self) -> Option<String> {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.text = rest;
                if let Some(id) = block.lines().find_map(|line| line.strip_prefix("id: ")) {
                    id.clone_into(&mut self.last_id);
                }
                return Some(block);
            }
            if !self.read().await {
                return None;
            }
        }
    }

    pub(crate) async fn next(&mut self) -> Option<ReceivedSseEvent> {
        loop {
            let block = self.block().await?;
            let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            if !field("data: ").is_empty() {
                let data = serde_json::from_str(field("data: ")).expect("JSON");
                return Some(ReceivedSseEvent { event: field("event: ").to_owned(), data });
            }
        }
    }

    pub(crate) async fn expect(&mut self, event: &str) -> Value {
        let next = self.next().await.expect("the stream goes on");
        assert_eq!(next.event, event, "{next:?}");
        next.data
    }

    /// The data of the next messages, which must come without anything in between.
    pub(crate) async fn messages(&mut self, count: usize) -> Vec<String> {
        let mut all = Vec::with_capacity(count);
        for _ in 0..count {
            all.push(self.expect("message").await["data"].as_str().expect("text").to_owned());
        }
        all
    }
}

/// Opens a stream of events, behind the id that was seen last.
pub(crate) async fn connect(url: String, last: Option<&str>) -> Response {
    let mut request = CheckedClient::new().get(url).header("accept", "text/event-stream");
    if let Some(last) = last {
        request = request.header("last-event-id", last);
    }
    let response = request.send().await.expect("an answer");
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    assert_eq!(response.headers()["cache-control"], "no-store, no-transform");
    assert_eq!(response.headers()["x-accel-buffering"], "no");
    response
}
