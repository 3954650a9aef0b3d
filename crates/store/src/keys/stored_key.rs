//! What a key holds, from its name: for looking through all keys.

use super::QueueKeys;
use common::{
    id::WorkflowId,
    name::{ChannelName, Priority, QueueName},
};

/// A key that says that something exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StoredKey {
    /// A queue's.
    Queue(QueueName),
    /// A workflow.
    Workflow(WorkflowId),
    /// The history of a channel.
    History(ChannelName),
}

impl StoredKey {
    /// The pattern of all of them.
    pub(crate) const PATTERN: &str = "galley:{*}:*";

    pub(crate) fn parse(key: &str) -> Option<Self> {
        let (owner, rest) = key.strip_prefix("galley:{")?.split_once("}:")?;
        if let Some(id) = owner.strip_prefix("wf:") {
            return if rest == "w" { id.parse().ok().map(Self::Workflow) } else { None };
        }
        if let Some(channel) = owner.strip_prefix("ch:") {
            return if rest == "m" { channel.parse().ok().map(Self::History) } else { None };
        }
        let queue = QueueName::from_stored(owner).ok()?;
        let is_stream = rest.strip_prefix("s:").is_some_and(|priority| Priority::from_text(priority).is_some());
        (is_stream || QueueKeys::LASTING.contains(&rest)).then_some(Self::Queue(queue))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_tells_what_it_holds() {
        let queue: QueueName = "a.b".parse().expect("a name");
        let keys = QueueKeys::new(&queue);
        for key in keys.lasting() {
            assert_eq!(StoredKey::parse(&key), Some(StoredKey::Queue(queue.clone())), "{key}");
        }
        let channel: ChannelName = "a.b".parse().expect("a name");
        assert_eq!(StoredKey::parse(&super::super::channel_history(&channel)), Some(StoredKey::History(channel)));
        for other in ["galley:queues", "galley:{a.b}:j:x", "galley:{a.b}:s:x", "galley:{ch:a}:state", "galley:{wf:x}:w"]
        {
            assert_eq!(StoredKey::parse(other), None, "{other}");
        }
    }
}
