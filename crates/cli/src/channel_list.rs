//! `galley channels`: which there are, and what they keep.

use clap::{Args, Subcommand};
use serde_json::Value;

use crate::{
    failure::CliResult,
    gateway_client::{GatewayCall, PathWithQuery, escaped},
    queues::PageArgs,
    session::{Session, items},
    table::{Details, TextTable, member, shown},
    terminal::Terminal,
};

#[derive(Debug, Subcommand)]
pub(crate) enum ChannelsCommand {
    /// List channels with what they keep and who reads them.
    List(PageArgs),
    /// Show a channel with its subscriptions.
    Show(ChannelArg),
    /// List the messages that a channel keeps, the oldest first.
    History(HistoryArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ChannelArg {
    channel: String,
}

#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    channel: String,
    /// Begin at this time: RFC 3339, or -PT1H.
    #[arg(long, allow_hyphen_values = true, conflicts_with = "after")]
    since: Option<String>,
    /// Begin behind this id.
    #[arg(long, value_name = "ID")]
    after: Option<String>,
    /// At most this number.
    #[arg(long)]
    limit: Option<u32>,
}

impl ChannelsCommand {
    pub(crate) async fn run(self, session: &Session) -> CliResult {
        match self {
            Self::List(page) => session.list(page.call("/v1/channels"), "items", "no channels", channel_table).await,
            Self::Show(ChannelArg { channel }) => {
                session.show(GatewayCall::get(format!("/v1/channels/{}", escaped(&channel))), show).await.map(drop)
            }
            Self::History(HistoryArgs { channel, since, after, limit }) => {
                let path = PathWithQuery::new(format!("/v1/channels/{}/messages", escaped(&channel)));
                let path = path.with("since", since).with("after", after).with("limit", limit);
                session.list(path.into_call(), "items", "no messages", message_table).await
            }
        }
    }
}

fn channel_table(channels: &[Value]) -> TextTable {
    let mut table = TextTable::new(&["channel", "messages", "bytes", "per minute", "readers", "last published"]);
    for channel in channels {
        table.row([
            member(channel, "name"),
            member(channel, "length"),
            member(channel, "bytes"),
            member(channel, "messages_per_minute"),
            member(channel, "readers"),
            member(channel, "last_published_at"),
        ]);
    }
    table
}

fn show(answer: &Value, terminal: Terminal) -> CliResult {
    let channel = &answer["channel"];
    if terminal.quiet {
        return terminal.line(&member(channel, "name"));
    }
    let mut details = Details::default();
    details.members(channel, &["name", "head", "first", "length", "bytes", "messages_per_minute", "readers"]);
    details.members(channel, &["last_published_at", "retention"]);
    let names = items(channel, "subscriptions").iter().map(|one| member(one, "name")).collect::<Vec<_>>();
    if !names.is_empty() {
        details.text("subscriptions", names.join(","));
    }
    details.print(terminal)
}

fn message_table(messages: &[Value]) -> TextTable {
    let mut table = TextTable::new(&["id", "time", "type", "message"]);
    for message in messages {
        let body = if message.get("data").is_some() { &message["data"] } else { &message["data_base64"] };
        table.row([member(message, "id"), member(message, "time"), member(message, "content_type"), shown(body)]);
    }
    table
}
