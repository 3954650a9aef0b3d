//! The metrics of Redis and the connections to it.

use super::{MetricSpec, counter, gauge, histogram};

pub(super) const REDIS: &[MetricSpec] = &[
    counter("galley_redis_commands_total", &[], "commands", "Commands that this process sent to Redis, each of a pipeline counted"),
    histogram("galley_redis_command_seconds", &[], "seconds", "Round trips to Redis: a command, a script or a pipeline").explained("round trips to Redis: a command, a script or a pipeline, without reads that wait for something"),
    histogram("galley_script_seconds", &["script"], "seconds", "Round trips of scripts").explained("round trips of scripts, by the file of the script in `crates/store/src`"),
    counter("galley_redis_errors_total", &["kind"], "errors", "Errors of Redis and of connections to it").explained("errors of Redis and of connections to it. `kind`: `broken` (a connection), `wrong_server` (it takes no writes), `passing` (busy, cannot save), `full`, `refused`"),
    counter("galley_redis_reconnects_total", &[], "connections", "Times that the shared connection to Redis was opened again"),
    counter("galley_redis_connect_failures_total", &[], "attempts", "Failed attempts to connect to Redis"),
    gauge("galley_redis_pool_connections", &["state"], "connections", "Connections for slow work, such as lists: idle or in use").explained("connections for slow work, such as lists: `idle` or `used`. Limit: `redis.pool_size`"),
    gauge("galley_redis_pool_waiters", &[], "callers", "Callers that wait for one of these connections"),
    gauge("galley_redis_memory_used_bytes", &[], "bytes", "Memory that Redis uses, as this process last read it").explained("memory that Redis uses, as this process last read it: every 5 s. All processes of a Redis show about the same: take the `max`"),
    gauge("galley_redis_memory_max_bytes", &[], "bytes", "maxmemory of Redis, 0 if it has none"),
    gauge("galley_memory_used_bytes", &["kind"], "bytes", "Memory of Redis that a kind of data takes, about").explained("memory of Redis that a kind of data takes, about. Not measured while Redis is less than 10 % full"),
    gauge("galley_memory_budget_bytes", &["kind"], "bytes", "Memory of Redis that a kind of data may take"),
    counter("galley_memory_trimmed_total", &["kind"], "items", "Dead letters and entries of events that were dropped to keep their budget"),
    counter("galley_results_dropped_total", &[], "results", "Results that were not stored because Redis is nearly full"),
    counter("galley_jobs_postponed_total", &["queue"], "attempts", "Failed attempts that were not recorded because Redis had no room for records").explained("failed attempts that were not recorded because Redis had no room for records: the job runs again later"),
    gauge("galley_redis_durability_level", &[], "", "What an acknowledged write survives: 0 nothing (no append-only file), 1 all but about two seconds (everysec), 2 a crash (always)").explained("what an acknowledged write survives: 0 nothing (no append-only file), 1 all but about two seconds (`everysec`), 2 a crash (`always`). Missing if the user of `redis.url` may not ask. Only the leader shows it"),
    gauge("galley_redis_can_save", &["file"], "", "Whether the last attempt of Redis to save its data worked: 1 or 0").explained("whether the last attempt of Redis to save its data worked: 1 or 0. `file`: `rdb`, `aof`. Only the leader shows it"),
    gauge("galley_redis_clients", &[], "connections", "Clients that are connected to Redis").explained("clients that are connected to Redis, those of other programs too. Only the leader shows it"),
    gauge("galley_redis_max_clients", &[], "connections", "Clients that Redis admits (maxclients)").explained("clients that Redis admits (`maxclients`). Only the leader shows it"),
    counter("galley_confirmations_total", &["outcome"], "requests", "Requests whose writes had to reach replicas or the disk, by whether they did in time").explained("requests whose writes had to reach what `durability` asks for. `outcome`: `confirmed`, `unconfirmed` (answered with 202)"),
    histogram("galley_confirmation_seconds", &[], "seconds", "How long requests waited until their writes had reached replicas or the disk").explained("how long such requests waited for that"),
    counter("galley_redis_clock_steps_total", &[], "steps", "How often this process saw Redis's clock set"),
    histogram("galley_probe_seconds", &[], "seconds", "How long a message takes that a process sends itself over pub/sub; readers wait as long"),
    counter("galley_probes_lost_total", &[], "messages", "Messages that a process sent itself over pub/sub and that did not come back").explained("such messages that did not come back. The process then subscribes again"),
];
