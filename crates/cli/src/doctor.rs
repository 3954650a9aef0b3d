//! `galley doctor`: what is wrong with the Redis, the gateway and the key of this machine, and how to mend it.

use std::time::Duration;

use clap::Args;
use common::settings::{self, Settings};
use serde_json::{Value, json};
use store::{Redis, connection::diagnosis::ServerDiagnosis, sealing::Sealer};

use crate::{
    failure::{CliError, CliResult},
    gateway_client::GatewayCall,
    session::Session,
    terminal::Color,
};

/// How far a clock may be off: relative times are taken from Redis's clock, and people compare logs.
const MAX_CLOCK_MS: i64 = 1000;
/// How long a server may take for all that is asked of it.
const MAX_LOOK: Duration = Duration::from_secs(10);
const SLOW: Duration = Duration::from_millis(5);
const VERY_SLOW: Duration = Duration::from_millis(50);

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// The Redis to look at. Else that of the settings here: GALLEY_CONFIG and GALLEY__REDIS__URL.
    #[arg(long, value_name = "URL")]
    redis_url: Option<String>,
    /// Look at the gateway only.
    #[arg(long, conflicts_with = "redis_url")]
    no_redis: bool,
}

/// What a look found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    Ok,
    Warning,
    Error,
}

impl Health {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// One finding, with what to do about it.
#[derive(Debug)]
struct Finding {
    health: Health,
    about: &'static str,
    what: String,
    remedy: Option<String>,
}

/// What was found so far.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn ok(&mut self, about: &'static str, what: impl Into<String>) {
        self.0.push(Finding { health: Health::Ok, about, what: what.into(), remedy: None });
    }

    fn bad(&mut self, health: Health, about: &'static str, what: impl Into<String>, remedy: impl Into<String>) {
        self.0.push(Finding { health, about, what: what.into(), remedy: Some(remedy.into()) });
    }

    fn count(&self, health: Health) -> usize {
        self.0.iter().filter(|finding| finding.health == health).count()
    }
}

impl DoctorArgs {
    pub(crate) async fn run(self, session: &Session) -> CliResult {
        let mut findings = Findings::default();
        if !self.no_redis {
            self.look_at_redis(&mut findings).await?;
        }
        look_at_gateway(session, &mut findings).await;
        print(session, &findings)?;
        match findings.count(Health::Error) {
            0 => Ok(()),
            1 => Err(CliError::failed("one thing is wrong")),
            number => Err(CliError::failed(format!("{number} things are wrong"))),
        }
    }

    async fn look_at_redis(&self, findings: &mut Findings) -> CliResult {
        let mut variables = settings::environment();
        if let Some(url) = &self.redis_url {
            variables.insert("GALLEY__REDIS__URL".to_owned(), url.clone());
        }
        let file = std::env::var("GALLEY_CONFIG").ok().filter(|path| !path.is_empty());
        let is_default = file.is_none() && !variables.keys().any(|name| name.starts_with("GALLEY__REDIS__URL"));
        let settings = match Settings::from_sources(file.as_deref(), variables) {
            Ok(settings) => settings,
            Err(error) => {
                findings.bad(Health::Error, "settings", error.to_string(), "`galley config check` checks them again");
                return Ok(());
            }
        };
        let url = settings.redis.url.redacted();
        common::tls::use_ring();
        // With its keys: without them what is sealed would look like a fault
        let sealer = Sealer::from_settings(&settings.encryption).map_err(anyhow::Error::from)?;
        let redis = Redis::new(&settings.redis)?.with_sealer(sealer);
        let Ok(diagnosed) = tokio::time::timeout(MAX_LOOK, redis.diagnose()).await else {
            let what = format!("{url} takes the connection and does not answer within {} s", MAX_LOOK.as_secs());
            findings.bad(
                Health::Error,
                "redis",
                what,
                "look at the server, and at what is between it and this machine",
            );
            return Ok(());
        };
        match diagnosed {
            Ok(diagnosis) => {
                findings.ok("redis", format!("{url} answers"));
                judge(&diagnosis, findings);
            }
            Err(error) if is_default => findings.bad(
                Health::Warning,
                "redis",
                format!("{url}, the default, cannot be looked at: {error}"),
                "name yours with GALLEY__REDIS__URL or --redis-url, or say --no-redis",
            ),
            Err(error) => findings.bad(
                Health::Error,
                "redis",
                format!("{url} cannot be looked at: {error}"),
                "start it, or change redis.url (GALLEY__REDIS__URL)",
            ),
        }
        Ok(())
    }
}

