//! Claims jobs for a program: at once, or when they arrive.

use std::{borrow::Cow, sync::Arc, time::Duration};

use actix_web::{HttpRequest, web};
use common::name::{QueueName, WorkerId};
use common::settings::MAX_WATCHED_QUEUES;
use store::{
    jobs::{Claimant, ClaimedJob, Fence, record_claim},
    long_poll::{Remaining, TooManyWatchedQueues},
};
use tokio::{sync::oneshot, time::Instant};

use super::claimed_jobs::ClaimedJobs;
use crate::{
    auth::while_admitted,
    error::{ApiError, ErrorCode},
    services::Services,
};

/// The most jobs claimed in one step: each may be as large as a request body.
const CLAIM_BATCH_SIZE: usize = 10;
/// A fetch claims no more jobs once it has this many bytes.
const MAX_FETCHED_BYTES: usize = 4 << 20;
/// The most expired jobs that one fetch discards.
const MAX_EXPIRED_JOBS: usize = 100;
/// How long a waiting fetch pauses after Redis did not answer.
const REDIS_RETRY_DELAY: Duration = Duration::from_secs(1);

/// What a program asks for.
pub(super) struct FetchParams {
    pub(super) queues: Vec<QueueName>,
    pub(super) count: usize,
    pub(super) worker: Option<WorkerId>,
    pub(super) lease: Option<Duration>,
}

/// The jobs that were claimed, and what remains in each queue.
struct FetchedJobs {
    jobs: ClaimedJobs,
    remaining: Vec<(QueueName, Remaining)>,
}

/// Claims available jobs. If there are none it waits for them, for a limited time.
pub(super) async fn fetch_jobs(
    request: &HttpRequest,
    services: &web::Data<Services>,
    wanted: FetchParams,
    limit: Duration,
) -> Result<ClaimedJobs, ApiError> {
    let (wanted, deadline) = (Arc::new(wanted), Instant::now() + limit);
    let taken = claim_or_release(services, &wanted).await?;
    if !taken.jobs.is_empty() || limit.is_zero() {
        return Ok(taken.jobs);
    }
    while_admitted(request, wait_for_jobs(services, wanted, deadline)).await
}

