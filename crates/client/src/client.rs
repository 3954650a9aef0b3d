//! The client: jobs and messages.

use std::{env, time::Duration};

use http::{HeaderName, HeaderValue, Method};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    Error, Job, JobState, Member, NewJob, NewWorkflow, SentSignal, Subscription, Workflow,
    transport::{Call, RequestSender, encode},
};

const DEFAULT_URL: &str = "http://127.0.0.1:8080";
const DEFAULT_PATIENCE: Duration = Duration::from_secs(10);
/// The longest single wait that is asked of the gateway; it allows a minute by default.
const MAX_WAIT: Duration = Duration::from_secs(20);
const JSON: &str = "application/json";
/// A request with this header has one effect however often it arrives.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// A client of a gateway. Cheap to clone: clones share their connections.
#[derive(Clone)]
pub struct Client {
    transport: RequestSender,
    patience: Duration,
}

#[derive(Deserialize)]
struct JobAnswer {
    job: Job,
}

#[derive(Deserialize)]
struct JobsAnswer {
    jobs: Vec<Job>,
}

#[derive(Deserialize)]
struct WorkflowAnswer {
    workflow: Workflow,
}

#[derive(Deserialize)]
struct SignalAnswer {
    signal: SentSignal,
}

#[derive(Deserialize)]
struct SignalsAnswer {
    items: Vec<SentSignal>,
}

#[derive(Deserialize)]
struct PublishAnswer {
    id: String,
}

impl Client {
    /// A client of the gateway that `GALLEY_URL` names (else `http://127.0.0.1:8080`) with the key in `GALLEY_KEY`, if any.
    ///
    /// # Errors
    /// They cannot be used.
    pub fn from_env() -> Result<Self, Error> {
        let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let client = Self::new(&variable("GALLEY_URL").unwrap_or_else(|| DEFAULT_URL.to_owned()))?;
        match variable("GALLEY_KEY") {
            Some(key) => client.key(&key),
            None => Ok(client),
        }
    }

    /// A client of a gateway.
    ///
    /// # Errors
    /// It is no URL with `http` or `https`.
    pub fn new(url: &str) -> Result<Self, Error> {
        Ok(Self { transport: RequestSender::new(url)?, patience: DEFAULT_PATIENCE })
    }

    /// Sends a key with each request.
    ///
    /// # Errors
    /// It is no key.
    pub fn key(mut self, key: &str) -> Result<Self, Error> {
        self.transport.set_key(key)?;
        Ok(self)
    }

    /// For how long a request is sent again while the gateway is away; ten seconds unless set.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Stores a job.
    ///
    /// # Errors
    /// The gateway refuses it or is away.
    pub async fn enqueue(&self, job: NewJob) -> Result<Job, Error> {
        self.enqueue_once(job, &Uuid::new_v4().to_string()).await
    }

    /// Stores a job once however often it is called with the same key, such as the id of a request, for as long as the
    /// gateway keeps keys.
    ///
    /// # Errors
    /// The gateway refuses it or is away.
    pub async fn enqueue_once(&self, job: NewJob, idempotency_key: &str) -> Result<Job, Error> {
        let call = Call::new(Method::POST, "/ojs/v1/jobs".to_owned()).content(JSON, serde_json::to_vec(&job)?);
        Ok(self.send::<JobAnswer>(with_key(call, idempotency_key)?).await?.job)
    }

    /// Stores all of some jobs, or none.
    ///
    /// # Errors
    /// The gateway refuses one of them or is away.
    pub async fn enqueue_all(&self, jobs: &[NewJob]) -> Result<Vec<Job>, Error> {
        let body = serde_json::to_vec(&json!({ "jobs": jobs }))?;
        let call = Call::new(Method::POST, "/ojs/v1/jobs/batch".to_owned()).content(JSON, body);
        Ok(self.send::<JobsAnswer>(with_key(call, &Uuid::new_v4().to_string())?).await?.jobs)
    }

    /// Starts a workflow.
    ///
    /// # Errors
    /// The gateway refuses it or is away.
    pub async fn start_workflow(&self, workflow: &NewWorkflow) -> Result<Workflow, Error> {
        let call = Call::new(Method::POST, "/ojs/v1/workflows".to_owned()).content(JSON, serde_json::to_vec(workflow)?);
        let call = with_key(call, &Uuid::new_v4().to_string())?;
        Ok(self.send::<WorkflowAnswer>(call).await?.workflow)
    }