/// Everything that the server says of itself.
fn judge(diagnosis: &ServerDiagnosis, findings: &mut Findings) {
    match &diagnosis.checked {
        Ok(server) => findings.ok("version", format!("Redis {}", server.version)),
        Err(error) => findings.bad(Health::Error, "suitable", error.to_string(), "no service of Galley starts with it"),
    }
    judge_persistence(diagnosis, findings);
    judge_memory(diagnosis, findings);
    judge_speed_and_clock(diagnosis, findings);
    judge_rights(diagnosis, findings);
    if diagnosis.has_leader {
        findings.ok("leader", "a process of Galley runs maintenance");
    } else {
        findings.bad(
            Health::Error,
            "leader",
            "no process runs maintenance: nothing scheduled starts, and no lost job comes back",
            "start a gateway or a worker with this Redis; if one runs, look for `leader` in its log",
        );
    }
}

fn judge_persistence(diagnosis: &ServerDiagnosis, findings: &mut Findings) {
    let text = |name: &str| diagnosis.info.get(name).map(String::as_str);
    let conf = "as deploy/redis.conf has it: `CONFIG SET appendonly yes`, and the same in redis.conf";
    match diagnosis.checked.as_ref().map(|server| server.durability.as_str()) {
        Ok("always") => {
            findings.ok("persistence", "an acknowledged job survives a crash of Redis (appendfsync always)");
        }
        Ok("everysec") => {
            findings.ok("persistence", "a crash of Redis can lose the last two seconds (appendfsync everysec)");
        }
        Ok("memory") => {
            findings.bad(
                Health::Warning,
                "persistence",
                "jobs are in memory only: a restart of Redis loses them",
                conf,
            );
        }
        _ => {}
    }
    for (name, what) in
        [("aof_last_write_status", "the append-only file"), ("aof_last_bgrewrite_status", "its rewrite")]
    {
        if text(name).is_some_and(|status| status != "ok") {
            let what = format!("the last write of {what} failed");
            findings.bad(Health::Error, "disk", what, "free space on the disk of Redis, and look at its log");
        }
    }
    if let Some(policy) = text("maxmemory_policy").filter(|policy| *policy != "noeviction") {
        let what = format!("maxmemory-policy is {policy}: Redis throws jobs away when it is full");
        findings.bad(
            Health::Error,
            "eviction",
            what,
            "`CONFIG SET maxmemory-policy noeviction`, and the same in redis.conf",
        );
    } else if text("maxmemory_policy").is_some() {
        findings.ok("eviction", "Redis throws nothing away (maxmemory-policy noeviction)");
    }
}

fn judge_memory(diagnosis: &ServerDiagnosis, findings: &mut Findings) {
    let number = |name: &str| diagnosis.info.get(name).and_then(|text| text.parse::<u64>().ok());
    let Some(used) = number("used_memory") else { return };
    let mib = |bytes: u64| bytes >> 20;
    match number("maxmemory") {
        None | Some(0) => findings.bad(
            Health::Warning,
            "memory",
            format!("{} MiB are used, without a limit: the system may kill Redis", mib(used)),
            "`CONFIG SET maxmemory` to about two thirds of the machine's memory, and the same in redis.conf",
        ),
        Some(max) => {
            let percent = used.saturating_mul(100) / max;
            let what = format!("{} of {} MiB are used ({percent} %)", mib(used), mib(max));
            let remedy = "raise maxmemory, delete what is not needed, or keep results for a shorter time; \
                          docs/operations.md says what happens at which level";
            match percent {
                0..=74 => findings.ok("memory", what),
                75..=89 => findings.bad(Health::Warning, "memory", what, remedy),
                _ => findings.bad(Health::Error, "memory", what, remedy),
            }
        }
    }
    if let (Some(clients), Some(max)) = (number("connected_clients"), number("maxclients"))
        && clients * 10 > max * 8
    {
        let what = format!("{clients} of {max} connections are taken");
        findings.bad(
            Health::Warning,
            "connections",
            what,
            "raise maxclients in redis.conf, and the limit of open files",
        );
    }
}

