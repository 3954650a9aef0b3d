//! Taking jobs for a program: at once, or when they arrive.

use std::{sync::Arc, time::Duration};

use actix_web::web;
use common::name::{QueueName, WorkerId};
use common::settings::MAX_WATCHED_QUEUES;
use store::{
    jobs::{Claim, Claimed, Fence},
    long_poll::{Left, TooManyWatched},
};
use tokio::{sync::oneshot, time::Instant};

use crate::{
    error::{ApiError, Code},
    startup::Services,
};

/// Jobs claimed in one go: each may be as large as a request body.
const CLAIMED_AT_ONCE: usize = 10;
/// A fetch asks for no more once it has this much.
const ENOUGH_BYTES: usize = 4 << 20;
/// Expired jobs that one fetch clears away.
const MOST_EXPIRED: usize = 100;
/// After Redis did not answer, those who wait try again after this long.
const AFTER_TROUBLE: Duration = Duration::from_secs(1);

/// What a program asks for.
pub(super) struct Wanted {
    pub(super) queues: Vec<QueueName>,
    pub(super) count: usize,
    pub(super) worker: Option<WorkerId>,
    pub(super) lease: Option<Duration>,
}

/// What it gets, and what is left.
struct Taken {
    jobs: Vec<Claimed>,
    left: Vec<(QueueName, Left)>,
}

/// Takes what there is; if there is nothing, waits for it, but no longer than that.
pub(super) async fn take(
    services: &web::Data<Services>,
    wanted: Wanted,
    limit: Duration,
) -> Result<Vec<Claimed>, ApiError> {
    let deadline = Instant::now() + limit;
    let taken = take_now(services, &wanted).await?;
    if !taken.jobs.is_empty() || limit.is_zero() {
        return Ok(taken.jobs);
    }
    wait(services, Arc::new(wanted), deadline).await
}

async fn wait(
    services: &web::Data<Services>,
    wanted: Arc<Wanted>,
    deadline: Instant,
) -> Result<Vec<Claimed>, ApiError> {
    let _place = services.waiting.place()?;
    let seat = services.arrivals.sit_down(&wanted.queues)?;
    let mut trouble = None;
    loop {
        tokio::select! {
            () = seat.called() => {}
            () = services.stopping.cancelled() => return Ok(Vec::new()),
            () = tokio::time::sleep_until(deadline) => return trouble.map_or(Ok(Vec::new()), Err),
        }
        match take_or_hand_back(services, &wanted).await {
            Ok(taken) => {
                trouble = None;
                seat.looked(&taken.left, !taken.jobs.is_empty());
                if !taken.jobs.is_empty() {
                    return Ok(taken.jobs);
                }
            }
            // Whoever is ready to wait can wait for Redis to come back
            Err(error) if error.code() == Code::Unavailable => {
                seat.failed(&wanted.queues, AFTER_TROUBLE);
                trouble = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Takes what there is. If the program hangs up meanwhile, what was taken is handed back.
async fn take_or_hand_back(services: &web::Data<Services>, wanted: &Arc<Wanted>) -> Result<Taken, ApiError> {
    let (sender, receiver) = oneshot::channel();
    let (owned, request) = (services.clone(), wanted.clone());
    services.arrivals.runtime().spawn(async move {
        let taken = take_now(&owned, &request).await;
        if let Err(Ok(taken)) = sender.send(taken) {
            hand_back(&owned, taken.jobs).await;
        }
    });
    receiver.await.unwrap_or_else(|_| Err(ApiError::new(Code::Internal, "the fetch was cut off")))
}

async fn hand_back(services: &Services, jobs: Vec<Claimed>) {
    for claimed in jobs {
        let fence = Fence::Pull { token: claimed.token, worker: None };
        if let Err(error) = services.jobs.requeue(&claimed.job, claimed.entry, &fence).await {
            tracing::warn!(id = %claimed.job.id, %error, "a job taken for a program that hung up waits for its lease");
        }
    }
}

async fn take_now(services: &Services, wanted: &Wanted) -> Result<Taken, ApiError> {
    let mut taken = Taken { jobs: Vec::new(), left: Vec::with_capacity(wanted.queues.len()) };
    for queue in &wanted.queues {
        match take_from(services, queue, wanted, &mut taken.jobs).await {
            Ok(left) => taken.left.push((queue.clone(), left)),
            // What was handed out before must reach the program: it is leased to it
            Err(error) if !taken.jobs.is_empty() => {
                tracing::warn!(%queue, %error, fetched = taken.jobs.len(), "fetch cut short");
                taken.left.push((queue.clone(), Left::Unknown(AFTER_TROUBLE)));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(taken)
}

/// Takes jobs of one queue until there are as many as wanted, or enough bytes. Jobs that expired while they waited are
/// discarded on the way, a bounded number of them.
async fn take_from(
    services: &Services,
    queue: &QueueName,
    wanted: &Wanted,
    taken: &mut Vec<Claimed>,
) -> Result<Left, ApiError> {
    let by = Claim::Pull { worker: wanted.worker.as_ref(), lease: wanted.lease };
    let (mut priorities, mut expired) = (Vec::new(), 0);
    let bytes = |claimed: &Claimed| {
        claimed.job.envelope.as_str().len() + claimed.job.parent_results.as_ref().map_or(0, String::len)
    };
    let size = |taken: &[Claimed]| taken.iter().map(bytes).sum::<usize>();
    while taken.len() < wanted.count && expired < MOST_EXPIRED && size(taken) < ENOUGH_BYTES {
        let most = (wanted.count - taken.len()).min(CLAIMED_AT_ONCE);
        let claimed = services.jobs.claim(queue, &mut priorities, most, by).await?;
        if claimed.jobs.is_empty() {
            return Ok(Left::Nothing(claimed.more));
        }
        let (late, fresh): (Vec<_>, Vec<_>) =
            claimed.jobs.into_iter().partition(|claimed| claimed.job.is_expired(claimed.started_at));
        taken.extend(fresh);
        for claimed in &late {
            let fence = Fence::Pull { token: claimed.token.clone(), worker: None };
            services.jobs.expire(claimed, &fence).await?;
            expired += 1;
        }
    }
    Ok(Left::Perhaps)
}

impl From<TooManyWatched> for ApiError {
    fn from(_: TooManyWatched) -> Self {
        let message = format!("this gateway watches at most {MAX_WATCHED_QUEUES} queues for those who wait");
        Self::new(Code::TooManyWaiters, message)
    }
}
