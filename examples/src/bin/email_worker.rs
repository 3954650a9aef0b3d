//! A worker with Rust handlers that send mail: into files of the folder `OUTBOX`.
//!
//! Each handler shows something else. A handler may run more than once for the same job, so running it twice must
//! have the same effect as running it once.

use std::{collections::BTreeSet, fmt::Write, path::PathBuf, time::Duration};

use galley_worker::{Context, ContextError, HandlerError, JobsPerCall, Worker};
use serde::{Deserialize, Serialize};
use tokio::{fs, io::AsyncWriteExt, select, time::sleep};

fn main() -> std::process::ExitCode {
    // `Worker` brings the command line (`run`, `check`, `--once`, `--drain`), the settings, signals and rules
    Worker::builder()
        .handler("email.send", send)
        .handler("email.newsletter", newsletter)
        .handler("email.order", order)
        .handler("email.campaign", campaign)
        .handler("email.from_template", from_template)
        .blocking_handler("email.render", render)
        .handler_of_many("email.digest", JobsPerCall { count: 3, delay: digest_delay() }, digest)
        // A job without arguments, or with any number of one type, can use a closure
        .handler("email.addresses", |_, addresses: BTreeSet<String>| async move { Ok(addresses) })
        .handler("email.count", |context: Context, (): ()| async move { count(&context) })
        .main()
}

/// Arguments are typed: arguments that do not parse are a permanent failure whose message says where.
#[derive(Deserialize)]
struct Email {
    subject: String,
    body: String,
}

/// A result is any type that serde can write as JSON.
#[derive(Serialize)]
struct SentEmail {
    file: PathBuf,
    attempt: u32,
}

/// Sends one mail. The error decides whether another attempt follows.
async fn send(context: Context, (to, email): (String, Email)) -> Result<SentEmail, HandlerError> {
    let Some((_, host)) = to.split_once('@') else {
        // Permanent: the job is discarded now, and becomes a dead letter if its policy says so
        return Err(HandlerError::not_retryable("an address has an @").with_code("bad_address").with_details(&to));
    };
    match host {
        // The job has lost its purpose, and nobody needs to look at it
        "unsubscribed.example" => return Err(HandlerError::discard("unsubscribed addresses get no mail")),
        // This delay replaces that of the job's retry policy
        "busy.example" => return Err(HandlerError::retry_after(Duration::from_mins(10), "the mailbox is busy")),
        // The retry policy decides when, and how often
        "flaky.example" if context.attempt() == 1 => return Err(HandlerError::retryable("the server hung up")),
        _ => {}
    }
    let mut text = format!("To: {to}\nSubject: {}\n", email.subject);
    // Of two attempts of a job the later one has the greater token: a store that compares them can refuse the other
    let _ = writeln!(text, "Fencing-Token: {}", context.fencing_token());
    // The parent span of the receiver's work
    if let Some(traceparent) = context.traceparent() {
        let _ = writeln!(text, "Traceparent: {traceparent}");
    }
    let _ = writeln!(text, "\n{}", email.body);
    // The id is the same in every attempt, so sending twice leaves one file
    let file = outbox(&context, "mail");
    // A mail cannot be undone, so this checks once more that the job still belongs to this worker
    context.heartbeat().await?;
    fs::write(&file, text).await?;
    Ok(SentEmail { file, attempt: context.attempt() })
}

/// What people see beside the number while it runs.
#[derive(Serialize)]
struct NewsletterProgress<'a> {
    last: &'a str,
}

/// Many mails, one after the other: reports progress, and cleans up when it must stop.
async fn newsletter(context: Context, (to, pause_ms): (Vec<String>, u64)) -> Result<usize, HandlerError> {
    // Fires when the job is cancelled or lost, when its time is over, and when the worker stops. A handler that asks
    // for it gets `queue_worker.stop_grace_ms` to clean up; any other handler is dropped where it waits
    let stop = context.cancellation();
    // Another attempt may have begun elsewhere when this one must stop: neither removes the other's draft
    let draft = outbox(&context, &format!("{}.draft", context.attempt()));
    let mut sent = String::new();
    for (before, address) in to.iter().enumerate() {
        let _ = writeln!(sent, "{address}");
        fs::write(&draft, &sent).await?;
        #[expect(clippy::cast_precision_loss, reason = "no newsletter has 2^52 subscribers")]
        let progress = (before + 1) as f64 / to.len() as f64;
        let noted = context.progress_with(Some(progress), &NewsletterProgress { last: address }).await;
        // Stop when another worker has the job, but not when Redis is away
        let is_over = matches!(noted, Err(ContextError::Stale));
        let is_stopped = is_over
            || select! {
                () = stop.cancelled() => true,
                () = sleep(Duration::from_millis(pause_ms)) => false,
            };
        if is_stopped {
            fs::remove_file(&draft).await?;
            return Err(HandlerError::retryable("stopped half-way"));
        }
    }
    fs::rename(&draft, outbox(&context, "newsletter")).await?;
    Ok(to.len())
}

