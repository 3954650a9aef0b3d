//! The metrics of channels and subscriptions.

use super::{MetricSpec, counter, gauge};

pub(super) const CHANNELS: &[MetricSpec] = &[
    counter("galley_messages_published_total", &[], "messages", "Messages that this process published"),
    counter("galley_messages_trimmed_total", &[], "messages", "Messages that maintenance trimmed from histories"),
    gauge("galley_channels_followed", &[], "channels", "Channels that this gateway is subscribed to for its readers"),
    counter(
        "galley_messages_heard_total",
        &["channel"],
        "messages",
        "Messages that this pubsub-worker received and logged (pubsub_worker.channels)",
    ),
    counter(
        "galley_messages_dropped_total",
        &[],
        "messages",
        "Received messages that found no room in a buffer of this process",
    )
    .explained("received messages that found no room in a buffer of this process. Gateways read them from the history"),
    counter("galley_subscriptions_lost_total", &[], "connections", "Lost connections to Redis's pub/sub")
        .explained("lost connections to Redis's pub/sub. Galley subscribes again"),
    counter("galley_published_bytes_total", &[], "bytes", "Bytes of the data of messages that this process published"),
    counter(
        "galley_message_deltas_total",
        &[],
        "messages",
        "Messages that readers of this gateway got as the difference from the one before",
    )
    .explained(
        "messages that readers of this gateway got as the difference from the one before, because they asked for that. Each \
         reader counts",
    ),
    counter(
        "galley_message_delta_saved_bytes_total",
        &[],
        "bytes",
        "Bytes by which these differences were shorter than the messages",
    ),
    gauge(
        "galley_channel_members",
        &[],
        "members",
        "Members of channels that take part through connections to this gateway",
    )
    .explained(
        "members of channels that take part through connections to this gateway. A member counts once in each channel, \
         and at each gateway to which it has connections",
    ),
];

pub(super) const SUBSCRIPTIONS: &[MetricSpec] = &[
    counter("galley_deliveries_total", &["subscription", "outcome"], "attempts", "Attempts to deliver a message of a subscription").explained("`delivered`, `failed`, `later` (must wait, no attempt spent), `abandoned` (the worker stopped)"),
    counter("galley_damaged_messages_total", &[], "messages", "Messages that could not be opened: sealed with a key that this process lacks, or changed in Redis"),
    counter("galley_delivery_records_dropped_total", &[], "attempts", "Attempts to deliver that are missing in their log, because Redis did not take them"),
    counter("galley_subscription_gaps_total", &["subscription"], "gaps", "Gaps: messages that were no longer kept before they were delivered").explained("gaps: messages that were no longer kept before they were delivered. The log has the bounds"),
    counter("galley_subscription_overtaken_total", &["subscription"], "messages", "Messages lost because the subscription needed more than channels.backlog_max_messages or _bytes").explained("messages lost because the subscription needed more than `channels.backlog_max_messages` or `channels.backlog_max_bytes`. At least one per time if the number is unknown. The subscription is too slow, or no worker runs it"),
    counter("galley_messages_given_up_total", &["subscription"], "messages", "Messages dropped: neither delivered nor kept as a job").explained("messages dropped: neither delivered nor kept as a job. The log has the reason"),
    counter("galley_messages_unfiltered_total", &["subscription"], "messages", "Messages that say that they are JSON and cannot be read: delivered without asking the filter"),
    counter("galley_subscriptions_disabled_total", &["subscription"], "subscriptions", "Subscriptions that Galley disabled"),
    counter("galley_subscriptions_restored_total", &["subscription"], "subscriptions", "Subscriptions that a worker restored after Redis lost them"),
    counter("galley_subscription_groups_lost_total", &[], "groups", "Consumer groups that were lost and created again"),
    gauge("galley_subscription_lag_messages", &["subscription"], "messages", "Messages that the subscription was not handed yet").explained("messages that the subscription was not handed yet, in all its channels; of a broadcast: of the worker that is furthest behind. Only the leader shows it"),
    gauge("galley_subscription_in_flight_messages", &["subscription"], "messages", "Messages that workers have and have not acknowledged").explained("messages that workers of a shared subscription have and have not acknowledged. Only the leader shows it"),
    gauge("galley_subscription_oldest_age_seconds", &["subscription"], "seconds", "Age of the oldest message that the subscription was not handed yet, 0 if there is none").explained("age of the oldest message that a shared subscription was not handed yet, 0 if there is none. Only the leader shows it"),
];
