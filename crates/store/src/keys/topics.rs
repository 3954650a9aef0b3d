//! The names of Galley's own pub/sub channels. Redis sends what is published to the clients of all its databases, so
//! every name carries the number of the database.

use std::sync::Arc;

use common::name::{ChannelName, QueueName};

/// The names of the pub/sub channels of one database. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicNames {
    prefix: Arc<str>,
    is_cluster: bool,
}

impl TopicNames {
    /// The names for that database.
    #[must_use]
    pub fn of_database(number: i64) -> Self {
        Self { prefix: format!("galley:{number}:").into(), is_cluster: false }
    }

    /// The names of a cluster, or of one server.
    #[must_use]
    pub(crate) fn on_cluster(self, is_cluster: bool) -> Self {
        Self { is_cluster, ..self }
    }

    /// Whether a topic is published with `SPUBLISH`, to the nodes of its slot alone: on a cluster each one of Galley with a tag.
    #[must_use]
    pub fn is_sharded(&self, topic: &str) -> bool {
        self.is_cluster && topic.strip_prefix(&*self.prefix).is_some_and(|rest| rest.starts_with('{'))
    }

    /// A topic as `publish_topic` of `lua/topic.lua` takes it: it says how it is published.
    #[must_use]
    pub(crate) fn for_script(&self, topic: String) -> String {
        if self.is_sharded(&topic) { ["S", &topic].concat() } else { topic }
    }

    fn name(&self, name: &str) -> String {
        [&*self.prefix, name].concat()
    }

    /// What all of them begin with.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Wake-up calls, see [`crate::connection::notification`].
    #[must_use]
    pub fn notifications(&self) -> String {
        self.name("notifications")
    }

    /// Changes of the log level.
    #[must_use]
    pub fn log_level(&self) -> String {
        self.name("log_level")
    }

    /// Questions what each process is doing.
    #[must_use]
    pub fn process_questions(&self) -> String {
        self.name("process_questions")
    }

    /// The answers to one of these.
    #[must_use]
    pub fn process_answers(&self, question: u64) -> String {
        format!("{}process_answers:{question}", self.prefix)
    }

    /// Names of new channels.
    #[must_use]
    pub fn new_channels(&self) -> String {
        self.name("channels")
    }

    /// Positions of new messages, for those who read the channel.
    #[must_use]
    pub fn live_messages(&self, channel: &ChannelName) -> String {
        format!("{}{{ch:{channel}}}:live", self.prefix)
    }

    /// The channel of a live-messages name.
    #[must_use]
    pub fn channel_of_live_messages(&self, name: &str) -> Option<ChannelName> {
        name.strip_prefix(&*self.prefix)?.strip_prefix("{ch:")?.strip_suffix("}:live")?.parse().ok()
    }

    /// Who joins and leaves a channel, for those who watch it.
    #[must_use]
    pub fn presence(&self, channel: &ChannelName) -> String {
        format!("{}{{ch:{channel}}}:presence", self.prefix)
    }

    /// The channel of a presence name.
    #[must_use]
    pub fn channel_of_presence(&self, name: &str) -> Option<ChannelName> {
        name.strip_prefix(&*self.prefix)?.strip_prefix("{ch:")?.strip_suffix("}:presence")?.parse().ok()
    }

    /// Ids of ended jobs of a queue, for those who wait for one.
    #[must_use]
    pub fn finished_jobs(&self, queue: &QueueName) -> String {
        format!("{}{{{}}}:finished", self.prefix, queue.stored())
    }

    /// Ids of jobs of a queue that have new output, for those who read it.
    #[must_use]
    pub fn output(&self, queue: &QueueName) -> String {
        format!("{}{{{}}}:output", self.prefix, queue.stored())
    }

    /// A process's probe of its own subscription.
    #[must_use]
    pub fn probe(&self, process: &uuid::Uuid) -> String {
        format!("{}probe:{}", self.prefix, process.simple())
    }
}
