//! The sender of a request, as handlers see it.

use std::{
    future::{Ready, ready},
    ops::Deref,
    sync::Arc,
};

use actix_web::{FromRequest, HttpMessage, HttpRequest, dev::Payload, guard::GuardContext};
use common::name::{ChannelName, QueueName};
use model::{
    access::{Access, Scope},
    cron::CronEntry,
    subscription::{Subscription, SubscriptionTarget},
};

use crate::{
    error::{ApiError, ErrorCode},
    tokens::OWN_TOKEN_PREFIX,
};

/// The sender of a request.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    access: Arc<Access>,
    /// The path, as the table of routes has it, to which the request was admitted.
    path: Option<&'static str>,
}

impl Caller {
    pub(super) fn new(access: Arc<Access>, path: Option<&'static str>) -> Self {
        Self { access, path }
    }

    /// The path to which the request was admitted: `/ojs/v1/jobs/{id}`.
    pub(crate) fn path(&self) -> Option<&'static str> {
        self.path
    }

    /// Whether a request was admitted to a path. The router asks, so that a request that it reads otherwise than the
    /// admission did reaches no handler.
    pub(crate) fn is_admitted(context: &GuardContext<'_>, path: &str) -> bool {
        context.req_data().get::<Self>().is_some_and(|caller| caller.path == Some(path))
    }

    /// The sender of a request that was admitted.
    pub(crate) fn of(request: &HttpRequest) -> Result<Self, ApiError> {
        let caller = request.extensions().get::<Self>().cloned();
        caller.ok_or_else(|| ApiError::internal("the request was not admitted"))
    }

    /// Refuses a queue that is not one of the key's.
    pub(crate) fn check_queue(&self, scope: Scope, queue: &QueueName) -> Result<(), ApiError> {
        if self.access.may_queue(scope, queue) {
            return Ok(());
        }
        Err(self.refusal(scope, format_args!("queue {queue}")))
    }

    /// Refuses a channel that is not one of the key's.
    pub(crate) fn check_channel(&self, scope: Scope, channel: &ChannelName) -> Result<(), ApiError> {
        if self.access.may_channel(scope, channel) {
            return Ok(());
        }
        Err(self.refusal(scope, format_args!("channel {channel}")))
    }

    /// Refuses a pattern of channels that matches others than the key's.
    pub(crate) fn check_channel_pattern(&self, scope: Scope, pattern: &str) -> Result<(), ApiError> {
        if self.access.may(scope) && self.access.has_channel_pattern(pattern) {
            return Ok(());
        }
        Err(self.refusal(scope, format_args!("channels {pattern}")))
    }

    /// Refuses a name outside of the key's namespace.
    pub(crate) fn check_name(&self, what: &str, name: &str) -> Result<(), ApiError> {
        match &self.access.namespace {
            Some(namespace) if !namespace.holds(name) => {
                let message =
                    format!("{what} {name} is not in the namespace of this key: begin it with \"{namespace}.\"");
                Err(ApiError::new(ErrorCode::NameNotAllowed, message))
            }
            _ => Ok(()),
        }
    }

    /// Whether it sent a token that a gateway made.
    pub(crate) fn is_own_token(&self) -> bool {
        self.access.id.starts_with(OWN_TOKEN_PREFIX)
    }

    /// The access of a sender that does not see everything.
    pub(crate) fn limited(&self) -> Option<Arc<Access>> {
        Some(self.access.clone()).filter(|access| !access.has_every_queue())
    }

    /// Whether a cron entry is in the namespace, and its jobs are of a queue that the key is for.
    pub(crate) fn has_cron_entry(&self, entry: &CronEntry) -> bool {
        if self.has_every_queue() {
            return true;
        }
        let job = entry.template.new_job(&entry.name, 0, 0);
        self.holds(entry.name.as_str()) && job.is_ok_and(|job| self.has_queue(&job.queue))
    }

    /// Whether a subscription is in the namespace, and its channels and the queue to which it delivers are the key's.
    pub(crate) fn has_subscription(&self, subscription: &Subscription) -> bool {
        if self.is_unlimited() {
            return true;
        }
        let channels = Vec::<String>::from(subscription.channels.clone());
        let has_target = match &subscription.deliver {
            SubscriptionTarget::Queue(target) => self.has_queue(&target.queue),
            _ => true,
        };
        self.holds(subscription.name.as_str())
            && has_target
            && channels.iter().all(|channel| self.has_channel_pattern(channel))
    }

    /// What the key may do, for a filter that outlives the request.
    pub(crate) fn to_access(&self) -> Access {
        (*self.access).clone()
    }

    fn refusal(&self, scope: Scope, what: std::fmt::Arguments<'_>) -> ApiError {
        if self.access.may(scope) { ApiError::name_not_allowed(what) } else { ApiError::scope_required(scope) }
    }
}

impl Deref for Caller {
    type Target = Access;
    fn deref(&self) -> &Access {
        &self.access
    }
}

impl FromRequest for Caller {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(Self::of(request))
    }
}