/// What the buyer gets.
#[derive(Serialize)]
struct Order {
    receipt: String,
    attempts: u32,
}

/// Steps: a later attempt gets the saved result of a step and does not run it again, so nobody is charged twice.
async fn order(context: Context, (to, amount): (String, u64)) -> Result<Order, HandlerError> {
    let receipt = context.step("charge", || charge(&context, amount)).await?;
    // Shown while the job runs
    context.stream(&format!("charged {amount}")).await?;
    // Saved too, and read by the next attempt
    let attempts = context.state::<u32>()?.unwrap_or(0) + 1;
    context.checkpoint(&attempts).await?;
    if to.ends_with("@huge.example") {
        // The step ran, but its result is too large to be saved: no other attempt would change that
        context.step("enlarge", || async { Ok("x".repeat(1 << 20)) }).await?;
    }
    if to.ends_with("@flaky.example") && context.attempt() == 1 {
        return Err(HandlerError::retryable("the mail server hung up"));
    }
    Ok(Order { receipt, attempts })
}

/// Charges the buyer. If the worker dies before the result is saved it runs again: a bank gets `context.id()` as the key
/// with which it recognizes that.
async fn charge(context: &Context, amount: u64) -> Result<String, HandlerError> {
    let mut charges = fs::OpenOptions::new().create(true).append(true).open(outbox(context, "charges")).await?;
    charges.write_all(format!("{amount}\n").as_bytes()).await?;
    charges.flush().await?;
    Ok(format!("receipt {} for {amount}", context.attempt()))
}

/// Waits in the middle of its work, for a person and for a time, and holds no worker meanwhile. It goes on here in a later
/// attempt, so what is before a wait is a step.
async fn campaign(context: Context, (to, pause_ms): (String, u64)) -> Result<String, HandlerError> {
    context.step("draft", || charge(&context, 1)).await?;
    let Some(decision) = context.wait_for_approval("campaign", Some(Duration::from_hours(72))).await? else {
        return Err(HandlerError::discard("nobody has decided for three days"));
    };
    if !decision.approved {
        return Err(HandlerError::not_retryable(decision.comment.unwrap_or_else(|| "rejected".to_owned())));
    }
    context.sleep("cool down", Duration::from_millis(pause_ms)).await?;
    // Signals that have names of their own: how many opened the mail, told twice
    let mut opened = 0;
    for report in 1..=2 {
        let step = format!("report {report}");
        let signal = context.wait_for_signal_at(&step, "opened", Some(Duration::from_hours(1))).await?;
        opened += signal.map_or(Ok(0), |signal| signal.data::<u64>())?;
    }
    Ok(format!("{to} opened {opened}, approved by {}", decision.by.as_deref().unwrap_or("somebody")))
}

/// `?` converts any error: its Rust type is the error type, and the retry policy decides.
async fn from_template(_context: Context, (file, name): (PathBuf, String)) -> Result<String, HandlerError> {
    let template = fs::read_to_string(file).await?;
    Ok(template.replace("{name}", &name))
}

/// A client may ask for anything.
const MAX_RENDERED_BYTES: usize = 1 << 30;

/// Computes instead of waiting, so it has its own thread. A panic fails only this attempt.
fn render(_context: Context, (template, repeat): (String, usize)) -> Result<String, HandlerError> {
    assert!(!template.is_empty(), "nobody writes empty templates");
    if template.len().saturating_mul(repeat) > MAX_RENDERED_BYTES {
        return Err(HandlerError::not_retryable(format!("at most {MAX_RENDERED_BYTES} bytes can be rendered")));
    }
    Ok(template.repeat(repeat))
}

/// How long a notice waits for others: `DIGEST_SECONDS`, or two.
fn digest_delay() -> Duration {
    let seconds = std::env::var("DIGEST_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(2))
}

/// Several jobs in one call: their notices go into one mail. Each job has a result of its own, or an error.
async fn digest(jobs: Vec<(Context, (String,))>) -> Result<Vec<Result<PathBuf, HandlerError>>, HandlerError> {
    let (mut text, file) = (String::new(), outbox(&jobs[0].0, "digest"));
    let mut results = Vec::new();
    for (_, (notice,)) in &jobs {
        if notice.is_empty() {
            results.push(Err(HandlerError::not_retryable("a notice has text")));
        } else {
            let _ = writeln!(text, "{notice}");
            results.push(Ok(file.clone()));
        }
    }
    // An error here fails all of them
    fs::write(&file, text).await?;
    Ok(results)
}

/// In a workflow: uses the results of the job's parents.
fn count(context: &Context) -> Result<usize, HandlerError> {
    let lists: Vec<Vec<String>> = context.parent_results()?;
    Ok(lists.into_iter().flatten().collect::<BTreeSet<_>>().len())
}

/// The file of a job, named after its id.
fn outbox(context: &Context, kind: &str) -> PathBuf {
    let folder = std::env::var_os("OUTBOX").map_or_else(std::env::temp_dir, PathBuf::from);
    folder.join(format!("{}.{kind}", context.id()))
}
