// Checkpoints and steps: what an attempt saves, and what the next one finds.
import assert from "node:assert/strict";
import { test } from "node:test";
import { galley, uniqueName, withWorker } from "./kit.mjs";

const { Client, GalleyError, JobFailed, Worker } = galley;
const client = new Client();
const atOnce = { max_attempts: 5, initial_interval: "PT0.1S" };

test("a step runs once, and later attempts get its result", async () => {
  const [queue, ran] = [uniqueName(), []];
  const ship = (ctx) => () => {
    ran.push("ship");
    if (ctx.attempt < 3) throw new Error("the carrier is away");
    return "on its way";
  };
  const worker = new Worker({ queues: [queue] }).job("fulfil", async (ctx, order) => {
    const paid = await ctx.step("charge", async () => {
      ran.push("charge");
      return { order, at: new Date(0), note: undefined };
    });
    await ctx.checkpoint([...(ctx.state() ?? []), ctx.attempt]);
    return [paid, await ctx.step("ship", ship(ctx)), await ctx.step("ship", ship(ctx)), ctx.state()];
  });
  await withWorker(worker, async () => {
    const result = await client.wait("fulfil", [7], { queue, retry: atOnce });
    const paid = { order: 7, at: "1970-01-01T00:00:00.000Z" };
    assert.deepEqual(result, [paid, "on its way", "on its way", [1, 2, 3]]);
  });
  assert.deepEqual(ran, ["charge", "ship", "ship", "ship"]);
});

test("steps run side by side", async () => {
  const [queue, ran] = [uniqueName(), []];
  const worker = new Worker({ queues: [queue] }).job("pages", async (ctx, count) => {
    const pages = Array.from({ length: count }, (_, page) =>
      ctx.step(`page-${page}`, async () => {
        ran.push(page);
        return page * page;
      }),
    );
    const done = await Promise.all(pages);
    if (ctx.attempt === 1) throw new Error("once more");
    return done;
  });
  await withWorker(worker, async () => {
    assert.deepEqual(await client.wait("pages", [4], { queue, retry: atOnce }), [0, 1, 4, 9]);
  });
  assert.deepEqual(ran.sort(), [0, 1, 2, 3]);
});

test("what cannot be saved fails the job at once", async () => {
  const queue = uniqueName();
  const worker = new Worker({ queues: [queue] })
    .job("nested", (ctx) => ctx.step("a", () => ctx.step("a", () => 1)))
    .job("large", (ctx) => ctx.step("a", () => "x".repeat(1 << 20)))
    .job("text", (ctx) => ctx.step("a", () => "\ud800"));
  const failed = (text) => (error) => error instanceof JobFailed && error.message.includes(text) && error.job.attempt === 1;
  await withWorker(worker, async () => {
    await assert.rejects(client.wait("nested", [], { queue, retry: atOnce }), failed("of its own"));
    await assert.rejects(client.wait("large", [], { queue, retry: atOnce }), failed("1048576"));
    assert.equal(await client.wait("text", [], { queue, retry: atOnce }), "\ufffd");
  });
});

test("an attempt that is not the current one cannot save", async () => {
  const [queue, seen] = [uniqueName(), []];
  const worker = new Worker({ queues: [queue] })
    .job("cancelled", async (ctx) => {
      await client.cancel(ctx.id);
      await assert.rejects(ctx.checkpoint(1), (error) => error instanceof GalleyError && error.status === 409);
      seen.push(ctx.signal.aborted);
    })
    .job("next", () => "free");
  await withWorker(worker, async () => {
    await client.enqueue("cancelled", [], { queue });
    assert.equal(await client.wait("next", [], { queue }), "free");
  });
  assert.deepEqual(seen, [true]);
});

test("a test mode keeps checkpoints until the job is done", async (context) => {
  const ran = [];
  const worker = new Worker({ url: "http://127.0.0.1:1" }).job("fulfil", async (ctx) => {
    await ctx.step("charge", () => ran.push("charge"));
    await ctx.checkpoint((ctx.state() ?? 0) + 1);
    if (ctx.attempt === 1) throw new Error("away");
    return ctx.state();
  });
  const offline = new Client("http://127.0.0.1:1", { patienceMs: 0 });
  const jobs = offline.fake(worker);
  context.after(() => jobs.end());
  await offline.enqueue("fulfil", []);
  const [done] = await jobs.drain();
  assert.deepEqual([done.result, ran, done.checkpoint], [2, ["charge"], undefined]);
});
