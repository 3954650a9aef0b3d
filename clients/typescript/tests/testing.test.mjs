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
  await assert.rejects(client.getCron("nightly"), /the test mode has no GET \/ojs\/v1\/cron/);
  await assert.rejects(client.subscribe("orders").next(), /the test mode has no GET/);
  await assert.rejects(jobs.drain(), /without a worker runs no jobs/);
});

const steps = new Worker({ url: "http://127.0.0.1:1" })
  .job("split", (_, n) => (n < 0 ? { no: "list" } : [...Array(n).keys()]))
  .job("times", (_, factor, n) => factor * n)
  .job("fail", () => {
    throw new NoRetry("no");
  })
  .job("gather", (ctx) => ctx.parentResults);

for (const mode of ["fake", "inline"]) {
  test(`workflows run in the ${mode} mode as they do at a gateway`, async (context) => {
    const jobs = client[mode](steps);
    context.after(() => jobs.end());
    const [gather, times] = [client.job("gather", []), (...args) => client.job("times", args)];
    const started = {
      chain: await client.chain([times(2, 3), times(4, 5), gather]),
      broken: await client.chain([client.job("fail", []), gather]),
      group: await client.group([times(1, 1), client.job("fail", [])]),
      good: await client.batch([times(1, 1), times(2, 2)], { onComplete: gather, onSuccess: gather, onFailure: gather }),
      bad: await client.batch([times(1, 1), client.job("fail", [])], { onSuccess: gather, onFailure: gather }),
      dag: await client.dag({ a: times(1, 2), b: times(3, 4), both: gather }, { both: ["b", "a"] }),
    };
    if (mode === "fake") {
      assert.deepEqual(started.chain.members.map(({ state }) => state), ["available", "waiting", "waiting"]);
      const doomed = await client.chain([times(7, 7), gather]);
      assert.equal((await client.cancelWorkflow(doomed)).state, "cancelled");
      await jobs.drain();
      jobs.assertNotEnqueued("times", { args: [7, 8] });
      assert.deepEqual((await client.getWorkflow(doomed)).members.map(({ state }) => state), ["cancelled", "cancelled"]);
    }
    const shown = {};
    for (const [name, workflow] of Object.entries(started)) shown[name] = await client.getWorkflow(workflow);
    const states = Object.entries(shown).map(([name, { state }]) => [name, state]);
    const expected = { chain: "completed", broken: "failed", group: "failed", good: "completed", bad: "failed", dag: "completed" };
    assert.deepEqual(Object.fromEntries(states), expected);
    const resultOf = async ({ id }) => (await client.get(id)).result;
    assert.deepEqual(await resultOf(shown.chain.members[2]), [6, 20]);
    assert.deepEqual(await resultOf(shown.dag.members[2]), [12, 2]);
    assert.deepEqual(shown.good.callbacks.map(({ on, state }) => [on, state]), [
      ["on_complete", "completed"],
      ["on_success", "completed"],
      ["on_failure", "cancelled"],
    ]);
    assert.deepEqual(await resultOf(shown.good.callbacks[1]), [1, 4]);
    assert.deepEqual(shown.bad.callbacks.map(({ state }) => state), ["cancelled", "completed"]);
    await assert.rejects(client.getWorkflow("0"), (error) => error instanceof GalleyError && error.code === "not_found");
  });

  test(`nested workflows and steps for each element run in the ${mode} mode`, async (context) => {
    const jobs = client[mode](steps);
    context.after(() => jobs.end());
    const { chain, group, forEach } = galley;
    const [gather, times] = [client.job("gather", []), (...args) => client.job("times", args)];
    const split = (n) => client.job("split", [n]);
    const mapped = await client.chain([split(3), forEach(times(10)), gather]);
    const empty = await client.chain([split(0), forEach(times(10)), gather]);
    const wrong = await client.chain([split(-1), forEach(times(10)), gather]);
    const each = forEach(chain([times(2), times(3)]), "split");
    const tree = await client.dag({ split: split(2), each, all: gather }, { all: ["each"] });
    const nested = await client.chain([split(1), group([times(1, 2), chain([times(1, 3), gather])]), gather]);
    // The first jobs of a nested workflow get what it would get as a job, and those of an array get the other results
    const inherits = await client.chain([split(1), chain([group([gather]), gather])]);
    const parts = { split: split(1), other: times(2, 2), each: forEach(gather, "split"), all: gather };
    const others = await client.dag(parts, { each: ["split", "other"], all: ["each"] });
    if (mode === "fake") {
      const doomed = await client.group([group([times(7, 7)])]);
      const cancelled = await client.cancelWorkflow(doomed.members[0]);
      assert.deepEqual([cancelled.state, cancelled.parent_workflow_id], ["cancelled", doomed.id]);
      assert.equal((await client.getWorkflow(doomed)).state, "failed");
      await jobs.drain();
    }
    jobs.assertEnqueued("times", { args: [10, 2], count: 1 });
    const over = async (workflow) => {
      const { state, members } = await client.getWorkflow(workflow);
      return [state, (await client.get(members.at(-1).id)).result];
    };
    assert.deepEqual(await over(mapped), ["completed", [[0, 1, 2], [0, 10, 20]]]);
    assert.deepEqual(await over(empty), ["completed", [[], []]]);
    assert.deepEqual(await over(wrong), ["failed", undefined]);
    assert.equal((await client.getWorkflow(wrong)).members[1].error.code, "not_an_array");
    assert.deepEqual(await over(tree), ["completed", [[0, 3]]]);
    assert.deepEqual(await over(nested), ["completed", [[0], [2, [3]]]]);
    const inner = (await client.getWorkflow(inherits)).members[1];
    assert.deepEqual([inner.state, inner.result], ["completed", [[[[0]]]]]);
    assert.deepEqual(await over(others), ["completed", [[[4]]]]);
    const member = (await client.getWorkflow(nested)).members[1];
    assert.deepEqual([member.type, member.workflow, member.state], ["group", true, "completed"]);
    const shown = await client.getWorkflow(member);
    assert.deepEqual([shown.parent_workflow_id, shown.parent_workflow_index], [nested.id, 1]);
  });
}

test("the gateway is asked again after the end", async () => {
  client.fake().end();
  await assert.rejects(client.enqueue("greet", ["ada"]), galley.Unavailable);
});
