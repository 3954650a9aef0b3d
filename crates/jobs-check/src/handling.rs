//! What handlers do, in a queue-worker and at the endpoint: they write down that they begin and how they end, and their result
//! names the run.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use serde::Serialize;
use serde_json::{Value, json};
use testkit::read_request;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    task::spawn_blocking,
};

use crate::{
    history::{HistoryEvent, HistoryWriter},
    plan::JobBehaviour,
};

/// The header in which a queue-worker says its name.
const NAME_HEADER: &str = "x-jobs-check";

/// A job that is run.
#[derive(Debug, Clone)]
pub struct HandledJob {
    /// Its id.
    pub id: String,
    /// The number in its arguments.
    pub key: u32,
    /// Which attempt it is.
    pub attempt: u32,
    /// What to do.
    pub behaviour: JobBehaviour,
}

/// The result of a run.
#[derive(Debug, Clone, Serialize)]
pub struct RunResult {
    run: String,
}

/// Runs a job; none if it fails, as planned.
pub async fn run_job(writer: Arc<HistoryWriter>, folder: &Path, job: HandledJob) -> Option<RunResult> {
    let HandledJob { id, key, attempt, behaviour } = job;
    let run = format!("{:016x}", rand::random::<u64>());
    append(&writer, HistoryEvent::Started { run: run.clone(), id, key, attempt, cron: None }).await;
    tokio::time::sleep(Duration::from_millis(behaviour.run_ms.into())).await;
    let is_redriven = !behaviour.fails_until_redriven || redriven_path(folder, key).exists();
    let is_success = attempt > behaviour.failures && is_redriven;
    append(&writer, HistoryEvent::Finished { run: run.clone(), is_success }).await;
    is_success.then_some(RunResult { run })
}

/// The file that ends the failures of a job.
pub(crate) fn redriven_path(folder: &Path, key: u32) -> std::path::PathBuf {
    folder.join(format!("redriven-{key}"))
}

async fn append(writer: &Arc<HistoryWriter>, event: HistoryEvent) {
    let writer = writer.clone();
    // It waits for the disk
    let _ = spawn_blocking(move || writer.append(event)).await;
}

/// The rules of the queue-workers: what they send to an endpoint, and what they have done by a program.
pub(crate) fn rules(endpoint: &str, python: &str, program: &Path) -> String {
    let (push, command) = (crate::plan::JobRunner::Push.job_type(), crate::plan::JobRunner::Command.job_type());
    let program = program.display();
    format!(
        "[[rule]]\ntype = \"{push}\"\n[rule.http]\nurl = \"{endpoint}\"\nallow_private = true\n\
         headers = {{ {NAME_HEADER} = \"env:JOBS_CHECK_NAME\" }}\nbreaker_failures = 1000\n\n\
         [[rule]]\ntype = \"{command}\"\n[rule.command]\nprogram = \"{python}\"\nargs = [\"{program}\"]\n\
         pass_env = [\"JOBS_CHECK_NAME\", \"JOBS_CHECK_FOLDER\"]\n"
    )
}

/// An endpoint that queue-workers send jobs to; it is there until the process ends.
pub(crate) async fn serve_endpoint(folder: &Path) -> anyhow::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let folder: Arc<Path> = Arc::from(folder);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, folder.clone()));
        }
    });
    Ok(format!("http://{address}/"))
}

async fn serve(mut stream: TcpStream, folder: Arc<Path>) -> anyhow::Result<()> {
    while let Some(request) = read_request(&mut stream).await {
        let name = request.header(NAME_HEADER).context("a queue-worker says its name")?.to_owned();
        let mut job: Value = serde_json::from_slice(&request.body)?;
        let behaviour = serde_json::from_value(job["args"][1].take())?;
        let id = job["id"].as_str().context("an id")?.to_owned();
        let number = |value: &Value| value.as_u64().and_then(|number| u32::try_from(number).ok()).unwrap_or(0);
        let (key, attempt) = (number(&job["args"][0]), number(&job["attempt"]));
        let writer = Arc::new(HistoryWriter::open_for(&folder, &format!("push-{name}"), &name)?);
        let result = run_job(writer, &folder, HandledJob { id, key, attempt, behaviour }).await;
        let (status, body) = match result {
            Some(result) => ("200 OK", json!(result).to_string()),
            None => ("500 Planned", String::new()),
        };
        let length = body.len();
        let answer =
            format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}");
        stream.write_all(answer.as_bytes()).await?;
    }
    Ok(())
}
