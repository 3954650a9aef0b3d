// The client with a real gateway: jobs, workflows, cron and queues.
import assert from "node:assert/strict";
import { test } from "node:test";
import { eventually, galley, uniqueName, withWorker } from "./kit.mjs";

const { chain, Client, forEach, GalleyError, group, JobFailed, Worker } = galley;
const client = new Client();

const withCode = (code) => (error) => error instanceof GalleyError && error.code === code;

test("a job is enqueued, cancelled and retried", async () => {
  const queue = uniqueName();
  const options = { queue, priority: 5, meta: { tenant: 7 }, tags: ["a"] };
  const job = await client.enqueue("email.send", ["ada@example.org"], options);
  assert.deepEqual([job.state, job.args, job.priority, job.meta], ["available", ["ada@example.org"], 5, { tenant: 7 }]);
  assert.equal((await client.cancel(job)).state, "cancelled");
  await assert.rejects(client.cancel(job.id), withCode("conflict"));
  assert.equal((await client.retry(job)).state, "available");
  assert.equal((await client.get(job)).state, "available");
  assert.equal((await client.getQueue(queue)).available, 1);
});

test("a wait ends with the result, and a failed job throws", async () => {
  const queue = uniqueName();
  const worker = new Worker({ queues: [queue] }).job("double", (ctx, n) => n * 2);
  const doomed = await client.enqueue("doomed", [], { queue, retry: { max_attempts: 1 } });
  const done = await client.enqueue("double", [21], { queue });
  await assert.rejects(client.result(done, { waitMs: 0 }), /is available after 0 ms/);
  await withWorker(worker, async () => {
    assert.equal(await client.result(done), 42);
    assert.equal(await client.wait("double", [4], { queue }), 8);
    await assert.rejects(client.result(doomed), (error) => error instanceof JobFailed && error.job.state === "discarded");
  });
});

test("many jobs are stored together or not at all", async () => {
  const queue = uniqueName();
  const made = await client.enqueueMany([
    client.job("a", [1], { queue }),
    client.job("b", [], { queue, priority: 3, meta: { x: 1 } }),
  ]);
  assert.deepEqual(made.map(({ type, priority, meta }) => [type, priority, meta]), [["a", 0, undefined], ["b", 3, { x: 1 }]]);
  const bad = [client.job("a", [], { queue }), client.job("No Type", [], { queue })];
  await assert.rejects(client.enqueueMany(bad), withCode("invalid_request"));
  assert.equal((await client.getQueue(queue)).available, 2);
});

test("an idempotency key makes one job", async () => {
  const queue = uniqueName();
  const options = { queue, idempotencyKey: queue };
  const first = await client.enqueue("a", [], options);
  assert.equal((await client.enqueue("a", [], options)).id, first.id);
  await assert.rejects(client.enqueue("a", [1], options), withCode("idempotency_conflict"));
  assert.equal((await client.getQueue(queue)).available, 1);
});

test("unique jobs are told apart", async () => {
  const queue = uniqueName();
  const unique = { keys: ["args"] };
  const older = await client.enqueue("a", [1], { queue, unique });
  await assert.rejects(client.enqueue("a", [1], { queue, unique }), withCode("duplicate"));
  const same = await client.enqueue("a", [1], { queue, unique: { ...unique, on_conflict: "ignore" } });
  assert.equal(same.id, older.id);
  assert.notEqual((await client.enqueue("a", [2], { queue, unique })).id, older.id);
});

test("a job that waits is put off", async () => {
  const queue = uniqueName();
  const unique = { keys: ["args"], args_keys: ["0"], on_conflict: "debounce", max_wait: "PT2H" };
  const first = await client.enqueue("a", [1, "old"], { queue, scheduled_at: "+PT1H", unique });
  const second = await client.enqueue("a", [1, "new"], { queue, scheduled_at: "+PT1H", unique });
  assert.deepEqual([second.id, second.args], [first.id, [1, "new"]]);
});

test("a queue is limited, paused and resumed; a pending job is activated", async () => {
  const queue = uniqueName();
  const { limits } = await client.limitQueue(queue, { concurrency: 2, rate: { limit: 5, period: "PT1S", burst: 1 } });
  assert.deepEqual([limits.concurrency, limits.rate.limit, limits.rate.burst], [2, 5, 1]);
  await client.pauseQueue(queue);
  assert.equal((await client.getQueue(queue)).paused, true);
  await client.resumeQueue(queue);
  assert.equal((await client.getQueue(queue)).paused, false);
  const job = await client.enqueue("a", [], { queue, pending: true });
  assert.equal(job.state, "pending");
  assert.equal((await client.activate(job)).state, "available");
});

