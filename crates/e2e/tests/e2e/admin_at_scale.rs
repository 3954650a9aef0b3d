//! A million ended jobs: a list costs what it costs with few, a search finds a rare error in slices, and what failed is
//! retried until it has succeeded.

use serde_json::{Value, json};
use testkit::{eventually, redis};

use crate::kit::GalleyKit;

pub(crate) const QUEUES: usize = 10;
const COMPLETED: usize = 99_000;
pub(crate) const DISCARDED: usize = 1000;
/// One discarded job in this number has the error that is looked for.
pub(crate) const TIMED_OUT_EVERY: usize = 20;

/// Stores ended jobs of one queue as the scripts do that end jobs: results, the index of completed jobs, the list of discarded ones.
const FILL: &str = r#"
local queue, first, count, state, every = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])
local tag = tonumber(redis.call('ZSCORE', 'galley:queues', queue))
local prefix = 'galley:{' .. queue .. '}:'
local time = redis.call('TIME')
local now = time[1] * 1000
local ids = {}
for number = first, first + count - 1 do
  local ms = now - 3600000 + math.floor(number / 10)
  local rest = (number % 4) * 2 ^ 46 + tag * 2 ^ 30 + 255 * 2 ^ 22 + number
  local id = string.format('%08x-%04x-7000-%04x-%012x', math.floor(ms / 65536), ms % 65536, 0x8000 + number % 16384, rest)
  local text
  if state == 'completed' then
    text = '-\nc test.echo 0 1 3 - - ' .. ms .. ' ' .. ms .. ' r\n{"number":' .. number .. '}'
    ids[#ids + 1] = id
  else
    local message = number % every == 0 and 'upstream Timed Out' or 'no such user'
    text = '-\n{"id":"' .. id .. '","state":"discarded","queue":"' .. queue .. '","priority":0,"attempt":1,"max_attempts":1,' ..
      '"created_at":"2026-01-01T00:00:00.000Z","discarded_at":"2026-01-01T00:00:01.000Z","errors":[{"code":"handler_error","type":"x",' ..
      '"message":"' .. message .. '","attempt":1,"occurred_at":"2026-01-01T00:00:01.000Z"}],"type":"test.echo","args":[' .. number .. ']}'
    redis.call('ZADD', prefix .. 'discarded', ms, id)
  end
  redis.call('SET', prefix .. 'r:' .. id, text, 'PX', 86400000)
  if #ids == 100 then
    redis.call('XADD', prefix .. 'completed_index', string.format('%.0f', number), string.format('%.0f', ms), table.concat(ids, ' '))
    ids = {}
  end
end
redis.call('HINCRBY', prefix .. 'stats', state, count)
"#;

pub(crate) async fn fill(kit: &GalleyKit) {
    let script = redis::Script::new(FILL);
    let mut connection = kit.redis.connection().await;
    for number in 0..QUEUES {
        let name = format!("q{number}");
        // Its place on the list of queues has the tag that the ids of its jobs carry
        assert_eq!(kit.get(&format!("/ojs/v1/queues/{name}?create=true")).await.status(), 200);
        let runs = (0..COMPLETED).step_by(9000).map(|first| (first + 1, 9000, "completed"));
        for (first, count, state) in runs.chain([(1_000_000, DISCARDED, "discarded")]) {
            let mut call = script.prepare_invoke();
            call.arg(&name).arg(first).arg(count).arg(state).arg(TIMED_OUT_EVERY);
            let _: () = call.invoke_async(&mut connection).await.expect("redis runs");
        }
    }
}

async fn get(kit: &GalleyKit, query: &str) -> Value {
    let response = kit.get(&format!("/ojs/v1/admin/jobs?{query}")).await;
    assert_eq!(response.status(), 200, "{query}");
    response.json().await.expect("JSON")
}

async fn bulk_retry(kit: &GalleyKit, more: Value) -> Value {
    let mut body = json!({ "filter": { "state": "discarded", "error": "upstream timed out" } });
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    let response = kit.post("/ojs/v1/admin/jobs/bulk/retry", &body).await;
    assert_eq!(response.status(), 200);
    response.json().await.expect("JSON")
}

/// Commands that Redis has run, but those of the processes that only look after it.
async fn commands_run(kit: &GalleyKit) -> u64 {
    let info: redis::InfoDict =
        redis::cmd("INFO").arg("stats").query_async(&mut kit.redis.connection().await).await.expect("redis runs");
    info.get("total_commands_processed").expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_million_ended_jobs_are_listed_searched_and_what_failed_is_retried_and_succeeds() {
    let kit = GalleyKit::start().await;
    fill(&kit).await;
    let failed = QUEUES * DISCARDED / TIMED_OUT_EVERY;

    // A list looks at what it shows and at the first candidates of each place, whatever lies behind
    let before = commands_run(&kit).await;
    let list = get(&kit, "limit=50").await;
    let commands = commands_run(&kit).await - before;
    assert_eq!(list["items"].as_array().map(Vec::len), Some(50));
    assert!(list["examined"].as_u64().is_some_and(|examined| examined <= 100), "{}", list["examined"]);
    // About seventy for each queue, those in scripts and of maintenance included
    assert!(commands < 1500, "{commands} commands for a list");
    let deep = get(&kit, &format!("limit=50&after={}", list["next"].as_str().expect("more"))).await;
    assert!(deep["examined"].as_u64().is_some_and(|examined| examined <= 100));
    assert_eq!(get(&kit, "per_page=1").await["pagination"]["total"], QUEUES * (COMPLETED + DISCARDED));

    // A rare condition over everything stops early, and goes on from there
    let first = get(&kit, "q=error:nowhere&limit=10").await;
    assert_eq!((&first["complete"], &first["items"]), (&json!(false), &json!([])));
    assert!(first["examined"].as_u64().is_some_and(|examined| (20_000..30_000).contains(&examined)));
    let second = get(&kit, &format!("q=error:nowhere&limit=10&after={}", first["next"].as_str().expect("more"))).await;
    assert_ne!(second["next"], first["next"]);

    // Something failed: which, how many, again
    let found = get(&kit, "q=state:discarded%20error:%22timed%20out%22&limit=1000").await;
    assert_eq!(found["items"].as_array().map(Vec::len), Some(failed));
    assert_eq!((&found["complete"], &found["next"]), (&json!(true), &json!(null)));
    let counted = bulk_retry(&kit, json!({ "dry_run": true })).await;
    assert_eq!((&counted["matched"], &counted["succeeded"]), (&json!(failed), &json!(0)));
    let bounded = bulk_retry(&kit, json!({ "confirm": true, "limit": 200, "max_matched": failed })).await;
    assert_eq!((&bounded["succeeded"], bounded["next"].is_string()), (&json!(200), true));
    let rest = bulk_retry(&kit, json!({ "confirm": true })).await;
    assert_eq!((&rest["succeeded"], &rest["next"]), (&json!(failed - 200), &json!(null)));
    let queues: Vec<String> = (0..QUEUES).map(|number| format!("q{number}")).collect();
    let _worker = kit.start_worker(&[("GALLEY__QUEUE_WORKER__QUEUES", queues.join(",").as_str())]).await;
    eventually("all that failed have succeeded", || async {
        let done = get(&kit, "q=state:completed%20error:%22timed%20out%22%20ended_since:10m&limit=1000").await;
        (done["items"].as_array().map(Vec::len) == Some(failed)).then_some(())
    })
    .await;
    assert_eq!(bulk_retry(&kit, json!({ "dry_run": true })).await["matched"], 0);
}
