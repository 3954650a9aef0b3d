//! Jobs on their way to a program. They are released if the program hangs up before it has them.

use std::{
    ops::Deref,
    pin::Pin,
    task::{Context, Poll},
};

use actix_web::{
    HttpResponse,
    body::{BodySize, MessageBody},
    http::StatusCode,
    web::{Bytes, Data},
};
use store::jobs::{Attempt, ClaimedJob, Fence};

use crate::{routes::ojs_response_builder, services::Services};

/// Claimed jobs. They are released when they are dropped before the answer is written.
pub(super) struct ClaimedJobs {
    services: Data<Services>,
    jobs: Vec<ClaimedJob>,
}

impl ClaimedJobs {
    pub(super) fn new(services: &Data<Services>, jobs: Vec<ClaimedJob>) -> Self {
        Self { services: services.clone(), jobs }
    }

    /// An answer about these jobs.
    pub(super) fn into_response(self, json: String) -> HttpResponse {
        ojs_response_builder(StatusCode::OK).body(ClaimedJobsBody { json: Some(json.into()), jobs: self })
    }
}

impl Deref for ClaimedJobs {
    type Target = [ClaimedJob];
    fn deref(&self) -> &[ClaimedJob] {
        &self.jobs
    }
}

impl Drop for ClaimedJobs {
    fn drop(&mut self) {
        if self.jobs.is_empty() {
            return;
        }
        let (services, jobs) = (self.services.clone(), std::mem::take(&mut self.jobs));
        self.services.long_poll.runtime().spawn(async move {
            for claimed in jobs {
                let fence = Fence::Pull { token: claimed.token.clone(), worker: None };
                if let Err(error) = services.jobs.release(Attempt::of(&claimed, &fence)).await {
                    let id = claimed.job.id;
                    claimed.job.work_scope().within(|| {
                        tracing::warn!(%id, %error, "a job claimed for a program that hung up waits for its lease");
                    });
                }
            }
        });
    }
}

/// The answer. Its jobs are the program's from the moment at which it is written.
struct ClaimedJobsBody {
    json: Option<Bytes>,
    jobs: ClaimedJobs,
}

impl MessageBody for ClaimedJobsBody {
    type Error = std::convert::Infallible;

    fn size(&self) -> BodySize {
        BodySize::Sized(self.json.as_ref().map_or(0, |json| json.len() as u64))
    }

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        self.jobs.jobs.clear();
        Poll::Ready(self.json.take().map(Ok))
    }
}