test("workflows hand results on", async () => {
  const queue = uniqueName();
  const worker = new Worker({ queues: [queue] })
    .job("make", (ctx, n) => n)
    .job("sum", (ctx) => ctx.parentResults.reduce((a, b) => a + b, 0));
  const make = (n) => client.job("make", [n], { queue });
  const sum = client.job("sum", [], { queue });
  const completed = (workflow) =>
    eventually(async () => {
      const found = await client.getWorkflow(workflow);
      return found.state === "completed" ? found : undefined;
    });
  await withWorker(worker, async () => {
    const dag = await completed(await client.dag({ a: make(3), b: make(4), sum }, { sum: ["a", "b"] }));
    assert.equal(await client.result(dag.members.at(-1).id), 7);
    await assert.rejects(async () => client.dag({ sum }, { summ: [] }), /dependsOn of dag\(\)/);
    const totals = await completed(await client.chain([make(3), sum], { name: "totals" }));
    assert.equal(await client.result(totals.members.at(-1).id), 3);
    assert.equal((await completed(await client.group([make(1), make(2)]))).jobs_completed, 2);
    const batch = await completed(await client.batch([make(1), make(2)], { onSuccess: sum }));
    const callback = await eventually(async () => (await client.getWorkflow(batch)).callbacks.find(({ id }) => id)?.id);
    assert.equal(await client.result(callback), 3);
    const each = forEach(chain([client.job("make", [], { queue })]), "a");
    const steps = { a: make([5, 6]), each, inner: group([make(1), make(2)], { name: "inner" }) };
    const nested = await completed(await client.dag(steps, { inner: ["each"] }));
    assert.deepEqual(nested.members.map(({ result }) => result), [[5, 6], [5, 6], [1, 2]]);
    const inner = await client.getWorkflow(nested.members[2].id);
    assert.deepEqual([inner.parent_workflow_id, inner.parent_workflow_index], [nested.id, 2]);
    const listed = await completed(await client.chain([make([1]), client.each("make", [], { queue })]));
    assert.deepEqual([listed.members[1].workflow, listed.members[1].result], [true, [1]]);
  });
  assert.equal((await client.cancelWorkflow(await client.group([make(1)]))).state, "cancelled");
});

test("cron entries are set, triggered and deleted", async () => {
  const [name, queue] = [uniqueName(), uniqueName()];
  const job = client.job("report", [1], { queue });
  const made = await client.setCron(name, "0 9 * * MON-FRI", job, { timezone: "Europe/Berlin" });
  assert.deepEqual([made.expression, made.timezone], ["0 9 * * MON-FRI", "Europe/Berlin"]);
  await client.setCron(name, "@daily", job, { overlapPolicy: "allow" });
  assert.equal((await client.getCron(name)).overlap_policy, "allow");
  assert.ok((await client.crons()).some((entry) => entry.name === name));
  assert.equal((await client.disableCron(name)).enabled, false);
  assert.equal((await client.enableCron(name)).enabled, true);
  assert.equal((await client.triggerCron(name)).queue, queue);
  await client.deleteCron(name);
  await assert.rejects(client.getCron(name), (error) => error instanceof GalleyError && error.status === 404);
});

test("progress, logs and events of a job are seen", async () => {
  const queue = uniqueName();
  let finish;
  const seen = new Promise((resolve) => (finish = resolve));
  const worker = new Worker({ queues: [queue] }).job("a", async (ctx) => {
    await ctx.progress(0.5, "half");
    await ctx.log("a line", "warn");
    await seen;
  });
  await withWorker(worker, async () => {
    const job = await client.enqueue("a", [], { queue });
    const types = [];
    for await (const event of client.events(job)) {
      types.push(event.type);
      if (event.type !== "job.progress") continue;
      assert.equal(event.data.progress, 0.5);
      assert.deepEqual((await client.get(job)).progress_data, { message: "half" });
      finish();
    }
    assert.ok(types.includes("job.progress"));
    assert.equal(types.at(-1), "job.completed");
    assert.deepEqual((await client.logs(job)).map(({ message, level }) => [message, level]), [["a line", "warn"]]);
  });
});
