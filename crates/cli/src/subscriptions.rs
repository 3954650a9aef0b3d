//! `galley subscriptions`.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::{
    confirm::Confirmation,
    failure::{CliError, CliResult},
    gateway_client::{GatewayCall, PathWithQuery, escaped},
    input,
    queues::PageArgs,
    session::{Session, items},
    table::{Details, TextTable, member, shown},
    terminal::Terminal,
};

#[derive(Debug, Subcommand)]
pub(crate) enum SubscriptionsCommand {
    /// List subscriptions with how far behind they are.
    List(PageArgs),
    /// Show a subscription with its progress.
    Get(SubscriptionArg),
    /// Create a subscription, or change the one of that name.
    Create(Box<SubscriptionCreateArgs>),
    /// Pause deliveries, retries included.
    Pause(SubscriptionArg),
    /// Resume, also one that Galley disabled.
    Resume(SubscriptionArg),
    /// Continue at another position.
    Seek(SeekArgs),
    /// List the last deliveries and how each went.
    Attempts(AttemptsArgs),
    /// Deliver a message again, by the id of its attempt.
    Resend(ResendArgs),
    /// Delete a subscription.
    Delete(SubscriptionDeleteArgs),
}

#[derive(Debug, Args)]
pub(crate) struct SubscriptionArg {
    name: String,
}