fn judge_speed_and_clock(diagnosis: &ServerDiagnosis, findings: &mut Findings) {
    let trips = &diagnosis.round_trips;
    if let (Some(median), Some(worst)) = (trips.get(trips.len() / 2), trips.last()) {
        let what = format!("an answer of Redis takes {median:.1?}, at worst {worst:.1?}");
        let remedy = "bring it closer; look for slow commands with `SLOWLOG GET`, and for a machine that swaps";
        match median {
            median if *median >= VERY_SLOW => findings.bad(Health::Error, "latency", what, remedy),
            median if *median >= SLOW => findings.bad(Health::Warning, "latency", what, remedy),
            _ => findings.ok("latency", what),
        }
    }
    let ahead = diagnosis.clock_ahead_ms;
    let way = if ahead < 0 { "behind" } else { "before" };
    let what = format!("the clock of Redis is {} ms {way} that of this machine", ahead.abs());
    if ahead.abs() > MAX_CLOCK_MS {
        let remedy = "synchronise both with NTP: schedules follow the clock of Redis";
        findings.bad(Health::Warning, "clock", what, remedy);
    } else {
        findings.ok("clock", what);
    }
}

fn judge_rights(diagnosis: &ServerDiagnosis, findings: &mut Findings) {
    let list = |names: &std::collections::BTreeSet<String>| names.iter().cloned().collect::<Vec<_>>().join(", ");
    let remedy = "give the user of redis.url the rights of docs/redis.md#permissions (deploy/redis.acl)";
    if !diagnosis.missing.is_empty() {
        let what = format!("the user may not use {}", list(&diagnosis.missing));
        findings.bad(Health::Error, "rights", what, remedy);
    } else if diagnosis.missing_questions.is_empty() {
        findings.ok("rights", "the user may do all that Galley needs");
    } else {
        let what = format!("the user may not ask everything: {}", list(&diagnosis.missing_questions));
        findings.bad(Health::Warning, "rights", what, remedy);
    }
}

async fn look_at_gateway(session: &Session, findings: &mut Findings) {
    let url = session.gateway.shown_url();
    let ready = tokio::time::timeout(MAX_LOOK, session.gateway.send(GatewayCall::get("/health/ready"))).await;
    let silent = |_| {
        let problem = format!("it takes the connection and does not answer within {} s", MAX_LOOK.as_secs());
        Err(CliError::Unreachable { url: url.clone(), problem })
    };
    match ready.unwrap_or_else(silent).map(|answer| answer.value().unwrap_or_default()) {
        Ok(health) if health["status"] == "ok" => findings.ok("gateway", format!("{url} is ready")),
        Ok(health) if health["status"] == "degraded" => {
            let what = format!("{url} is ready for a part of its work: {}", crate::table::member(&health, "reason"));
            findings.bad(Health::Warning, "gateway", what, "docs/observability.md#health says what each part is");
        }
        Ok(_) => {
            let what = format!("what answers at {url} is no gateway of Galley");
            return findings.bad(Health::Error, "gateway", what, "name yours with --url or GALLEY_URL");
        }
        Err(CliError::Refused(refusal)) => {
            let what = format!("{url} is not ready: status {}: {}", refusal.status, refusal.message);
            findings.bad(Health::Error, "gateway", what, "its log says why; most often Redis is away");
        }
        Err(problem) => {
            let what = match problem {
                CliError::Unreachable { problem, .. } => format!("no gateway answers at {url}: {problem}"),
                other => other.to_string(),
            };
            return findings.bad(Health::Error, "gateway", what, "start it, or name yours with --url or GALLEY_URL");
        }
    }
    let queues = tokio::time::timeout(MAX_LOOK, session.gateway.send(GatewayCall::get("/ojs/v1/queues?limit=1"))).await;
    match queues.unwrap_or_else(silent) {
        Ok(_) => findings.ok("key", "the gateway takes it"),
        Err(CliError::Refused(refusal)) if refusal.status == 403 => {
            findings.bad(
                Health::Warning,
                "key",
                format!("it is valid, and may not look at queues: {}", refusal.message),
                "use a key with the scope admin:read to administer",
            );
        }
        Err(CliError::Refused(refusal)) if refusal.status == 401 => {
            let remedy = "set GALLEY_KEY to a key of this gateway: `gateway keys create` beside it makes one";
            findings.bad(Health::Error, "key", refusal.message, remedy);
        }
        // Said above
        Err(_) => {}
    }
}

