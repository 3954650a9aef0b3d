// Output: what handlers stream, and what clients read of it.
import assert from "node:assert/strict";
import { test } from "node:test";
import { eventually, galley, uniqueName, withWorker } from "./kit.mjs";

const { Client, JobFailed, Worker } = galley;
const client = new Client();
const atOnce = { max_attempts: 5, initial_interval: "PT0.1S" };

test("chunks are read while the job runs, and again by each attempt", async () => {
  const [queue, words] = [uniqueName(), ["once", "upon", "a", "time"]];
  let end;
  const mayEnd = new Promise((resolve) => (end = resolve));
  const worker = new Worker({ queues: [queue] }).job("tell", async (ctx) => {
    for (const word of words) await ctx.stream({ word });
    if (ctx.attempt === 1) throw new Error("the model is away");
    await mayEnd;
    await ctx.stream("the end");
  });
  const job = await client.enqueue("tell", [], { queue, retry: atOnce });
  const reader = client.output(job);
  await withWorker(worker, async () => {
    const told = [];
    while (told.length < 8) told.push((await reader.next()).value);
    const expected = [1, 2].flatMap((attempt) => words.map((word) => [attempt, word]));
    assert.deepEqual(told.map(({ attempt, data }) => [attempt, data.word]), expected);
    end();
    assert.equal((await reader.next()).value.data, "the end");
    assert.equal((await reader.next()).done, true);
    const late = [];
    for await (const { data } of client.output(job, { lastId: told[6].id })) late.push(data);
    assert.deepEqual(late, [{ word: "time" }, "the end"]);
  });
});

test("more is streamed than can wait, without waiting for each chunk", async () => {
  const queue = uniqueName();
  const worker = new Worker({ queues: [queue] }).job("count", async (ctx, to) => {
    for (let number = 0; number < to; number++) await ctx.stream(number);
  });
  await withWorker(worker, async () => {
    const read = [];
    for await (const { data } of client.output(await client.enqueue("count", [1500], { queue }))) read.push(data);
    assert.deepEqual(read, Array.from({ length: 1500 }, (_, number) => number));
  });
});

test("a chunk that is too large fails, and one that nobody wants does not", async () => {
  const [queue, seen] = [uniqueName(), []];
  const worker = new Worker({ queues: [queue] })
    .job("large", (ctx) => ctx.stream("x".repeat(65_536)))
    .job("cancelled", async (ctx) => {
      await client.cancel(ctx.id);
      await ctx.stream("nobody reads this");
      await eventually(() => ctx.signal.aborted || undefined);
      await ctx.stream("nor this");
      seen.push("done");
    });
  await withWorker(worker, async () => {
    const failed = client.wait("large", [], { queue, retry: { max_attempts: 1 } });
    await assert.rejects(failed, (error) => error instanceof JobFailed && error.message.includes("65536"));
    await client.enqueue("cancelled", [], { queue });
    assert.deepEqual(await eventually(() => (seen.length > 0 ? seen : undefined)), ["done"]);
  });
});
