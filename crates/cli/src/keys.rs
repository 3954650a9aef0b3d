//! `galley keys`.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::{
    confirm::Confirmation,
    failure::CliResult,
    gateway_client::{GatewayCall, escaped},
    queues::PageArgs,
    session::{Session, items},
    table::{Details, TextTable, member, shown},
    terminal::Terminal,
};

const PATH: &str = "/v1/admin/keys";

#[derive(Debug, Subcommand)]
pub(crate) enum ApiKeysCommand {
    /// Make a key, which is shown once.
    Create(KeyCreateArgs),
    /// List keys with what each may do.
    List(PageArgs),
    /// Show a key without its secret.
    Show(KeyArg),
    /// Give a key another secret, which is shown once.
    Rotate(KeyRotateArgs),
    /// Revoke a key at once.
    Revoke(KeyRevokeArgs),
}

#[derive(Debug, Args)]
pub(crate) struct KeyArg {
    id: String,
}

#[derive(Debug, Args)]
pub(crate) struct KeyCreateArgs {
    /// What to call it.
    name: String,
    /// What it may do: jobs:write, jobs:read, work, channels:publish, channels:subscribe, subscriptions, admin:read,
    /// admin:write.
    #[arg(long = "scope", value_name = "SCOPE", value_delimiter = ',', required = true)]
    scopes: Vec<String>,
    /// The queues that it may use, with stars: orders.*. Without any, all queues.
    #[arg(long = "queue", value_name = "QUEUE", value_delimiter = ',')]
    queues: Vec<String>,
    /// The channels that it may use, with stars. Without any, all channels.
    #[arg(long = "channel", value_name = "CHANNEL", value_delimiter = ',')]
    channels: Vec<String>,
    /// The namespace outside of which it sees and makes nothing.
    #[arg(long)]
    namespace: Option<String>,
    /// When it expires: 2030-01-31T12:00:00Z, or +P90D. Without it, never.
    #[arg(long, value_name = "TIME")]
    expires_at: Option<String>,
    /// Requests that it may send in a second.
    #[arg(long, value_name = "N")]
    requests_per_second: Option<u64>,
    /// Bytes that it may send in a second.
    #[arg(long, value_name = "N")]
    bytes_per_second: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct KeyRotateArgs {
    id: String,
    /// How long the old secret still works.
    #[arg(long, value_name = "MS")]
    grace_ms: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct KeyRevokeArgs {
    id: String,
    #[command(flatten)]
    confirmation: Confirmation,
}

impl ApiKeysCommand {
    pub(crate) async fn run(self, session: &Session) -> CliResult {
        match self {
            Self::Create(args) => args.run(session).await,
            Self::List(page) => session.list(page.call(PATH), "items", "no keys", key_table).await,
            Self::Show(KeyArg { id }) => session.show(GatewayCall::get(path(&id)), show_key).await.map(drop),
            Self::Rotate(KeyRotateArgs { id, grace_ms }) => {
                let body = grace_ms.map_or_else(|| json!({}), |grace_ms| json!({ "grace_ms": grace_ms }));
                let call = GatewayCall::post(format!("{}/rotate", path(&id))).json(&body);
                session.show(call, show_secret).await.map(drop)
            }
            Self::Revoke(KeyRevokeArgs { id, confirmation }) => {
                if !confirmation.yes {
                    let key = session.gateway.send(GatewayCall::get(path(&id))).await?.value()?;
                    let name = member(&key["api_key"], "name");
                    confirmation.ask(&format!("Revoke key {id} ({name})? Programs with it are refused at once."))?;
                }
                session.act(GatewayCall::delete(path(&id)), &format!("key {id} is revoked")).await
            }
        }
    }
}

impl KeyCreateArgs {
    async fn run(self, session: &Session) -> CliResult {
        let mut body = json!({ "name": self.name, "scopes": self.scopes });
        let mut set = |name: &str, value: Value| {
            if !value.is_null() && value.as_array().is_none_or(|items| !items.is_empty()) {
                body[name] = value;
            }
        };
        set("queues", json!(self.queues));
        set("channels", json!(self.channels));
        set("namespace", json!(self.namespace));
        set("expires_at", json!(self.expires_at));
        set("requests_per_second", json!(self.requests_per_second));
        set("bytes_per_second", json!(self.bytes_per_second));
        session.show(GatewayCall::post(PATH).json(&body), show_secret).await.map(drop)
    }
}

fn path(id: &str) -> String {
    format!("{PATH}/{}", escaped(id))
}

/// The key alone on standard output, so that a script can take it.
fn show_secret(answer: &Value, terminal: Terminal) -> CliResult {
    let key = &answer["api_key"];
    terminal.note(&format!("key {} ({}), which is not shown again:", member(key, "id"), member(key, "name")));
    terminal.line(&member(answer, "key"))
}

fn show_key(answer: &Value, terminal: Terminal) -> CliResult {
    let key = &answer["api_key"];
    let mut details = Details::default();
    details.members(key, &["id", "name", "scopes", "queues", "channels", "namespace", "created_at", "expires_at"]);
    details.members(key, &["last_used_at", "previous_expires_at", "requests_per_second", "bytes_per_second"]);
    details.print(terminal)
}

fn key_table(keys: &[Value]) -> TextTable {
    let mut table =
        TextTable::new(&["id", "name", "last used", "expires", "namespace", "queues", "channels", "scopes"]);
    for key in keys {
        let all = |name: &str| match items(key, name) {
            [] => "-".to_owned(),
            names => names.iter().map(shown).collect::<Vec<_>>().join(","),
        };
        table.row([
            member(key, "id"),
            member(key, "name"),
            member(key, "last_used_at"),
            member(key, "expires_at"),
            member(key, "namespace"),
            all("queues"),
            all("channels"),
            all("scopes"),
        ]);
    }
    table
}
