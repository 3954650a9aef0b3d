//! What every command has: the gateway and the terminal.

use serde_json::Value;

use crate::{
    failure::CliResult,
    gateway_client::{GatewayAnswer, GatewayCall, GatewayClient},
    table::TextTable,
    terminal::Terminal,
};

pub(crate) struct Session {
    pub(crate) gateway: GatewayClient,
    pub(crate) terminal: Terminal,
}

impl Session {
    /// Sends a request and prints the answer: unchanged with `--json`, else as `show` says.
    pub(crate) async fn show(
        &self,
        call: GatewayCall,
        show: impl FnOnce(&Value, Terminal) -> CliResult,
    ) -> CliResult<GatewayAnswer> {
        let answer = self.gateway.send(call).await?;
        if self.terminal.json {
            self.terminal.json_bytes(&answer.body)?;
        } else {
            let value = answer.value()?;
            self.warn(&value);
            show(&value, self.terminal)?;
        }
        Ok(answer)
    }

    /// The same for a list, which is a table, or a line that says that there is nothing.
    pub(crate) async fn list(
        &self,
        call: GatewayCall,
        member: &str,
        nothing: &str,
        table: impl FnOnce(&[Value]) -> TextTable,
    ) -> CliResult {
        self.show(call, |answer, terminal| {
            let items = items(answer, member);
            let table = table(items);
            if table.is_empty() {
                terminal.note(nothing);
            } else {
                table.print(terminal)?;
            }
            if let Some(next) = next_page(answer, items) {
                terminal.note(&format!("there are more: {next}"));
            }
            Ok(())
        })
        .await
        .map(drop)
    }

    /// Sends a request of which only that it was done matters.
    pub(crate) async fn act(&self, call: GatewayCall, done: &str) -> CliResult {
        self.show(call, |_, terminal| {
            terminal.note(done);
            Ok(())
        })
        .await
        .map(drop)
    }

    /// Passes on what the gateway warns of.
    pub(crate) fn warn(&self, answer: &Value) {
        for warning in items(answer, "warnings") {
            self.terminal.note(&format!("warning: {}", crate::table::shown(warning)));
        }
    }
}

/// The items of a list.
pub(crate) fn items<'a>(answer: &'a Value, member: &str) -> &'a [Value] {
    answer[member].as_array().map_or(&[], Vec::as_slice)
}

/// How to ask for the page behind this one, if there is one.
fn next_page(answer: &Value, items: &[Value]) -> Option<String> {
    let next = [&answer["next"], &answer["pagination"]["next"], &answer["cursor"]].into_iter().find_map(Value::as_str);
    if let Some(next) = next {
        return Some(format!("--after {next}"));
    }
    let last = items.last().and_then(|item| item["name"].as_str())?;
    (answer["more"] == true).then(|| format!("--after {last}"))
}
