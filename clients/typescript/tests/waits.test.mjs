// Jobs that wait in the middle of their work: for signals, for people, for times.
import assert from "node:assert/strict";
import { test } from "node:test";
import { galley, uniqueName, withWorker } from "./kit.mjs";

const { Client, GalleyError, JobFailed, NoRetry, Waiting, Worker } = galley;
const client = new Client();
const once = { max_attempts: 1 };

/** Waits until a job waits at a step. */
async function waitsAt(job, step) {
  for (;;) {
    const found = await client.get(job);
    if (found.waiting?.step === step) return found;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

test("a job waits without its worker and goes on with the signal", async () => {
  const [queue, ran] = [uniqueName(), []];
  const worker = new Worker({ queues: [queue] }).job("refund", async (ctx, order) => {
    await ctx.step("look", () => ran.push("look"));
    const answers = [];
    for (const step of ["answered", "second"]) {
      answers.push((await ctx.waitForSignal("answered", { timeoutMs: 3_600_000, step }))?.data);
    }
    const late = await ctx.waitForSignal("never", { timeoutMs: 0 });
    await ctx.sleep("cool down", 10);
    return [answers, late ?? null, ctx.attempt, order];
  });
  await withWorker(worker, async () => {
    const job = await client.enqueue("refund", [7], { queue, retry: once });
    const waiting = await waitsAt(job, "answered");
    assert.deepEqual([waiting.state, waiting.waiting.signal], ["scheduled", "answered"]);
    const sent = await client.signal(job, "answered", { ok: true }, { id: "first" });
    assert.deepEqual(await client.signal(job, "answered", { ok: true }, { id: "first" }), sent);
    await waitsAt(job, "second");
    await client.signal(job, "answered", "again");
    assert.deepEqual(await client.result(job), [[{ ok: true }, "again"], null, 1, 7]);
    assert.deepEqual(ran, ["look"]);
    assert.deepEqual(await client.signals(job), []);
    await assert.rejects(client.signal(job, "answered"), (error) => error instanceof GalleyError && error.status === 409);
  });
});

test("a job waits for a person", async () => {
  const queue = uniqueName();
  const worker = new Worker({ queues: [queue], concurrency: 2 }).job("payout", async (ctx, amount) => {
    const decision = await ctx.waitForApproval("payout", { timeoutMs: 3_600_000 });
    if (decision?.approved !== true) throw new NoRetry(`not approved: ${decision?.comment}`);
    return [amount, decision.by];
  });
  await withWorker(worker, async () => {
    const [approved, rejected] = [1, 2].map((amount) => client.enqueue("payout", [amount], { queue, retry: once }));
    for (const job of [await approved, await rejected]) await waitsAt(job, "approval.payout");
    await client.approve(await approved, "payout", { by: "ann" });
    await client.reject(await rejected, "payout", { comment: "too much" });
    assert.deepEqual(await client.result(await approved), [1, "ann"]);
    const refused = (error) => error instanceof JobFailed && error.message.includes("not approved: too much");
    await assert.rejects(client.result(await rejected), refused);
  });
});

test("jobs of one call wait by themselves", async () => {
  const queue = uniqueName();
  const worker = new Worker({ queues: [queue], concurrency: 2 }).jobs("ask", { count: 2, delayMs: 100 }, async (jobs) => {
    const ask = async (job) => {
      try {
        return job.args[0] === "wait" ? (await job.waitForSignal("go"))?.data : "at once";
      } catch (error) {
        if (error instanceof Waiting) return error;
        throw error;
      }
    };
    return Promise.all(jobs.map(ask));
  });
  await withWorker(worker, async () => {
    const one = await client.enqueue("ask", ["wait"], { queue });
    const other = await client.enqueue("ask", ["go on"], { queue });
    assert.equal(await client.result(other), "at once");
    await waitsAt(one, "go");
    await client.signal(one, "go", 5);
    assert.equal(await client.result(one), 5);
  });
});

test("the test mode waits for signals and not for times", async () => {
  const worker = new Worker().job("refund", async (ctx, order) => {
    await ctx.sleep("cool down", 3_600_000);
    const answer = await ctx.waitForSignal("answered", { timeoutMs: 60_000 });
    return [order, answer?.data ?? null, ctx.attempt];
  });
  const tested = new Client();
  const fake = tested.fake(worker);
  const [one, other] = [await tested.enqueue("refund", [1]), await tested.enqueue("refund", [2])];
  await fake.drain();
  assert.deepEqual(fake.jobs.map(({ waiting }) => waiting.signal), ["answered", "answered"]);
  assert.equal((await tested.signal(one, "answered", "yes")).sequence, 1);
  fake.endWait(other.id);
  await fake.drain();
  assert.deepEqual([await tested.result(one), await tested.result(other)], [[1, "yes", 1], [2, null, 1]]);
  await assert.rejects(tested.signal(one, "answered"), GalleyError);
  fake.end();
});
