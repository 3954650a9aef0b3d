// Handlers that take several jobs in one call.
import assert from "node:assert/strict";
import { test } from "node:test";
import { eventually, galley, uniqueName, withWorker } from "./kit.mjs";

const { Client, JobFailed, NoRetry, Worker } = galley;
const client = new Client();
/** Longer than any test: a call that waits for it has failed. */
const never = 3_600_000;
const once = { retry: { max_attempts: 1 } };

test("a call has as many jobs as are asked for, and each gets its own result", async () => {
  const [queue, calls] = [uniqueName(), []];
  // Places are left: it is the number of jobs that begins a call
  const worker = new Worker({ queues: [queue], concurrency: 8 }).jobs("sum", { count: 3, delayMs: never }, async (jobs) => {
    calls.push(jobs.length);
    return jobs.map(({ args }) => args[0] + args[1]);
  });
  await withWorker(worker, async () => {
    const jobs = await client.enqueueMany([0, 1, 2, 3, 4, 5].map((number) => client.job("sum", [number, 10], { queue })));
    assert.deepEqual(await Promise.all(jobs.map((job) => client.result(job))), [10, 11, 12, 13, 14, 15]);
  });
  assert.deepEqual(calls, [3, 3]);
});

test("a call begins with fewer jobs when the delay is over, and need not give results", async () => {
  const [queue, sizes] = [uniqueName(), []];
  const worker = new Worker({ queues: [queue], concurrency: 8 }).jobs("few", { count: 8, delayMs: 100 }, (jobs) => {
    sizes.push(jobs.length);
  });
  await withWorker(worker, async () => assert.equal(await client.wait("few", [], { queue }), undefined));
  assert.deepEqual(sizes, [1]);
});

test("what is thrown fails all jobs, and what is given fails one", async () => {
  const queue = uniqueName();
  const worker = new Worker({ queues: [queue], concurrency: 8 })
    .jobs("mixed", { count: 3, delayMs: never }, (jobs) =>
      jobs.map(({ args: [kind] }) => ({ good: "done", bad: new Error("not this one"), worse: new NoRetry("never") })[kind]),
    )
    .jobs("broken", { count: 2, delayMs: never }, () => {
      throw new Error("all of them");
    })
    .jobs("short", { count: 2, delayMs: never }, () => [1]);
  const failed = (text) => (error) => error instanceof JobFailed && error.message.includes(text);
  await withWorker(worker, async () => {
    const enqueue = (type, ...args) => client.enqueue(type, args, { queue, ...once });
    const [good, bad, worse] = await Promise.all(["good", "bad", "worse"].map((kind) => enqueue("mixed", kind)));
    assert.equal(await client.result(good), "done");
    await assert.rejects(client.result(bad), failed("not this one"));
    await assert.rejects(client.result(worse), failed("never"));
    for (const job of await Promise.all([enqueue("broken"), enqueue("broken")])) {
      await assert.rejects(client.result(job), failed("all of them"));
    }
    for (const job of await Promise.all([enqueue("short"), enqueue("short")])) {
      await assert.rejects(client.result(job), failed("one result for each: 2, not 1 results"));
    }
  });
});

test("a job that is cancelled while it waits for others is not in the call", async () => {
  const [queue, calls, running] = [uniqueName(), [], []];
  const worker = new Worker({ queues: [queue], concurrency: 2, leaseMs: 1000 })
    .use((ctx, next) => {
      running.push(ctx);
      return next();
    })
    .jobs("pairs", { count: 2, delayMs: never }, (jobs) => void calls.push(jobs.map(({ id }) => id).sort()));
  await withWorker(worker, async () => {
    const alone = await client.enqueue("pairs", [], { queue });
    const attempt = await eventually(() => running[0]);
    await client.cancel(alone);
    await eventually(() => (attempt.signal.aborted ? true : undefined));
    const both = await Promise.all([0, 1].map(() => client.enqueue("pairs", [], { queue })));
    for (const job of both) await client.result(job);
    assert.deepEqual(calls, [both.map(({ id }) => id).sort()]);
  });
});

test("a worker that stops calls with what it has", async () => {
  const [queue, running] = [uniqueName(), []];
  const worker = new Worker({ queues: [queue], concurrency: 2 })
    .use((ctx, next) => {
      running.push(ctx);
      return next();
    })
    .jobs("last", { count: 2, delayMs: never }, (jobs) => [jobs.length]);
  const ended = worker.run();
  const job = await client.enqueue("last", [], { queue });
  await eventually(() => running[0]);
  worker.stop();
  assert.equal(await client.result(job), 1);
  await ended;
});

test("what no worker can do is an error", async () => {
  const nothing = () => {};
  await assert.rejects(new Worker({ concurrency: 4 }).jobs("large", { count: 5 }, nothing).run(), /count: 5 .*concurrency: 4/);
  for (const wrong of [{ count: 0 }, { count: 1.5 }, { count: 1, delayMs: -1 }, { count: 1, delayMs: Number.NaN }, {}]) {
    assert.throws(() => new Worker().jobs("wrong", wrong, nothing), /count must be an integer of at least 1/);
  }
  assert.throws(() => new Worker().jobs("wrong", { count: 1, delay: 5 }, nothing), /no option "delay"/);
});

test("in test modes a call has one job", async (context) => {
  const worker = new Worker().jobs("double", { count: 10 }, (jobs) =>
    jobs.map(({ args: [number] }) => (number === undefined ? new Error("no number") : number * 2)),
  );
  const jobs = client.inline(worker);
  context.after(() => jobs.end());
  assert.equal(await client.wait("double", [4]), 8);
  assert.equal((await client.enqueue("double", [], once)).state, "discarded");
});