async fn wait_for_jobs(
    services: &web::Data<Services>,
    wanted: Arc<FetchParams>,
    deadline: Instant,
) -> Result<ClaimedJobs, ApiError> {
    let _place = services.job_waiters.try_acquire()?;
    // A partition that comes meanwhile is watched by the next fetch
    let queues = services.jobs.claim_order(&wanted.queues).unwrap_or_else(|| wanted.queues.clone());
    let seat = services.long_poll.register(&queues)?;
    let mut trouble = None;
    let none = || ClaimedJobs::new(services, Vec::new());
    loop {
        tokio::select! {
            () = seat.wait_for_wakeup() => {}
            () = services.stopping.cancelled() => return Ok(none()),
            () = tokio::time::sleep_until(deadline) => return trouble.map_or_else(|| Ok(none()), Err),
        }
        match claim_or_release(services, &wanted).await {
            Ok(taken) => {
                trouble = None;
                seat.report_remaining(&taken.remaining, !taken.jobs.is_empty());
                if !taken.jobs.is_empty() {
                    return Ok(taken.jobs);
                }
            }
            // A program that is ready to wait can wait for Redis too
            Err(error) if error.code() == ErrorCode::BackendUnavailable => {
                seat.report_failure(&queues, REDIS_RETRY_DELAY);
                trouble = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Claims available jobs, in a task of its own: if the program hangs up meanwhile, the claimed jobs are released.
async fn claim_or_release(services: &web::Data<Services>, wanted: &Arc<FetchParams>) -> Result<FetchedJobs, ApiError> {
    let (sender, receiver) = oneshot::channel();
    let (owned, request) = (services.clone(), wanted.clone());
    services.long_poll.runtime().spawn(async move {
        let taken = claim_now(&owned, &request).await;
        let taken = taken.map(|(jobs, remaining)| FetchedJobs { jobs: ClaimedJobs::new(&owned, jobs), remaining });
        // Dropped when nobody receives them any more
        let _ = sender.send(taken);
    });
    receiver.await.unwrap_or_else(|_| Err(ApiError::new(ErrorCode::Internal, "the fetch was cut off")))
}

async fn claim_now(
    services: &Services,
    wanted: &FetchParams,
) -> Result<(Vec<ClaimedJob>, Vec<(QueueName, Remaining)>), ApiError> {
    let (mut jobs, mut remaining) = (Vec::new(), Vec::with_capacity(wanted.queues.len()));
    let mut failures = Vec::new();
    let mut order = services.jobs.claim_order(&wanted.queues).map_or(Cow::Borrowed(&wanted.queues[..]), Cow::Owned);
    let mut number = 0;
    while number < order.len() {
        let queue = &order[number];
        number += 1;
        match claim_from_queue(services, queue, wanted, &mut jobs).await {
            Ok(left) => remaining.push((queue.clone(), left)),
            Err(error) if error.code() == ErrorCode::BackendUnavailable && jobs.is_empty() => return Err(error),
            // The program holds the leases of the jobs claimed so far, so they must reach it. And a queue whose data
            // cannot be used must not keep it from the others
            Err(error) => {
                tracing::warn!(event = "queue.unavailable", %queue, %error, "queue cannot be served for now");
                remaining.push((queue.clone(), Remaining::Unavailable(REDIS_RETRY_DELAY)));
                failures.push(error);
            }
        }
        if number == order.len() {
            // The claims may have told of partitions
            add_new_partitions(services, &wanted.queues, &mut order);
        }
    }
    match failures.pop() {
        Some(error) if jobs.is_empty() && failures.len() + 1 == order.len() => Err(error),
        _ => Ok((jobs, remaining)),
    }
}

/// Adds partitions that were not known when the order was made.
fn add_new_partitions(services: &Services, queues: &[QueueName], order: &mut Cow<'_, [QueueName]>) {
    let Some(all) = services.jobs.claim_order(queues) else { return };
    if all.len() > order.len() {
        let new: Vec<QueueName> = all.into_iter().filter(|queue| !order.contains(queue)).collect();
        order.to_mut().extend(new);
    }
}

/// Claims jobs of one queue up to the wanted number or bytes. It discards a bounded number of jobs that expired while
/// they waited.
async fn claim_from_queue(
    services: &Services,
    queue: &QueueName,
    wanted: &FetchParams,
    taken: &mut Vec<ClaimedJob>,
) -> Result<Remaining, ApiError> {
    let by = Claimant::Pull { worker: wanted.worker.as_ref(), lease: wanted.lease };
    let (mut priorities, mut expired) = (Vec::new(), 0);
    let bytes = |claimed: &ClaimedJob| {
        claimed.job.envelope.as_str().len() + claimed.job.parent_results.as_ref().map_or(0, String::len)
    };
    let size = |taken: &[ClaimedJob]| taken.iter().map(bytes).sum::<usize>();
    while taken.len() < wanted.count && expired < MAX_EXPIRED_JOBS && size(taken) < MAX_FETCHED_BYTES {
        let most = (wanted.count - taken.len()).min(CLAIM_BATCH_SIZE);
        let claimed = services.jobs.claim(queue, &mut priorities, most, by).await?;
        if claimed.jobs.is_empty() {
            return Ok(Remaining::Empty(claimed.availability));
        }
        let (late, fresh): (Vec<_>, Vec<_>) =
            claimed.jobs.into_iter().partition(|claimed| claimed.job.is_expired(claimed.started_at));
        record_claim(queue, &fresh, wanted.worker.as_ref(), services.jobs.estimated_now());
        taken.extend(fresh);
        for claimed in &late {
            let fence = Fence::Pull { token: claimed.token.clone(), worker: None };
            services.jobs.discard_expired(claimed, &fence).await?;
            expired += 1;
        }
    }
    Ok(Remaining::MaybeMore)
}

impl From<TooManyWatchedQueues> for ApiError {
    fn from(_: TooManyWatchedQueues) -> Self {
        let message = format!("this gateway watches at most {MAX_WATCHED_QUEUES} queues for those who wait");
        Self::new(ErrorCode::TooManyWaiters, message)
    }
}
