// Does what the matrix of docs/sdks.md lists with the Open Job Spec's SDK for JavaScript, as it is. Prints a line for each: what, a tab,
// and ok or what went wrong.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { setTimeout as pause } from "node:timers/promises";
import { batch, chain, group, OJSClient, OJSWorker } from "@openjobspec/sdk";

const url = process.argv[2];
const queue = `js-${randomUUID().slice(0, 8)}`;
const parked = `${queue}-parked`;
const LIMIT_MS = 20_000;
const client = new OJSClient({ url });
const worker = new OJSWorker({ url, queues: [queue], pollInterval: 100, concurrency: 4 });
const failed = new Set();

worker.register("sdk.echo", async (ctx) => ({ echo: ctx.job.args }));
worker.register("sdk.fails_once", async (ctx) => {
  if (!failed.has(ctx.job.id)) {
    failed.add(ctx.job.id);
    throw new Error("not yet");
  }
  return { attempt: ctx.attempt };
});
worker.register("sdk.fails", async () => {
  throw new Error("never");
});

async function until(look) {
  for (const deadline = Date.now() + LIMIT_MS; ; ) {
    const found = await look();
    if (found) return found;
    assert.ok(Date.now() < deadline, "waited in vain");
    await pause(50);
  }
}

const inState = (id, wanted) =>
  until(async () => {
    const job = await client.getJob(id);
    return job.state === wanted ? job : undefined;
  });
const retry = { maxAttempts: 2, initialInterval: "PT0.1S" };
const jobs = (count) => Array.from({ length: count }, (_, n) => ({ type: "sdk.echo", args: [n], options: { queue } }));

async function workflow(definition) {
  const made = await client.workflow(definition);
  assert.ok(made.id, `the workflow that it gives has no id: ${Object.keys(made)}`);
  await until(async () => (await client.getWorkflow(made.id)).state === "completed");
}

const attempts = {
  enqueue: async () => {
    const job = await client.enqueue("sdk.parked", [1, { a: [true, null] }], { queue: parked, tags: ["x"], meta: { m: 1 } });
    assert.deepEqual([job.state, job.args], ["available", [1, { a: [true, null] }]]);
  },
  "enqueue many": async () => {
    const made = await client.enqueueBatch([0, 1, 2].map((n) => ({ type: "sdk.parked", args: [n], options: { queue: parked } })));
    assert.deepEqual(made.map((job) => job.args), [[0], [1], [2]]);
  },
  "look up": async () => {
    const job = await client.enqueue("sdk.parked", [1], { queue: parked });
    assert.deepEqual((await client.getJob(job.id)).args, [1]);
  },
  cancel: async () => {
    const job = await client.enqueue("sdk.parked", [1], { queue: parked });
    assert.equal((await client.cancelJob(job.id)).state, "cancelled");
  },
  unique: async () => {
    const options = { queue: parked, unique: { key: ["type", "args"], period: "PT1M", onConflict: "reject" } };
    await client.enqueue("sdk.parked", ["u"], options);
    await assert.rejects(client.enqueue("sdk.parked", ["u"], options), { name: "OJSDuplicateError" });
  },
  work: async () => {
    const job = await client.enqueue("sdk.echo", ["a"], { queue });
    assert.deepEqual((await inState(job.id, "completed")).result, { echo: ["a"] });
  },
  retry: async () => {
    const job = await client.enqueue("sdk.fails_once", [], { queue, retry });
    assert.deepEqual((await inState(job.id, "completed")).result, { attempt: 2 });
  },
  discard: async () => {
    const job = await client.enqueue("sdk.fails", [], { queue, retry });
    const { errors, error } = await inState(job.id, "discarded");
    assert.match((errors?.at(-1) ?? error).message, /never/);
  },
  "dead letters": async () => {
    const job = await client.enqueue("sdk.fails", [], { queue, retry: { maxAttempts: 1, onExhaustion: "dead_letter" } });
    await inState(job.id, "discarded");
    const dead = await client.queues.listDeadLetter();
    assert.ok((dead.jobs ?? dead).some(({ id }) => id === job.id));
    await client.queues.retryDeadLetter(job.id);
  },
  chain: () => workflow(chain(...jobs(2))),
  group: () => workflow(group(...jobs(2))),
  batch: () => workflow(batch(jobs(2), { on_success: jobs(1)[0] })),
  cron: async () => {
    await client.cron.register({ name: queue, cron: "0 3 * * *", type: "sdk.echo", args: [], options: { queue } });
    assert.match(JSON.stringify(await client.cron.list()), new RegExp(queue));
    await client.cron.unregister(queue);
  },
  queues: async () => {
    assert.ok(JSON.stringify(await client.queues.list()).includes(parked));
    await client.queues.pause(parked);
    await client.queues.resume(parked);
    await client.queues.stats(parked);
  },
  "health, manifest": async () => {
    assert.equal((await client.health()).status, "ok");
    assert.match(JSON.stringify(await client.manifest()), /ojs/);
  },
};

await worker.start();
for (const [name, attempt] of Object.entries(attempts)) {
  const said = await attempt().then(() => "ok", (error) => `${error.name}: ${error.message}`.replace(/\s+/g, " "));
  console.log(`${name}\t${said}`);
}
await worker.stop();
process.exit(0);
