//! Everything that is stored, as sentences: those that the model expects, and those that are found in Redis.
//!
//! Whatever is in Redis and means something becomes a sentence, so a job in two places, a record without a place or a lease
//! without an attempt is a sentence too many.

use std::collections::BTreeMap;

use common::{
    id::{EntryId, JobId},
    name::Priority,
};
use model::job::JobState;

use super::state::{ModelJob, ModelState};
use crate::kit::queue;

/// All keys of the queue. Rows are the key, its type and what it holds; entries are three texts: id, marker, consumer.
pub(super) const DUMP_SCRIPT: &str = r"
local rows = {}
for _, key in ipairs(redis.call('KEYS', 'galley:{default}:*')) do
 if key ~= 'galley:{default}:completed_index' then
  local kind = redis.call('TYPE', key).ok
  local held
  if kind == 'string' then held = { redis.call('GETRANGE', key, 0, 150) }
  elseif kind == 'hash' then held = redis.call('HGETALL', key)
  elseif kind == 'set' then held = redis.call('SMEMBERS', key)
  elseif kind == 'zset' then held = redis.call('ZRANGE', key, 0, -1)
  else
    held = {}
    local consumers = {}
    for _, item in ipairs(redis.call('XPENDING', key, 'workers', '-', '+', 1000)) do consumers[item[1]] = item[2] end
    for _, item in ipairs(redis.call('XRANGE', key, '-', '+')) do
      held[#held + 1] = item[1]
      held[#held + 1] = item[2][2]
      held[#held + 1] = consumers[item[1]] or ''
      consumers[item[1]] = nil
    end
    for entry in pairs(consumers) do held[#held + 1] = entry; held[#held + 1] = 'deleted'; held[#held + 1] = '' end
  end
  rows[#rows + 1] = { key, kind, unpack(held) }
 end
end
return rows";

/// What should be there.
pub(super) fn expected_facts(world: &ModelState) -> Vec<String> {
    let mut facts = Vec::new();
    let ids = |indexes: &mut dyn Iterator<Item = usize>| -> Vec<String> {
        indexes
            .map(|index| format!("{}{}", world.jobs[index].id, marker(world.jobs[index].state == JobState::Active)))
            .collect()
    };
    for (priority, entries) in world.streams.iter().filter(|(_, entries)| !entries.is_empty()) {
        facts.push(format!("stream {priority}: {}", ids(&mut entries.iter().copied()).join(" ")));
    }
    for (key, jobs) in world.key_queues.iter().filter(|(_, jobs)| !jobs.is_empty()) {
        facts.push(format!("key queue {key}: {}", ids(&mut jobs.iter().copied()).join(" ")));
        facts.push(format!("waiting key {key}"));
    }
    for (key, jobs) in world.admitted.iter().filter(|(_, jobs)| !jobs.is_empty()) {
        let mut ids: Vec<String> = jobs.iter().map(|index| world.jobs[*index].id.to_string()).collect();
        ids.sort();
        facts.push(format!("admitted {key}: {}", ids.join(" ")));
    }
    // Of a fingerprint the test knows only who holds it
    facts.extend(world.unique_holders.values().map(|index| format!("unique: {}", world.jobs[*index].id)));
    let key_waiting: usize = world.key_queues.values().map(Vec::len).sum();
    facts.extend((key_waiting > 0).then(|| format!("key_waiting {key_waiting}")));
    facts.extend(world.is_paused.then(|| "paused".to_owned()));
    for (index, job) in world.jobs.iter().enumerate().filter(|(_, job)| !job.is_deleted) {
        let is_key_waiting =
            job.spec.limit.is_some_and(|(key, _)| world.key_queues.get(key).is_some_and(|l| l.contains(&index)));
        add_job_facts(job, is_key_waiting, &mut facts);
    }
    facts.sort();
    facts
}

fn marker(is_active: bool) -> &'static str {
    if is_active { "*" } else { "" }
}

fn add_job_facts(job: &ModelJob, is_key_waiting: bool, facts: &mut Vec<String>) {
    let (id, state) = (job.id, job.state);
    match state {
        JobState::Scheduled | JobState::Retryable => facts.push(format!("due {id}")),
        JobState::Pending => facts.push(format!("pending {id}")),
        JobState::Available | JobState::Active => {}
        JobState::Completed | JobState::Cancelled | JobState::Discarded => facts.push(format!("result {id} {state}")),
    }
    if job.has_record {
        let state = match state {
            JobState::Available | JobState::Active => if is_key_waiting { "key_waiting" } else { "queued" }.to_owned(),
            parked => parked.to_string(),
        };
        facts.push(format!("record {id} {state}"));
    }
    if job.is_dead_letter {
        facts.push(format!("dead {id}"));
    }
    if job.has_lease {
        facts.push(format!("attempt {id}"));
        facts.push(format!("lease {id}"));
    }
    if job.spec.deadline && !state.is_terminal() {
        facts.push(format!("timer expire {id}"));
    }
}

/// What is there.
pub(super) fn stored_facts(rows: &[Vec<String>]) -> Vec<String> {
    let mut facts = Vec::new();
    let mut entries: BTreeMap<String, String> = BTreeMap::new();
    for row in rows.iter().filter(|row| row[1] == "stream") {
        let priority = row[0].rsplit(':').next().unwrap_or_default();
        let mut ids = Vec::new();
        for entry in row[2..].chunks(3) {
            let id = job_id(&entry[0], &entry[1], priority);
            entries.insert(format!("{priority}:{}", entry[0]), id.clone());
            ids.push(format!("{id}{}", marker(!entry[2].is_empty())));
        }
        if !ids.is_empty() {
            facts.push(format!("stream {priority}: {}", ids.join(" ")));
        }
    }
    for row in rows.iter().filter(|row| row[1] != "stream") {
        let name = row[0].strip_prefix("galley:{default}:").unwrap_or(&row[0]);
        add_key_facts(name, &row[2..], &entries, &mut facts);
    }
    facts.sort();
    facts
}

fn job_id(entry: &str, marker: &str, priority: &str) -> String {
    if marker.len() == 36 || marker == "deleted" {
        return marker.to_owned();
    }
    let entry: EntryId = entry.parse().expect("an entry");
    let priority = Priority::try_from(priority.parse::<i64>().expect("a number")).expect("a priority");
    let salt = u32::from_str_radix(marker, 16).expect("a salt");
    JobId::from_entry(entry, &queue(), priority, salt).expect("an id").to_string()
}

fn add_key_facts(name: &str, values: &[String], entries: &BTreeMap<String, String>, facts: &mut Vec<String>) {
    let (kind, rest) = name.split_once(':').unwrap_or((name, ""));
    let fields: BTreeMap<&str, &str> =
        values.chunks_exact(2).map(|pair| (pair[0].as_str(), pair[1].as_str())).collect();
    let field = |name: &str| fields.get(name).copied().unwrap_or_default();
    let job_of = |member: &str| entries.get(member).map_or("none", String::as_str).to_owned();
    match kind {
        "due" | "pending" | "dead" => facts.extend(values.iter().map(|id| format!("{kind} {id}"))),
        // Who ended lately, for people: it is no state of a job
        "discarded" | "cancelled" => {}
        "key_queue" => facts.push(format!("key queue {rest}: {}", values.join(" "))),
        "waiting_keys" => facts.extend(values.iter().map(|key| format!("waiting key {key}"))),
        "admitted" => {
            let mut ids = values.to_vec();
            ids.sort();
            facts.push(format!("admitted {rest}: {}", ids.join(" ")));
        }
        // Order of arrival, rates: each job brings the limit that it is admitted by
        "limit" => {}
        "unique" => facts.push(format!("unique: {}", values[0])),
        "stats" => {
            facts.extend(
                Some(field("key_waiting")).filter(|n| !["", "0"].contains(n)).map(|n| format!("key_waiting {n}")),
            );
        }
        "control" => facts.extend(fields.contains_key("paused").then(|| "paused".to_owned())),
        "j" => {
            let elsewhere = field("s") == "queued" && job_of(&format!("{}:{}", field("p"), field("x"))) != rest;
            facts.push(format!("record {rest} {}{}", field("s"), if elsewhere { " elsewhere" } else { "" }));
        }
        "r" => {
            let state = values[0].split("\"state\":\"").nth(1).and_then(|text| text.split('"').next());
            // A plain success is stored without its envelope
            let compact = values[0].contains("\nc ").then_some("completed");
            facts.push(format!("result {rest} {}", state.or(compact).unwrap_or("?")));
        }
        "active" => facts.extend(fields.keys().map(|member| format!("attempt {}", job_of(member)))),
        "leases" => facts.extend(values.iter().map(|member| format!("lease {}", job_of(member)))),
        "timers" => {
            // When the leader checks a key again is a matter of time
            facts
                .extend(values.iter().filter(|timer| !timer.starts_with("key ")).map(|timer| format!("timer {timer}")));
        }
        "priorities" => {}
        other => facts.push(format!("{other} is no key that is known")),
    }
}
