// The test modes: no gateway is asked.
import assert from "node:assert/strict";
import { test } from "node:test";
import { galley } from "./kit.mjs";

const { Client, GalleyError, JobFailed, NoRetry, Retry, Worker } = galley;
// Nobody listens there
const client = new Client("http://127.0.0.1:1", { patienceMs: 0 });

const worker = new Worker({ url: "http://127.0.0.1:1" })
  .job("greet", async (ctx, name) => {
    await ctx.progress(0.5, "half");
    await ctx.log(`greets ${name}`);
    return `hello ${name}`;
  })
  .job("flaky", (ctx) => {
    if (ctx.attempt < 2) throw new Retry("busy", { afterMs: 60_000 });
    return ctx.attempt;
  })
  .job("bad", () => {
    throw new NoRetry("no address");
  })
  .job("outer", async () => (await client.enqueue("greet", ["inner"])).id);

test("the fake mode keeps jobs until they are drained", async (context) => {
  const jobs = client.fake(worker);
  context.after(() => jobs.end());
  const job = await client.enqueue("greet", ["ada"], { queue: "greetings" });
  await client.schedule(3_600_000, "outer", []);
  assert.equal(job.state, "available");
  await assert.rejects(client.result(job), /is available after/);
  jobs.assertEnqueued("greet", { args: ["ada"], queue: "greetings" });
  jobs.assertNotEnqueued("greet", { args: ["bob"] });
  jobs.assertNotEnqueued("greet", { queue: "mail" });
  assert.throws(() => jobs.assertEnqueued("greet", { count: 2 }), /expected 2 jobs greet with .*greet\["ada"\] in greetings/);
  assert.deepEqual((await jobs.drain()).map(({ type }) => type), ["greet", "outer", "greet"]);
  assert.equal(await client.result(job), "hello ada");
  const [done] = jobs.enqueued("greet");
  assert.deepEqual([done.progress, done.progress_data, done.attempt], [0.5, { message: "half" }, 1]);
  assert.deepEqual((await client.logs(job)).map(({ message }) => message), ["greets ada"]);
});

test("the inline mode runs a job when it is enqueued", async (context) => {
  const jobs = client.inline(worker);
  context.after(() => jobs.end());
  assert.equal(await client.wait("greet", ["ada"]), "hello ada");
  assert.equal(await client.wait("flaky", []), 2);
  assert.equal(await client.wait("flaky", [], { retry: { max_attempts: 1 } }).catch((error) => error.job.errors[0].type), "Retry");
  const refused = (error) => error instanceof JobFailed && error.message.includes("no address") && error.job.attempt === 1;
  await assert.rejects(client.wait("bad", []), refused);
  const many = await client.enqueueMany([client.job("greet", ["a"]), client.job("greet", ["b"], { queue: "x", pending: true })]);
  assert.deepEqual(many.map(({ state, queue }) => [state, queue]), [["completed", "default"], ["pending", "x"]]);
  assert.equal((await client.activate(many[1])).state, "completed");
  await assert.rejects(client.enqueue("unknown", []), /no handler for jobs of type unknown/);
});

test("jobs are cancelled and retried, messages are kept, and the rest needs a gateway", async (context) => {
  const jobs = client.fake();
  context.after(() => jobs.end());
  const job = await client.enqueue("greet", ["ada"]);
  assert.equal((await client.cancel(job)).state, "cancelled");
  await assert.rejects(client.cancel(job), (error) => error instanceof GalleyError && error.code === "conflict");
  assert.equal((await client.retry(job)).state, "available");
  await client.publish("orders", { order: 7 });
  await client.publishMany("orders", ["a"]);
  assert.deepEqual(jobs.messages, [{ channel: "orders", data: { order: 7 } }, { channel: "orders", data: "a" }]);
  await assert.rejects(client.chain([]), /the test mode has no POST \/ojs\/v1\/workflows/);
  await assert.rejects(client.subscribe("orders").next(), /the test mode has no GET/);
  await assert.rejects(jobs.drain(), /without a worker runs no jobs/);
});

test("the gateway is asked again after the end", async () => {
  client.fake().end();
  await assert.rejects(client.enqueue("greet", ["ada"]), galley.Unavailable);
});