fn print(session: &Session, findings: &Findings) -> CliResult {
    let terminal = session.terminal;
    if terminal.json {
        let items = findings.0.iter().map(|Finding { health, about, what, remedy }| {
            json!({ "check": about, "state": health.as_str(), "what": what, "remedy": remedy })
        });
        let items: Vec<Value> = items.collect();
        return terminal.line(&json!({ "items": items }).to_string());
    }
    for Finding { health, about, what, remedy } in &findings.0 {
        if terminal.quiet && *health == Health::Ok {
            continue;
        }
        let state = format!("{:<8}", health.as_str());
        let state = terminal.paint(&state, Color::of_state(health.as_str()));
        let what = common::text::printable(what.as_bytes());
        terminal.line(&format!("{state} {about:<12} {what}"))?;
        if let Some(remedy) = remedy {
            terminal.line(&format!("{:<21} → {remedy}", ""))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap};

    use store::connection::server::{ServerDurability, ServerInfo};

    use super::*;

    fn findings(info: &[(&str, &str)], change: impl FnOnce(&mut ServerDiagnosis)) -> Vec<(&'static str, Health)> {
        let mut diagnosis = ServerDiagnosis {
            checked: Ok(ServerInfo { version: "7.4".to_owned(), durability: ServerDurability::EverySecond }),
            info: info.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect::<HashMap<_, _>>(),
            round_trips: vec![Duration::from_micros(200); 3],
            clock_ahead_ms: -3,
            missing: BTreeSet::new(),
            missing_questions: BTreeSet::new(),
            has_leader: true,
        };
        change(&mut diagnosis);
        let mut findings = Findings::default();
        judge(&diagnosis, &mut findings);
        findings.0.iter().filter(|found| found.health != Health::Ok).map(|found| (found.about, found.health)).collect()
    }

    #[test]
    fn each_fault_is_found_and_nothing_else() {
        let good = [("maxmemory", "1000"), ("used_memory", "100"), ("maxmemory_policy", "noeviction")];
        assert_eq!(findings(&good, |_| {}), []);
        let full = [("maxmemory", "1000"), ("used_memory", "950"), ("maxmemory_policy", "allkeys-lru")];
        assert_eq!(findings(&full, |_| {}), [("eviction", Health::Error), ("memory", Health::Error)]);
        assert_eq!(findings(&[("used_memory", "1")], |_| {}), [("memory", Health::Warning)]);
        let found = findings(&good, |diagnosis| {
            diagnosis.has_leader = false;
            diagnosis.clock_ahead_ms = 90_000;
            diagnosis.round_trips = vec![Duration::from_millis(80)];
            diagnosis.missing.insert("EVALSHA".to_owned());
        });
        let errors = ["latency", "clock", "rights", "leader"];
        assert_eq!(found.iter().map(|(about, _)| *about).collect::<Vec<_>>(), errors);
    }
}
