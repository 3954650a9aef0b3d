//! `galley queues`.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::{
    confirm::Confirmation,
    failure::{CliError, CliResult},
    gateway_client::{GatewayCall, PathWithQuery, escaped},
    progress::LongWork,
    session::{Session, items},
    table::{Details, TextTable, member},
    terminal::Terminal,
};

/// Waiting jobs that one request of a purge cancels at most.
const PURGE_PAGE: u64 = 1000;

#[derive(Debug, Subcommand)]
pub(crate) enum QueuesCommand {
    /// List queues with their counts.
    List(PageArgs),
    /// Show a queue.
    Show(QueueArg),
    /// Pause: workers claim no jobs, clients may enqueue.
    Pause(QueueArg),
    /// Resume: ends pause and drain.
    Resume(QueueArg),
    /// Drain: clients may not enqueue, workers finish the old jobs.
    Drain(QueueArg),
    /// Cancel the waiting jobs of a queue.
    Purge(PurgeArgs),
    /// Show or set limits. What is not given keeps its value; --reset goes back to the settings.
    Limits(LimitsArgs),
    /// Show or raise the number of partitions. Each has a slot of its own in a Redis Cluster, and an order of its own. The
    /// number is never lowered.
    Partitions(PartitionsArgs),
    /// Delete an empty queue.
    Delete(DeleteArgs),
    /// Look for stored data that contradicts itself, and repair it with --repair.
    Check(CheckArgs),
}

/// Which part of a list.
#[derive(Debug, Args)]
pub(crate) struct PageArgs {
    /// At most this number.
    #[arg(long)]
    limit: Option<u32>,
    /// Begin behind this one.
    #[arg(long)]
    after: Option<String>,
}

impl PageArgs {
    /// The request for that part.
    pub(crate) fn call(self, path: &str) -> GatewayCall {
        PathWithQuery::new(path).with("limit", self.limit).with("after", self.after).into_call()
    }
}