    /// A workflow with its jobs as it is now. What is in it and a workflow itself is shown by its own id.
    ///
    /// # Errors
    /// The gateway does not know it (`not_found`) or is away.
    pub async fn workflow(&self, id: &str) -> Result<Workflow, Error> {
        let call = Call::new(Method::GET, path(&["ojs", "v1", "workflows", id]));
        Ok(self.send::<WorkflowAnswer>(call).await?.workflow)
    }

    /// Cancels a workflow, and those of its jobs that have not ended.
    ///
    /// # Errors
    /// It has ended (`conflict`), the gateway does not know it (`not_found`) or is away.
    pub async fn cancel_workflow(&self, id: &str) -> Result<Workflow, Error> {
        let call = Call::new(Method::DELETE, path(&["ojs", "v1", "workflows", id]));
        match self.transport.send(&call, self.patience).await {
            // The first request may have cancelled it although its answer was lost
            (Err(refused @ Error::Refused { status: 409, .. }), true) => {
                let workflow = self.workflow(id).await?;
                if workflow.state == "cancelled" { Ok(workflow) } else { Err(refused) }
            }
            (answer, _) => Ok(serde_json::from_slice::<WorkflowAnswer>(&answer?)?.workflow),
        }
    }

    /// A job as it is now.
    ///
    /// # Errors
    /// The gateway does not know it (`not_found`) or is away.
    pub async fn job(&self, id: &str) -> Result<Job, Error> {
        Ok(self.send::<JobAnswer>(Call::new(Method::GET, path(&["ojs", "v1", "jobs", id]))).await?.job)
    }

    /// A job as it is when it has ended, or when that time is over.
    ///
    /// # Errors
    /// The gateway does not know it (`not_found`) or is away.
    pub async fn wait(&self, id: &str, within: Duration) -> Result<Job, Error> {
        let deadline = Instant::now() + within;
        loop {
            let wait = deadline.saturating_duration_since(Instant::now()).min(MAX_WAIT);
            let path = format!("{}?wait_ms={}", path(&["ojs", "v1", "jobs", id]), wait.as_millis().max(1));
            let job = self.send::<JobAnswer>(Call { wait, ..Call::new(Method::GET, path) }).await?.job;
            if job.state.is_terminal() || Instant::now() >= deadline {
                return Ok(job);
            }
        }
    }

    /// Cancels a job.
    ///
    /// # Errors
    /// It has ended (`conflict`), the gateway does not know it (`not_found`) or is away.
    pub async fn cancel(&self, id: &str) -> Result<Job, Error> {
        let call = Call::new(Method::DELETE, path(&["ojs", "v1", "jobs", id]));
        match self.transport.send(&call, self.patience).await {
            // The first request may have cancelled it although its answer was lost
            (Err(Error::Refused { status: 409, .. }), true) => {
                let job = self.job(id).await?;
                if job.state == JobState::Cancelled { Ok(job) } else { Err(ended(&job)) }
            }
            (answer, _) => Ok(serde_json::from_slice::<JobAnswer>(&answer?)?.job),
        }
    }

    /// Sends a job a signal, which resumes it if it waits for one of that name, and is kept for it otherwise.
    ///
    /// # Errors
    /// It has ended (`conflict`), the gateway does not know it (`not_found`) or is away.
    pub async fn signal(&self, id: &str, name: &str, data: &impl Serialize) -> Result<SentSignal, Error> {
        self.signal_once(id, name, data, &Uuid::new_v4().to_string()).await
    }

    /// The same once, however often it is called with the same id of the signal.
    ///
    /// # Errors
    /// As [`Client::signal`].
    pub async fn signal_once(
        &self,
        id: &str,
        name: &str,
        data: &impl Serialize,
        signal_id: &str,
    ) -> Result<SentSignal, Error> {
        let body = serde_json::to_vec(&json!({ "name": name, "data": data, "id": signal_id }))?;
        let call = Call::new(Method::POST, path(&["ojs", "v1", "jobs", id, "signals"])).content(JSON, body);
        Ok(self.send::<SignalAnswer>(call).await?.signal)
    }

    /// Approves or rejects what a job waits for with `wait_for_approval`; `subject` is empty if it has none.
    ///
    /// # Errors
    /// As [`Client::signal`].
    pub async fn decide(
        &self,
        id: &str,
        subject: &str,
        approved: bool,
        comment: Option<&str>,
    ) -> Result<SentSignal, Error> {
        let name = if subject.is_empty() { "approval".to_owned() } else { format!("approval.{subject}") };
        let mut data = json!({ "approved": approved });
        if let Some(comment) = comment {
            data["comment"] = comment.into();
        }
        self.signal(id, &name, &data).await
    }

