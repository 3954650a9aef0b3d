//! Every key is documented, and every function spells a documented one.

use std::collections::BTreeSet;

use super::*;
use common::name::Priority;

#[test]
fn every_key_is_in_the_document_and_the_document_has_no_other() {
    let document = include_str!("../../../../docs/redis.md");
    let documented: BTreeSet<&str> = document
        .lines()
        .filter_map(|line| line.strip_prefix("| `galley:"))
        .filter_map(|rest| rest.split('`').next())
        .collect();
    let spelled: BTreeSet<&str> = KEY_PATTERNS.iter().filter_map(|pattern| pattern.strip_prefix("galley:")).collect();
    assert_eq!(documented, spelled);
}

#[test]
fn on_a_cluster_topics_with_a_tag_are_sharded() {
    let (queue, channel) = ("q".parse().expect("a name"), "c".parse().expect("a name"));
    let one_server = TopicNames::of_database(0);
    let cluster = one_server.clone().on_cluster(true);
    let finished = cluster.finished_jobs(&queue);
    for topic in [&finished, &cluster.output(&queue), &cluster.live_messages(&channel), &cluster.presence(&channel)] {
        assert!(cluster.is_sharded(topic) && !one_server.is_sharded(topic), "{topic}");
    }
    for topic in [&cluster.notifications(), &cluster.new_channels(), "{c}", "c", "galley:5:{q}:finished"] {
        assert!(!cluster.is_sharded(topic), "{topic}");
    }
    assert_eq!(cluster.for_script(finished.clone()), format!("S{finished}"));
    assert_eq!(one_server.for_script(finished.clone()), finished);
}

#[test]
#[expect(clippy::too_many_lines, reason = "one table: each function beside its pattern")]
fn every_function_spells_one_of_the_patterns() {
    let queue = "q".parse().expect("a name");
    let id: JobId = "019539a4-b68c-7def-8000-1a2b3c4d5e6f".parse().expect("an id");
    let (keys, topics) = (QueueKeys::new(&queue), TopicNames::of_database(5));
    let worker = "pull:w".parse().expect("a worker");
    let channel = "c".parse().expect("a name");
    let key = "k".parse().expect("a key");
    let subscription = "n".parse().expect("a name");
    let spelled = [
        keys.priorities(),
        keys.stream(Priority::default()),
        keys.active(),
        keys.leases(),
        keys.due(),
        keys.record(&id),
        keys.result(&id),
        keys.log(&id),
        keys.checkpoint(&id),
        keys.output(&id),
        keys.signals(&id),
        keys.completed_batch(Priority::default(), common::id::EntryId { milliseconds: 1, sequence: 0 }, 1),
        keys.dead_letters(),
        keys.discarded(),
        keys.cancelled(),
        keys.completed_index(),
        keys.stats(),
        keys.timers(),
        keys.pending(),
        keys.control(),
        keys.key_partitions(),
        keys.uniqueness("f"),
        keys.waiting_keys(),
        keys.key_queue(&key),
        keys.admitted(&key),
        keys.key_limit(&key),
        topics.finished_jobs(&queue),
        topics.output(&queue),
        keys.starts(),
        keys.key_starts(&key),
        CLOCK.to_owned(),
        idempotency("f"),
        client_job_id(&id),
        workflow(&id.to_string().parse().expect("an id")),
        WORKFLOWS.to_owned(),
        list_bridge("l"),
        bridge_batches("l"),
        keys.bridged("l"),
        channel_history(&channel),
        channel_state(&channel),
        published_message(&channel, 7, 0),
        topics.live_messages(&channel),
        channel_members(&channel),
        member_gateways(&channel),
        topics.presence(&channel),
        subscription_cursor(&channel, &subscription),
        SUBSCRIPTIONS.to_owned(),
        subscription_counters(&subscription),
        subscription_workers(&subscription),
        subscription_attempts(&subscription, "failed"),
        rule_attempts("a.*", "failed"),
        PUSH_RULES.to_owned(),
        broadcast_checkpoint(&subscription, &"i".parse().expect("an instance")),
        topics.probe(&uuid::Uuid::nil()),
        topics.process_questions(),
        topics.process_answers(7),
        READER_GATEWAYS.to_owned(),
        gateway_readers(&uuid::Uuid::nil()),
        CHANNELS.to_owned(),
        EPOCH.to_owned(),
        epoch_of_slot(0),
        QUEUES.to_owned(),
        API_KEYS.to_owned(),
        API_KEY_USES.to_owned(),
        CRON_ENTRIES.to_owned(),
        CRON_NEXT.to_owned(),
        EVENTS.to_owned(),
        events(1).into_owned(),
        WORKERS.to_owned(),
        SILENT_WORKERS.to_owned(),
        session("f"),
        MAINTENANCE_MODE.to_owned(),
        super::worker_report(&worker),
        worker_directive(&worker),
        AUDIT.to_owned(),
        key_usage("u", "x"),
        LEADER.to_owned(),
        topics.notifications(),
        topics.new_channels(),
        WRITE_CHECK.to_owned(),
        HEALTH_CHECK.to_owned(),
        confirmation(&uuid::Uuid::nil(), None),
        confirmation(&uuid::Uuid::nil(), Some(0)),
        LOG_LEVEL.to_owned(),
        LEADER_DETAILS.to_owned(),
        topics.log_level(),
        ENCRYPTION_KEYS.to_owned(),
        STATISTICS_FLUSHES.to_owned(),
        STATISTICS_QUEUES.to_owned(),
        statistics_history("q"),
    ];
    let filled: BTreeSet<String> = KEY_PATTERNS
        .iter()
        .map(|pattern| {
            pattern
                .replace("<queue>", "q")
                .replace("<priority>", "0")
                .replace("<id>", &id.to_string())
                .replace("<series>", "q")
                .replace("<rule>", "a.*")
                .replace("<outcome>", "failed")
                .replace("<fingerprint>", "f")
                .replace("<entry>:<n>", "1-0:1")
                .replace("<seed>-<n>", "00000000000000000000000000000007-0")
                .replace("<kind>:<access>", "u:x")
                .replace("<key>", "k")
                .replace("<list>", "l")
                .replace("<worker>", "pull:w")
                .replace("<channel>", "c")
                .replace("<name>", "n")
                .replace("<instance>", "i")
                .replace("<number>", "7")
                .replace("<gateway>", &"0".repeat(32))
                .replace("<process>", &"0".repeat(32))
                .replace("{<tag>}:events", &events(1)["galley:".len()..])
                .replace("<tag>", &crate::slots::tag_of_slot(0).to_string())
                .replace("<db>", "5")
        })
        .collect();
    assert_eq!(filled, spelled.into_iter().collect());
}
