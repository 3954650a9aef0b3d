//! The sender of a request, as handlers see it.

use std::{
    future::{Ready, ready},
    ops::Deref,
    sync::Arc,
};

use actix_web::{FromRequest, HttpMessage, HttpRequest, dev::Payload};
use common::name::{ChannelName, QueueName};
use model::access::{Access, Scope};

use crate::{
    error::{ApiError, ErrorCode},
    tokens::OWN_TOKEN_PREFIX,
};

/// The sender of a request.
#[derive(Debug, Clone)]
pub(crate) struct Caller(Arc<Access>);

#[expect(dead_code, reason = "handlers follow")]
impl Caller {
    pub(super) fn new(access: Arc<Access>) -> Self {
        Self(access)
    }

    /// The sender of a request that was admitted.
    pub(crate) fn of(request: &HttpRequest) -> Result<Self, ApiError> {
        let caller = request.extensions().get::<Self>().cloned();
        caller.ok_or_else(|| ApiError::internal("the request was not admitted"))
    }

    /// Refuses a queue that is not one of the key's.
    pub(crate) fn check_queue(&self, scope: Scope, queue: &QueueName) -> Result<(), ApiError> {
        if self.0.may_queue(scope, queue) {
            return Ok(());
        }
        Err(self.refusal(scope, format_args!("queue {queue}")))
    }

    /// Refuses a channel that is not one of the key's.
    pub(crate) fn check_channel(&self, scope: Scope, channel: &ChannelName) -> Result<(), ApiError> {
        if self.0.may_channel(scope, channel) {
            return Ok(());
        }
        Err(self.refusal(scope, format_args!("channel {channel}")))
    }

    /// Refuses a pattern of channels that matches others than the key's.
    pub(crate) fn check_channel_pattern(&self, scope: Scope, pattern: &str) -> Result<(), ApiError> {
        if self.0.may(scope) && self.0.has_channel_pattern(pattern) {
            return Ok(());
        }
        Err(self.refusal(scope, format_args!("channels {pattern}")))
    }

    /// Refuses a name outside of the key's namespace.
    pub(crate) fn check_name(&self, what: &str, name: &str) -> Result<(), ApiError> {
        match &self.0.namespace {
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
        self.0.id.starts_with(OWN_TOKEN_PREFIX)
    }

    /// The access of a sender that does not see everything.
    pub(crate) fn limited(&self) -> Option<Arc<Access>> {
        Some(self.0.clone()).filter(|access| !access.has_every_queue())
    }

    fn refusal(&self, scope: Scope, what: std::fmt::Arguments<'_>) -> ApiError {
        if self.0.may(scope) {
            ApiError::new(ErrorCode::NameNotAllowed, format!("this key is not for {what}"))
        } else {
            ApiError::scope_required(scope)
        }
    }
}

impl Deref for Caller {
    type Target = Access;
    fn deref(&self) -> &Access {
        &self.0
    }
}

impl FromRequest for Caller {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(Self::of(request))
    }
}