    /// The signals that came for a job, in their order.
    ///
    /// # Errors
    /// The gateway does not know it (`not_found`) or is away.
    pub async fn signals(&self, id: &str) -> Result<Vec<SentSignal>, Error> {
        let call = Call::new(Method::GET, path(&["ojs", "v1", "jobs", id, "signals"]));
        Ok(self.send::<SignalsAnswer>(call).await?.items)
    }

    /// Publishes a value as JSON and gives the message's id.
    ///
    /// # Errors
    /// The gateway refuses it or is away.
    pub async fn publish(&self, channel: &str, data: &impl Serialize) -> Result<String, Error> {
        self.publish_bytes(channel, JSON, serde_json::to_vec(data)?).await
    }

    /// Publishes bytes as they are and gives the message's id.
    ///
    /// # Errors
    /// The gateway refuses them or is away.
    pub async fn publish_bytes(
        &self,
        channel: &str,
        content_type: &'static str,
        body: impl Into<Vec<u8>>,
    ) -> Result<String, Error> {
        let call = Call::new(Method::POST, path(&["v1", "channels", channel, "messages"]));
        let call = call.content(content_type, body.into());
        Ok(self.send::<PublishAnswer>(with_key(call, &Uuid::new_v4().to_string())?).await?.id)
    }

    /// Follows channels; `orders.*` are all that match, also later ones. The first call of [`Subscription::next`]
    /// connects. The stream begins then, unless [`Subscription::since`] or [`Subscription::after`] say otherwise.
    pub fn subscribe<'a>(&self, channels: impl IntoIterator<Item = &'a str>) -> Subscription {
        let names: Vec<String> = channels.into_iter().map(|name| format!("channel={}", encode(name))).collect();
        Subscription::new(self.transport.clone(), format!("/v1/stream?{}", names.join("&")))
    }

    /// Who is present on a channel.
    ///
    /// # Errors
    /// The gateway refuses it or is away.
    pub async fn members(&self, channel: &str) -> Result<Vec<Member>, Error> {
        #[derive(Deserialize)]
        struct Answer {
            items: Vec<Member>,
            next: Option<String>,
        }
        let path = path(&["v1", "channels", channel, "members"]);
        let (mut members, mut after) = (Vec::new(), String::new());
        loop {
            let call = Call::new(Method::GET, format!("{path}?limit=1000{after}"));
            let answer: Answer = self.send(call).await?;
            members.extend(answer.items);
            let Some(next) = answer.next else { return Ok(members) };
            after = format!("&after={}", encode(&next));
        }
    }

    /// Any other request, such as `GET /ojs/v1/queues`. It is sent again while the gateway is away: give one that makes
    /// something an `idempotency_key`.
    ///
    /// # Errors
    /// The gateway refuses it or is away.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        idempotency_key: Option<&str>,
    ) -> Result<Value, Error> {
        let mut call = Call::new(method, path.to_owned());
        if let Some(body) = body {
            call = call.content(JSON, body.to_string());
        }
        if let Some(key) = idempotency_key {
            call = with_key(call, key)?;
        }
        self.send(call).await
    }

    async fn send<T: DeserializeOwned>(&self, call: Call) -> Result<T, Error> {
        Ok(serde_json::from_slice(&self.transport.send(&call, self.patience).await.0?)?)
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("patience", &self.patience).finish_non_exhaustive()
    }
}

fn ended(job: &Job) -> Error {
    let message = format!("job {} is {:?} and cannot be cancelled", job.id, job.state);
    Error::Refused { status: 409, code: "conflict".to_owned(), message }
}

fn with_key(mut call: Call, key: &str) -> Result<Call, Error> {
    let value = HeaderValue::from_str(key);
    let value = value.map_err(|_| Error::Invalid("an idempotency key has only visible ASCII characters".to_owned()))?;
    call.headers.push((IDEMPOTENCY_KEY, value));
    Ok(call)
}

fn path(parts: &[&str]) -> String {
    parts.iter().fold(String::new(), |path, part| path + "/" + &encode(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_place_in_a_path() {
        assert_eq!(path(&["v1", "channels", "a/../b?c", "messages"]), "/v1/channels/a%2F..%2Fb%3Fc/messages");
    }

    #[test]
    fn what_is_no_url_or_no_key_is_refused() {
        for url in ["", "localhost:8080", "redis://localhost", "http://a b"] {
            assert!(matches!(Client::new(url), Err(Error::Invalid(_))), "{url}");
        }
        assert!(Client::new("https://example.com/").expect("a URL").key("a\nb").is_err());
    }
}