#[derive(Debug, Args)]
pub(crate) struct SubscriptionCreateArgs {
    name: String,
    /// Channels, or patterns such as orders.*.
    #[arg(long = "channel", value_name = "CHANNEL")]
    channels: Vec<String>,
    /// Deliver to this endpoint. Without a secret in --spec Galley makes one and shows it once.
    #[arg(long, group = "target", value_name = "URL")]
    to_url: Option<String>,
    /// Deliver into this queue, as jobs of the type of --job-type.
    #[arg(long, group = "target", value_name = "QUEUE")]
    to_queue: Option<String>,
    /// With --to-queue: the type of the jobs.
    #[arg(long, requires = "to_queue", value_name = "TYPE")]
    job_type: Option<String>,
    /// Deliver to this command of the pubsub-worker.
    #[arg(long, group = "target", value_name = "COMMAND")]
    to_command: Option<String>,
    /// Deliver into the log of the pubsub-worker.
    #[arg(long, group = "target")]
    to_log: bool,
    /// broadcast: every worker gets every message.
    #[arg(long)]
    broadcast: bool,
    /// Deliver each channel in order.
    #[arg(long)]
    ordered: bool,
    /// Where to begin: new, earliest, a time, or -PT1H.
    #[arg(long, allow_hyphen_values = true)]
    start: Option<String>,
    /// Only messages that match, as JSON.
    #[arg(long, value_name = "JSON")]
    filter: Option<String>,
    /// All of it as JSON: a file (@file), standard input (-), or text. Options beside it win.
    #[arg(long, value_name = "JSON")]
    spec: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct SeekArgs {
    name: String,
    /// new, earliest, the id of a message (delivery begins behind it), RFC 3339, or -PT1H.
    #[arg(allow_hyphen_values = true)]
    to: String,
    /// In this channel only.
    #[arg(long)]
    channel: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct AttemptsArgs {
    name: String,
    /// Only these: delivered or failed.
    #[arg(long)]
    outcome: Option<String>,
    /// At most this number.
    #[arg(long)]
    limit: Option<u32>,
    /// Older ones than this.
    #[arg(long, value_name = "ID")]
    after: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ResendArgs {
    name: String,
    /// The id of the attempt, as `attempts` lists it.
    attempt: String,
}

#[derive(Debug, Args)]
pub(crate) struct SubscriptionDeleteArgs {
    name: String,
    #[command(flatten)]
    confirmation: Confirmation,
}

impl SubscriptionsCommand {
    pub(crate) async fn run(self, session: &Session) -> CliResult {
        match self {
            Self::List(page) => {
                let call = page.call("/v1/subscriptions");
                session.list(call, "items", "no subscriptions", subscription_table).await
            }
            Self::Get(SubscriptionArg { name }) => show(session, GatewayCall::get(path(&name))).await,
            Self::Create(args) => args.run(session).await,
            Self::Pause(SubscriptionArg { name }) => {
                show(session, GatewayCall::post(format!("{}/pause", path(&name)))).await
            }
            Self::Resume(SubscriptionArg { name }) => {
                show(session, GatewayCall::post(format!("{}/resume", path(&name)))).await
            }
            Self::Seek(SeekArgs { name, to, channel }) => {
                let mut body = json!({ "to": to });
                if let Some(channel) = channel {
                    body["channel"] = channel.into();
                }
                show(session, GatewayCall::post(format!("{}/seek", path(&name))).json(&body)).await
            }
            Self::Attempts(AttemptsArgs { name, outcome, limit, after }) => {
                let path = PathWithQuery::new(format!("{}/attempts", path(&name))).with("outcome", outcome);
                let path = path.with("limit", limit).with("after", after);
                session.list(path.into_call(), "items", "no attempts", attempt_table).await
            }
            Self::Resend(ResendArgs { name, attempt }) => {
                let call = GatewayCall::post(format!("{}/attempts/{}/resend", path(&name), escaped(&attempt)));
                session.act(call, &format!("attempt {attempt} is delivered again")).await
            }
            Self::Delete(SubscriptionDeleteArgs { name, confirmation }) => {
                let question = format!("Delete subscription {name:?}? Its failed deliveries that wait are cancelled.");
                confirmation.ask(&question)?;
                session.act(GatewayCall::delete(path(&name)), &format!("subscription {name:?} is deleted")).await
            }
        }
    }
}

impl SubscriptionCreateArgs {
    async fn run(self, session: &Session) -> CliResult {
        let name = self.name.clone();
        let body = self.body()?;
        show(session, GatewayCall::put(path(&name)).json(&body)).await
    }

    fn body(self) -> CliResult<Value> {
        let mut body = match &self.spec {
            Some(spec) => serde_json::from_str(input::json("--spec", spec)?.get()).unwrap_or_default(),
            None => json!({}),
        };
        if !body.is_object() {
            return Err(CliError::usage("--spec must be a JSON object"));
        }
        if !self.channels.is_empty() {
            body["channels"] = json!(self.channels);
        }
        if let Some(url) = self.to_url {
            body["deliver"]["http"]["url"] = url.into();
        } else if let Some(queue) = self.to_queue {
            body["deliver"]["queue"]["queue"] = queue.into();
            if let Some(job_type) = self.job_type {
                body["deliver"]["queue"]["type"] = job_type.into();
            }
        } else if let Some(command) = self.to_command {
            body["deliver"]["command"] = command.into();
        } else if self.to_log {
            body["deliver"]["log"] = json!({});
        }
        if self.broadcast {
            body["mode"] = "broadcast".into();
        }
        if self.ordered {
            body["ordering"] = "channel".into();
        }
        if let Some(start) = self.start {
            body["start"] = start.into();
        }
        if let Some(filter) = &self.filter {
            body["filter"] = serde_json::from_str(input::json("--filter", filter)?.get()).unwrap_or_default();
        }
        for (member, option) in
            [("channels", "--channel"), ("deliver", "--to-url, --to-queue, --to-command or --to-log")]
        {
            if body.get(member).is_none() {
                return Err(CliError::usage(format!("say {option}, or --spec")));
            }
        }
        Ok(body)
    }
}

fn path(name: &str) -> String {
    format!("/v1/subscriptions/{}", escaped(name))
}

async fn show(session: &Session, call: GatewayCall) -> CliResult {
    session.show(call, show_subscription).await.map(drop)
}

/// Where messages go, in a word or two.
fn target(subscription: &Value) -> String {
    let deliver = &subscription["deliver"];
    if let Some(url) = deliver["http"]["url"].as_str() {
        return shown(&Value::from(url));
    }
    match (deliver["queue"]["queue"].as_str(), deliver["command"].as_str()) {
        (Some(queue), _) => format!("queue {}", shown(&Value::from(queue))),
        (None, Some(command)) => format!("command {}", shown(&Value::from(command))),
        (None, None) => "log".to_owned(),
    }
}

fn subscription_table(subscriptions: &[Value]) -> TextTable {
    let head = ["name", "state", "lag", "in flight", "retrying", "dead", "delivered", "failed", "channels", "to"];
    let mut table = TextTable::new(&head);
    for subscription in subscriptions {
        let progress = &subscription["progress"];
        let channels = items(subscription, "channels").iter().map(shown).collect::<Vec<_>>().join(",");
        table.row([
            member(subscription, "name"),
            member(subscription, "state"),
            member(progress, "lag"),
            member(progress, "in_flight"),
            member(progress, "retrying"),
            member(progress, "dead"),
            member(progress, "delivered"),
            member(progress, "failed"),
            channels,
            target(subscription),
        ]);
    }
    table
}

fn show_subscription(answer: &Value, terminal: Terminal) -> CliResult {
    let subscription = &answer["subscription"];
    if terminal.quiet {
        return terminal.line(&member(subscription, "name"));
    }
    let mut details = Details::default();
    details
        .members(subscription, &["name", "state", "reason", "description", "channels", "mode", "ordering", "filter"]);
    details.text("to", target(subscription)).members(subscription, &["queue", "created_at", "updated_at"]);
    let progress = &subscription["progress"];
    details.members(progress, &["lag", "in_flight", "retrying", "dead", "delivered", "filtered", "failed"]);
    details.members(progress, &["last_delivered_at", "failing_since", "channels"]);
    details.add("secret", &answer["secret"]);
    details.print(terminal)?;
    if answer.get("secret").is_some() {
        terminal.note("the secret is not shown again: receivers check signatures with it");
    }
    Ok(())
}

/// Attempts of a subscription, which are of messages, or of a rule, which are of jobs.
pub(crate) fn attempt_table(attempts: &[Value]) -> TextTable {
    let mut table = TextTable::new(&["id", "outcome", "status", "at", "ms", "attempt", "of", "answer"]);
    for attempt in attempts {
        let of = if attempt["job_id"].is_string() { "job_id" } else { "message_id" };
        let answer = if attempt["response"].is_string() { &attempt["response"] } else { &attempt["error"]["message"] };
        table.row([
            member(attempt, "id"),
            member(attempt, "outcome"),
            member(attempt, "status"),
            member(attempt, "at"),
            member(attempt, "duration_ms"),
            member(attempt, "attempt"),
            member(attempt, of),
            shown(answer),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: SubscriptionCreateArgs,
    }

    fn body(words: &[&str]) -> CliResult<Value> {
        let words = ["create", "name"].iter().chain(words);
        Line::try_parse_from(words).map_err(|error| CliError::usage(error.to_string()))?.args.body()
    }

    #[test]
    fn options_and_json_make_one_subscription() {
        let seen = body(&["--channel", "a", "--to-url", "http://x", "--spec", r#"{"max_in_flight":2}"#]);
        let expected = json!({ "channels": ["a"], "deliver": { "http": { "url": "http://x" } }, "max_in_flight": 2 });
        assert_eq!(seen.expect("a subscription"), expected);
        for wrong in [&["--to-log"][..], &["--channel", "a"], &["--channel", "a", "--to-log", "--to-queue", "q"]] {
            assert!(matches!(body(wrong), Err(CliError::Usage(_))), "{wrong:?}");
        }
    }
}
