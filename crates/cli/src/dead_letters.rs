//! `galley dead`: what failed for good, by error, and a second try for it.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::{
    confirm::Confirmation,
    failure::{CliError, CliResult},
    gateway_client::{GatewayCall, PathWithQuery, escaped},
    jobs::{job_table, show_job},
    progress::LongWork,
    session::{Session, items},
    table::{Details, TextTable, member, shown},
    terminal::Terminal,
};

const PATH: &str = "/ojs/v1/dead-letter";
/// Dead letters in one request.
const PAGE: u32 = 1000;
/// Dead letters that are read to group them.
const MAX_GROUPED: usize = 20_000;

#[derive(Debug, Subcommand)]
pub(crate) enum DeadCommand {
    /// List dead letters grouped by type and error; each of them with --each.
    List(DeadListArgs),
    /// Count them by queue and by type of error.
    Stats,
    /// Show a dead letter.
    Show(DeadId),
    /// Run dead letters again: some by their ids, or all that match.
    Retry(DeadActionArgs),
    /// Delete dead letters: some by their ids, or all that match.
    Delete(DeadActionArgs),
}

#[derive(Debug, Args)]
pub(crate) struct DeadId {
    id: String,
}

/// Which dead letters.
#[derive(Debug, Default, Args)]
pub(crate) struct DeadFilter {
    /// Only those of this queue.
    #[arg(long)]
    queue: Option<String>,
    /// Only those of this type.
    #[arg(long = "type", value_name = "TYPE")]
    job_type: Option<String>,
    /// Only those with this code of error.
    #[arg(long, value_name = "CODE")]
    error: Option<String>,
    /// Only those discarded from this time on: RFC 3339, or -PT1H.
    #[arg(long, allow_hyphen_values = true)]
    since: Option<String>,
    /// Only those discarded before this time.
    #[arg(long, allow_hyphen_values = true)]
    until: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct DeadListArgs {
    #[command(flatten)]
    filter: DeadFilter,
    /// One line for each, and not for each error. So is --json, which prints one page.
    #[arg(long)]
    each: bool,
    /// With --each: at most this number.
    #[arg(long)]
    limit: Option<u32>,
    /// With --each: begin behind this one.
    #[arg(long)]
    after: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct DeadActionArgs {
    /// The ids of dead letters.
    ids: Vec<String>,
    /// All that match; without a filter all of them.
    #[arg(long, conflicts_with = "ids")]
    all: bool,
    #[command(flatten)]
    filter: DeadFilter,
    /// Count, and do nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    confirmation: Confirmation,
}

/// What is done with dead letters.
struct DeadAction {
    verb: &'static str,
    past: &'static str,
}

const RETRY: DeadAction = DeadAction { verb: "Retry", past: "retried" };
const DELETE: DeadAction = DeadAction { verb: "Delete", past: "deleted" };

impl DeadCommand {
    pub(crate) async fn run(self, session: &Session) -> CliResult {
        match self {
            Self::List(args) => args.run(session).await,
            Self::Stats => session.show(GatewayCall::get(format!("{PATH}/stats")), show_stats).await.map(drop),
            Self::Show(DeadId { id }) => show_job(session, GatewayCall::get(format!("{PATH}/{}", escaped(&id)))).await,
            Self::Retry(args) => args.run(session, &RETRY).await,
            Self::Delete(args) => args.run(session, &DELETE).await,
        }
    }
}

fn show_stats(answer: &Value, terminal: Terminal) -> CliResult {
    Details::default().members(answer, &["total", "oldest_at", "newest_at"]).print(terminal)?;
    for (title, counts) in [("queue", &answer["by_queue"]), ("error type", &answer["by_error_type"])] {
        let counts = counts.as_object().into_iter().flatten();
        let mut counts: Vec<(&String, u64)> = counts.map(|(name, count)| (name, count.as_u64().unwrap_or(0))).collect();
        counts.sort_by_key(|(name, count)| (std::cmp::Reverse(*count), *name));
        let mut table = TextTable::new(&[title, "dead letters"]);
        for (name, count) in counts {
            table.row([shown(&Value::from(name.as_str())), count.to_string()]);
        }
        if !table.is_empty() {
            table.print(terminal)?;
        }
    }
    if answer["complete"] == false {
        terminal.note(&format!("errors are of the newest {}", member(answer, "examined")));
    }
    Ok(())
}

impl DeadFilter {
    fn path(&self) -> PathWithQuery {
        let path = PathWithQuery::new(PATH).with("queue", self.queue.as_ref()).with("type", self.job_type.as_ref());
        path.with("error_type", self.error.as_ref())
            .with("since", self.since.as_ref())
            .with("until", self.until.as_ref())
    }

    fn members(&self) -> Value {
        let given = [
            ("queue", &self.queue),
            ("type", &self.job_type),
            ("error_type", &self.error),
            ("since", &self.since),
            ("until", &self.until),
        ];
        given.iter().filter_map(|(name, value)| Some(((*name).to_owned(), json!(value.as_ref()?)))).collect()
    }

    fn words(&self) -> String {
        let members = self.members();
        let words = members.as_object().into_iter().flatten().map(|(name, value)| format!("{name} {}", shown(value)));
        words.collect::<Vec<_>>().join(", ")
    }
}

impl DeadListArgs {
    async fn run(self, session: &Session) -> CliResult {
        if self.each || session.terminal.json {
            let path = self.filter.path().with("limit", self.limit).with("after", self.after);
            return session.list(path.into_call(), "jobs", "no dead letters", job_table).await;
        }
        let (mut groups, mut read, mut after) = (BTreeMap::new(), 0, None::<String>);
        loop {
            let path = self.filter.path().with("limit", Some(PAGE)).with("after", after.as_ref());
            let page = session.gateway.send(path.into_call()).await?.value()?;
            let jobs = items(&page, "jobs");
            read += jobs.len();
            for job in jobs {
                DeadGroup::add(&mut groups, job);
            }
            after = page["next"].as_str().map(str::to_owned);
            if after.is_none() || read >= MAX_GROUPED {
                break;
            }
        }
        if groups.is_empty() {
            session.terminal.note("no dead letters");
            return Ok(());
        }
        if after.is_some() {
            session.terminal.note(&format!("only the newest {read} dead letters are counted"));
        }
        let mut groups: Vec<_> = groups.into_iter().collect();
        groups.sort_by_key(|(_, group)| std::cmp::Reverse(group.count));
        let mut table = TextTable::new(&["count", "type", "error", "queue", "newest", "one of them", "message"]);
        for ((queue, job_type, error), group) in groups {
            table.row([group.count.to_string(), job_type, error, queue, group.newest, group.id, group.message]);
        }
        table.print(session.terminal)
    }
}

/// Dead letters of the same queue, type and error.
struct DeadGroup {
    count: usize,
    newest: String,
    id: String,
    message: String,
}

impl DeadGroup {
    fn add(groups: &mut BTreeMap<(String, String, String), Self>, job: &Value) {
        let error = items(job, "errors").last().unwrap_or(&job["error"]);
        let key = (member(job, "queue"), member(job, "type"), member(error, "code"));
        let discarded_at = member(job, "discarded_at");
        let group = groups.entry(key).or_insert_with(|| Self {
            count: 0,
            newest: String::new(),
            id: String::new(),
            message: String::new(),
        });
        group.count += 1;
        if discarded_at >= group.newest {
            let message = error["message"].as_str().unwrap_or_default().lines().next().unwrap_or_default();
            *group = Self {
                count: group.count,
                newest: discarded_at,
                id: member(job, "id"),
                message: shown(&Value::from(message)),
            };
        }
    }
}

impl DeadActionArgs {
    async fn run(self, session: &Session, action: &DeadAction) -> CliResult {
        if self.ids.is_empty() { self.all_that_match(session, action).await } else { self.each(session, action).await }
    }

    async fn each(&self, session: &Session, action: &DeadAction) -> CliResult {
        if action.past == "deleted" {
            let what = match self.ids.as_slice() {
                [id] => format!("dead letter {id}"),
                ids => format!("{} dead letters, {} first", ids.len(), ids[0]),
            };
            self.confirmation.ask(&format!("Delete {what}? This cannot be undone."))?;
        }
        for id in &self.ids {
            let path = format!("{PATH}/{}", escaped(id));
            if action.past == "deleted" {
                session.act(GatewayCall::delete(path), &format!("dead letter {id} is deleted")).await?;
            } else {
                show_job(session, GatewayCall::post(format!("{path}/retry"))).await?;
            }
        }
        Ok(())
    }

    async fn all_that_match(&self, session: &Session, action: &DeadAction) -> CliResult {
        let words = self.filter.words();
        if words.is_empty() && !self.all {
            return Err(CliError::usage("say which dead letters: ids, a filter such as --queue, or --all"));
        }
        let count = session.gateway.send(self.request(action, true, None)).await?;
        let matched = count.value()?["matched"].as_u64().unwrap_or(0);
        let which = if words.is_empty() { "all dead letters".to_owned() } else { format!("dead letters with {words}") };
        let at_least = if count.value()?["more"] == true { "more than " } else { "" };
        if self.dry_run || matched == 0 {
            if session.terminal.json {
                return session.terminal.json_bytes(&count.body);
            }
            return session.terminal.line(&format!("{at_least}{matched}: {which}"));
        }
        let end = if action.past == "deleted" { " This cannot be undone." } else { "" };
        self.confirmation.ask(&format!("{} {which}? {at_least}{matched} match.{end}", action.verb))?;
        let (mut work, mut after) = (LongWork::begin(session, matched, action.past), None::<String>);
        loop {
            let value = work.send(self.request(action, false, after.as_deref())).await?;
            work.count(value[action.past].as_u64().unwrap_or(0), 0);
            after = value["next"].as_str().map(str::to_owned);
            if value["more"] != true {
                break;
            }
        }
        work.end()
    }

    fn request(&self, action: &DeadAction, dry_run: bool, after: Option<&str>) -> GatewayCall {
        let mut body =
            json!({ "filter": self.filter.members(), "dry_run": dry_run, "confirm": !dry_run, "limit": PAGE });
        if let Some(after) = after {
            body["after"] = after.into();
        }
        let call = match action.past {
            "deleted" => GatewayCall::delete(PATH),
            _ => GatewayCall::post(format!("{PATH}/retry")),
        };
        call.json(&body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dead_letters_are_grouped_by_queue_type_and_error_and_the_newest_speaks_for_them() {
        let mut groups = BTreeMap::new();
        for (id, code, at) in
            [("a", "timeout", "2026-01-01"), ("b", "timeout", "2026-01-02"), ("c", "auth", "2026-01-01")]
        {
            let errors = json!([{ "code": "first" }, { "code": code, "message": format!("of {id}\nstack") }]);
            let job = json!({ "id": id, "type": "t", "queue": "q", "discarded_at": at, "errors": errors });
            DeadGroup::add(&mut groups, &job);
        }
        let key = |code: &str| ("q".to_owned(), "t".to_owned(), code.to_owned());
        let timeout = &groups[&key("timeout")];
        assert_eq!((timeout.count, timeout.id.as_str(), timeout.message.as_str()), (2, "b", "of b"));
        assert_eq!(groups[&key("auth")].count, 1);
    }
}
