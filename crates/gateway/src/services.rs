//! What every handler uses.

use std::sync::Arc;

use common::{
    health::ServiceHealth,
    name::ChannelName,
    settings::Settings,
    telemetry::{
        WorkScope,
        spans::{ActiveSpan, Operation, SpanDescription, attribute},
    },
};
use model::message::NewMessage;
use store::{
    Redis,
    channels::{ChannelHub, ChannelPresence, Channels, MessageDedup, PublishedMessage},
    connection::confirmation::Confirmer,
    events::EventHub,
    jobs::Jobs,
    long_poll::LongPoll,
    process_reports::ProcessReporter,
    subscriptions::Subscriptions,
    workers::Workers,
    workflows::Workflows,
};
use tokio_util::sync::CancellationToken;

use crate::{
    answer_budget::AnswerBudget, auth::Auth, body_budget::BodyBudget, dashboard::live::known::DashboardState,
    error::ApiError, job_waiters::JobWaiters, message_socket::SharedOutbound, process_facts::ProcessFacts,
    pull_workers::PullWorkers, stream_limit::StreamLimiter, totals_cache::TotalsCache,
};

/// What every handler uses.
#[derive(Clone)]
pub(crate) struct Services {
    pub(crate) auth: Auth,
    pub(crate) health: ServiceHealth,
    pub(crate) redis: Redis,
    pub(crate) confirmer: Confirmer,
    pub(crate) jobs: Jobs,
    pub(crate) job_waiters: JobWaiters,
    pub(crate) long_poll: LongPoll,
    pub(crate) events: EventHub,
    pub(crate) channels: Channels,
    pub(crate) channel_hub: ChannelHub,
    pub(crate) presence: ChannelPresence,
    pub(crate) workflows: Workflows,
    pub(crate) workers: Workers,
    pub(crate) subscriptions: Subscriptions,
    pub(crate) pull_workers: Arc<PullWorkers>,
    pub(crate) bodies: Arc<BodyBudget>,
    pub(crate) answers: Arc<AnswerBudget>,
    pub(crate) dashboard: DashboardState,
    pub(crate) sockets: SharedOutbound,
    pub(crate) streams: StreamLimiter,
    pub(crate) facts: ProcessFacts,
    pub(crate) reporter: ProcessReporter,
    pub(crate) totals: Arc<TotalsCache>,
    pub(crate) settings: Arc<Settings>,
    /// Cancelled when the gateway stops: ends everything whose length clients decide.
    pub(crate) stopping: CancellationToken,
}

impl Services {
    /// Publishes a message.
    pub(crate) async fn publish(
        &self,
        channel: &ChannelName,
        message: NewMessage<'_>,
        once: Option<MessageDedup>,
    ) -> Result<PublishedMessage, ApiError> {
        // An event may bring the trace of its own
        let event = message.event_trace();
        let trace = WorkScope::current().trace().clone().or(|| event.clone());
        let mut span = ActiveSpan::start(&trace, || {
            let size = i64::try_from(message.body.len()).unwrap_or(i64::MAX);
            let other = event.span().filter(|span| Some(*span) != trace.span());
            SpanDescription::messaging(Operation::Publish, channel.as_str())
                .with(attribute::MESSAGING_MESSAGE_BODY_SIZE, size)
                .with_links(other)
        });
        let message = NewMessage { trace: span.context().clone(), ..message };
        let published = self.channels.publish_deduplicated(channel, &message, once).await;
        match &published {
            Ok(Ok(published)) => span.set(attribute::MESSAGING_MESSAGE_ID, published.position.to_string()),
            Ok(Err(_)) => span.fail("too_many_channels", None),
            Err(_) => span.fail("not_published", None),
        }
        Ok(published??)
    }
}