#[derive(Debug, Args)]
pub(crate) struct QueueArg {
    queue: String,
    /// Create the queue if it does not exist.
    #[arg(long)]
    create: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PurgeArgs {
    queue: String,
    /// Only jobs in these states: available, scheduled, retryable, pending.
    #[arg(long = "state", value_delimiter = ',')]
    states: Vec<String>,
    #[command(flatten)]
    confirmation: Confirmation,
}

#[derive(Debug, Args)]
pub(crate) struct LimitsArgs {
    queue: String,
    /// Jobs that run at once, on all workers together.
    #[arg(long)]
    concurrency: Option<u64>,
    /// Starts per period, such as 100/PT1M.
    #[arg(long, value_name = "N/PERIOD", value_parser = parse_rate)]
    rate: Option<Value>,
    /// With --rate: starts at once after a pause.
    #[arg(long, requires = "rate")]
    burst: Option<u64>,
    /// With --rate: no period, wherever it begins, has more starts.
    #[arg(long, requires = "rate")]
    strict: bool,
    /// How much earlier a job counts as arrived for each step of its priority, such as PT1M.
    #[arg(long, value_name = "DURATION")]
    priority_aging: Option<String>,
    /// Remove the limits set here: those of the settings hold.
    #[arg(long, conflicts_with_all = ["concurrency", "rate", "priority_aging"])]
    reset: bool,
    /// Create the queue if it does not exist.
    #[arg(long)]
    create: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PartitionsArgs {
    queue: String,
    /// The new number; without it the number is shown.
    count: Option<u16>,
    /// Create the queue if it does not exist.
    #[arg(long)]
    create: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    queue: String,
    #[command(flatten)]
    confirmation: Confirmation,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    queue: String,
    /// Repair what can be repaired without losing or doubling a job.
    #[arg(long)]
    repair: bool,
}

fn parse_rate(text: &str) -> Result<Value, String> {
    let (limit, period) = text.split_once('/').ok_or("must be like 100/PT1M")?;
    let limit: u64 = limit.parse().map_err(|_| "must be like 100/PT1M")?;
    Ok(json!({ "limit": limit, "period": period }))
}

impl QueuesCommand {
    pub(crate) async fn run(self, session: &Session) -> CliResult {
        match self {
            Self::List(page) => session.list(page.call("/ojs/v1/queues"), "queues", "no queues yet", queue_table).await,
            Self::Show(queue) => session.show(queue.call("GET", ""), show_queue).await.map(drop),
            Self::Pause(queue) => session.show(queue.call("POST", "/pause"), show_queue).await.map(drop),
            Self::Resume(queue) => session.show(queue.call("POST", "/resume"), show_queue).await.map(drop),
            Self::Drain(queue) => session.show(queue.call("POST", "/drain"), show_queue).await.map(drop),
            Self::Purge(args) => args.run(session).await,
            Self::Limits(args) => args.run(session).await,
            Self::Partitions(args) => args.run(session).await,
            Self::Delete(DeleteArgs { queue, confirmation }) => {
                confirmation.ask(&format!("Delete queue {queue:?}?"))?;
                let call = GatewayCall::delete(queue_path(&queue)).json(&json!({ "confirm": queue }));
                session.act(call, &format!("queue {queue:?} is deleted")).await
            }
            Self::Check(args) => args.run(session).await,
        }
    }
}

impl QueueArg {
    fn call(self, method: &str, action: &str) -> GatewayCall {
        let path = PathWithQuery::new(format!("{}{action}", queue_path(&self.queue)));
        let path = path.with("create", self.create.then_some("true")).text();
        if method == "POST" { GatewayCall::post(path) } else { GatewayCall::get(path) }
    }
}

fn queue_path(queue: &str) -> String {
    format!("/ojs/v1/queues/{}", escaped(queue))
}

impl PurgeArgs {
    async fn run(self, session: &Session) -> CliResult {
        let shown = session.gateway.send(GatewayCall::get(queue_path(&self.queue))).await?.value()?;
        let queue = &shown["queue"];
        let count = |name: &str| queue[name].as_u64().unwrap_or(0);
        let waiting = count("available") + count("waiting") + count("pending");
        let which = if self.states.is_empty() { "waiting".to_owned() } else { self.states.join(" and ") };
        let question =
            format!("Cancel the {which} jobs of queue {:?}? {waiting} wait now. This cannot be undone.", self.queue);
        self.confirmation.ask(&question)?;
        let mut body = json!({ "confirm": self.queue, "limit": PURGE_PAGE });
        if !self.states.is_empty() {
            body["states"] = json!(self.states);
        }
        let mut work = LongWork::begin(session, waiting, "cancelled");
        loop {
            let call = GatewayCall::delete(format!("{}/jobs", queue_path(&self.queue))).json(&body);
            let value = work.send(call).await?;
            work.count(value["purged"].as_u64().unwrap_or(0), 0);
            if value["more"] != true {
                return work.end();
            }
        }
    }
}

impl LimitsArgs {
    async fn run(self, session: &Session) -> CliResult {
        let path = format!("{}/limits", queue_path(&self.queue));
        let path = PathWithQuery::new(path).with("create", self.create.then_some("true")).text();
        if self.reset {
            return session.show(GatewayCall::put(path).json(&json!({})), show_queue).await.map(drop);
        }
        let changes_nothing = self.concurrency.is_none() && self.rate.is_none() && self.priority_aging.is_none();
        let queue = QueueArg { queue: self.queue.clone(), create: self.create };
        if changes_nothing {
            return session.show(queue.call("GET", ""), show_queue).await.map(drop);
        }
        // What is not said here stays as it is
        let shown = session.gateway.send(queue.call("GET", "")).await?.value()?;
        let mut limits = shown["queue"]["limits"].clone();
        if let Some(concurrency) = self.concurrency {
            limits["concurrency"] = concurrency.into();
        }
        if let Some(aging) = self.priority_aging {
            limits["priority_aging"] = aging.into();
        }
        if let Some(mut rate) = self.rate {
            if let Some(burst) = self.burst {
                rate["burst"] = burst.into();
            }
            if self.strict {
                rate["strict"] = true.into();
            }
            limits["rate"] = rate;
        }
        session.show(GatewayCall::put(path).json(&limits), show_queue).await.map(drop)
    }
}

impl PartitionsArgs {
    async fn run(self, session: &Session) -> CliResult {
        let queue = QueueArg { queue: self.queue.clone(), create: self.create };
        if self.create {
            session.gateway.send(queue.call("GET", "")).await?;
        }
        let path = format!("/ojs/v1/admin/queues/{}", escaped(&self.queue));
        if let Some(count) = self.count {
            // The rest of the configuration stays as it is
            let mut config = session.gateway.send(GatewayCall::get(&path)).await?.value()?["configuration"].clone();
            config["partitions"] = count.into();
            session.gateway.send(GatewayCall::put(format!("{path}/config")).json(&config)).await?;
        }
        session.show(GatewayCall::get(path), show_partitions).await.map(drop)
    }
}

impl CheckArgs {
    async fn run(self, session: &Session) -> CliResult {
        let mut cursor = Value::Null;
        let (mut looked_at, mut found, mut left) = (0, 0_u64, 0_u64);
        loop {
            let mut body = json!({ "queue": self.queue, "repair": self.repair });
            if !cursor.is_null() {
                body["cursor"] = cursor;
            }
            let call = if self.repair {
                GatewayCall::post("/ojs/v1/admin/fsck").json(&body)
            } else {
                let path = PathWithQuery::new("/ojs/v1/admin/fsck").with("queue", Some(&self.queue));
                path.with("cursor", body["cursor"].as_str()).into_call()
            };
            let answer = session.gateway.send(call).await?;
            let value = answer.value()?;
            if session.terminal.json {
                session.terminal.json_bytes(&answer.body)?;
            }
            looked_at += value["looked_at"].as_u64().unwrap_or(0);
            for violation in items(&value, "violations") {
                found += 1;
                let is_repaired = violation["repaired"] == true;
                left += u64::from(!is_repaired);
                if !session.terminal.json {
                    let repaired = if is_repaired { "  repaired" } else { "" };
                    let (kind, what) = (member(violation, "kind"), member(violation, "what"));
                    session.terminal.line(&format!("{kind}  {what}{repaired}"))?;
                }
            }
            cursor = value["cursor"].clone();
            if value["complete"] != false || cursor.is_null() {
                break;
            }
        }
        session.terminal.note(&format!("{looked_at} looked at, {found} contradictions, {left} left"));
        if left > 0 { Err(CliError::failed(format!("queue {:?} has contradictions", self.queue))) } else { Ok(()) }
    }
}

/// Paused, drained or running.
fn queue_state(queue: &Value) -> String {
    match (&queue["paused"], &queue["closed"]) {
        (Value::Bool(true), _) => "paused",
        (_, Value::Bool(true)) => "draining",
        _ => "running",
    }
    .to_owned()
}

fn queue_table(queues: &[Value]) -> TextTable {
    let head = ["queue", "state", "available", "active", "waiting", "dead", "completed", "discarded", "concurrency"];
    let mut table = TextTable::new(&head);
    for queue in queues {
        table.row([
            member(queue, "name"),
            queue_state(queue),
            member(queue, "available"),
            member(queue, "active"),
            member(queue, "waiting"),
            member(queue, "dead"),
            member(queue, "completed"),
            member(queue, "discarded"),
            member(&queue["limits"], "concurrency"),
        ]);
    }
    table
}

fn show_partitions(queue: &Value, terminal: Terminal) -> CliResult {
    let configuration = &queue["configuration"];
    if terminal.quiet {
        return terminal.line(&member(configuration, "partitions"));
    }
    let mut details = Details::default();
    details.text("queue", member(queue, "name"));
    details.add("partitions", &configuration["partitions"]).add("of keys", &configuration["key_partitions"]);
    details.print(terminal)
}

fn show_queue(answer: &Value, terminal: Terminal) -> CliResult {
    let queue = &answer["queue"];
    if terminal.quiet {
        return terminal.line(&member(queue, "name"));
    }
    let mut details = Details::default();
    details.text("queue", member(queue, "name")).text("state", queue_state(queue));
    details.members(queue, &["available", "active", "waiting", "pending", "dead"]);
    details.members(queue, &["completed", "discarded", "cancelled", "retried"]);
    let limits = &queue["limits"];
    details.add("concurrency limit", &limits["concurrency"]).add("rate limit", &limits["rate"]);
    details.add("priority aging", &limits["priority_aging"]);
    details.add("longest line", &limits["max_depth"]).add("partitions", &queue["partitions"]);
    details.print(terminal)
}
