//! `galley jobs enqueue`.

use clap::Args;
use serde::Serialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{show_job, wait};
use crate::{
    failure::{CliError, CliResult},
    gateway_client::GatewayCall,
    input,
    session::Session,
};

#[derive(Debug, Args)]
pub(crate) struct EnqueueArgs {
    /// What to do, such as email.send.
    #[arg(value_name = "TYPE")]
    job_type: String,
    /// The arguments as a JSON array; `-` reads it from standard input, @file from a file.
    #[arg(default_value = "[]")]
    args: String,
    /// Your own id, a lower-case UUIDv7.
    #[arg(long)]
    id: Option<String>,
    /// Repeating the command with the same key has one effect. Without it each command has a new one.
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Wait until the job ends. Exit code 0 if it completed, 1 if it did not.
    #[arg(long)]
    wait: bool,
    /// With --wait: give up after this number of seconds, with exit code 1. The job goes on.
    #[arg(long, value_name = "SECONDS", requires = "wait")]
    timeout: Option<u64>,
    #[command(flatten)]
    options: JobOptions,
}

/// Options of a new job, which cron entries have too.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of the job")]
pub(crate) struct JobOptions {
    /// The queue; `default` unless set.
    #[arg(long)]
    queue: Option<String>,
    /// -100 to 100, higher first.
    #[arg(long, allow_hyphen_values = true)]
    priority: Option<i64>,
    /// Not before this time: RFC 3339, or +PT5M.
    #[arg(long, value_name = "TIME")]
    scheduled_at: Option<String>,
    /// Discard the job if it has not started by then: RFC 3339, or +PT5M.
    #[arg(long, value_name = "TIME")]
    expires_at: Option<String>,
    /// Longest run of one attempt.
    #[arg(long, value_name = "MS")]
    timeout_ms: Option<u64>,
    /// Longest time from enqueue to end.
    #[arg(long, value_name = "MS")]
    total_timeout_ms: Option<u64>,
    /// How long a worker may be silent before the job goes to another.
    #[arg(long, value_name = "MS")]
    visibility_timeout_ms: Option<u64>,
    /// Attempts in total.
    #[arg(long, value_name = "N", conflicts_with = "retry")]
    max_attempts: Option<u32>,
    /// List the job among the dead letters when it fails for good.
    #[arg(long, conflicts_with = "retry")]
    dead_letter: bool,
    /// The retry policy as JSON.
    #[arg(long, value_name = "JSON")]
    retry: Option<String>,
    /// Uniqueness as JSON, such as `{"keys":["args"],"on_conflict":"ignore"}`.
    #[arg(long, value_name = "JSON")]
    unique: Option<String>,
    /// A limit by key as JSON, such as `{"key":"tenant-7","concurrency":2}`.
    #[arg(long, value_name = "JSON")]
    rate_limit: Option<String>,
    /// Your own data as JSON, kept and shown.
    #[arg(long, value_name = "JSON")]
    meta: Option<String>,
    /// A tag. May be repeated.
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// Wait until the job is activated.
    #[arg(long)]
    pending: bool,
    /// Keep args, meta and options when the job succeeds.
    #[arg(long)]
    keep_envelope: bool,
}

/// The options as the gateway reads them.
#[derive(Serialize)]
pub(crate) struct OptionMembers {
    #[serde(skip_serializing_if = "Option::is_none")]
    queue: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scheduled_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    total_timeout_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    visibility_timeout_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unique: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate_limit: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tags: Vec<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pending: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    keep_envelope: bool,
}

/// A job as the gateway reads it.
#[derive(Serialize)]
struct EnqueueBody {
    #[serde(rename = "type")]
    job_type: String,
    args: Box<RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    meta: Option<Box<RawValue>>,
    options: OptionMembers,
}

/// What `--max-attempts` and `--dead-letter` say.
#[derive(Serialize)]
struct RetryMembers {
    #[serde(skip_serializing_if = "Option::is_none")]
    max_attempts: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    on_exhaustion: Option<&'static str>,
}

impl JobOptions {
    pub(crate) fn members(&self) -> CliResult<OptionMembers> {
        let json = |name: &str, text: &Option<String>| text.as_deref().map(|text| input::json(name, text)).transpose();
        let retry = if self.max_attempts.is_some() || self.dead_letter {
            let on_exhaustion = self.dead_letter.then_some("dead_letter");
            let retry = RetryMembers { max_attempts: self.max_attempts, on_exhaustion };
            Some(serde_json::value::to_raw_value(&retry).map_err(|error| CliError::failed(error.to_string()))?)
        } else {
            json("--retry", &self.retry)?
        };
        Ok(OptionMembers {
            queue: self.queue.clone(),
            priority: self.priority,
            scheduled_at: self.scheduled_at.clone(),
            expires_at: self.expires_at.clone(),
            timeout_ms: self.timeout_ms,
            total_timeout_ms: self.total_timeout_ms,
            visibility_timeout_ms: self.visibility_timeout_ms,
            retry,
            unique: json("--unique", &self.unique)?,
            rate_limit: json("--rate-limit", &self.rate_limit)?,
            tags: self.tags.clone(),
            pending: self.pending,
            keep_envelope: self.keep_envelope,
        })
    }

    pub(crate) fn meta(&self) -> CliResult<Option<Box<RawValue>>> {
        self.meta.as_deref().map(|text| input::json("--meta", text)).transpose()
    }
}

impl EnqueueArgs {
    pub(crate) async fn run(self, session: &Session) -> CliResult {
        let body = EnqueueBody {
            job_type: self.job_type,
            args: input::json_array("ARGS", &self.args)?,
            id: self.id,
            meta: self.options.meta()?,
            options: self.options.members()?,
        };
        let body = serde_json::to_vec(&body).map_err(|error| CliError::failed(error.to_string()))?;
        let key = self.idempotency_key.unwrap_or_else(|| Uuid::new_v4().to_string());
        let call = GatewayCall::post("/ojs/v1/jobs").bytes("application/json", body).header("Idempotency-Key", key);
        if !self.wait {
            return show_job(session, call).await;
        }
        let answer = session.gateway.send(call).await?.value()?;
        session.warn(&answer);
        let id = answer["job"]["id"].as_str().unwrap_or_default();
        wait::wait_for(session, id, self.timeout).await
    }
}
