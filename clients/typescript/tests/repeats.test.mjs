// Requests are repeated until they are answered, and have one effect.
import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:http";
import { test } from "node:test";
import { eventually, galley, load, uniqueName, withWorker } from "./kit.mjs";

const { Client, GalleyError, NoRetry, Unavailable, Worker } = galley;

/**
 * Passes requests on to the gateway. It does with each one what `plan` says next: `pass` it on, `lose` the answer,
 * `hang_up` before it is passed on, or say that the gateway is `busy`; in the end it passes all on. While it `isAway` it
 * hangs up. The gateway gives jobs a lease of `leaseMs` whatever the worker asks for.
 */
async function withProxy(work) {
  const proxy = { plan: [], requests: [], isAway: false, leaseMs: undefined };
  const server = createServer(async (request, response) => {
    const pieces = [];
    for await (const piece of request) pieces.push(piece);
    const { method, headers, url } = request;
    proxy.requests.push(headers);
    const what = proxy.plan.shift() ?? "pass";
    if (what === "hang_up" || proxy.isAway) return request.socket.destroy();
    if (what === "busy") {
      response.writeHead(503, { "retry-after": "0", "content-type": "application/json" });
      return response.end('{"error": {"code": "backend_error", "message": "away"}}');
    }
    const { connection, "transfer-encoding": encoding, "content-length": length, ...kept } = headers;
    let body = pieces.length === 0 ? undefined : Buffer.concat(pieces);
    if (proxy.leaseMs !== undefined && url === "/ojs/v1/workers/fetch") {
      body = JSON.stringify({ ...JSON.parse(body), visibility_timeout_ms: proxy.leaseMs });
    }
    const answer = await fetch(process.env.GALLEY_URL + url, { method, headers: kept, body });
    const text = await answer.text();
    if (what === "lose") return request.socket.destroy();
    response.writeHead(answer.status, { "content-type": "application/json" });
    return response.end(text);
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  proxy.url = `http://127.0.0.1:${server.address().port}`;
  try {
    await work(proxy);
  } finally {
    server.closeAllConnections();
    server.close();
  }
}

test("a job is made once, however often its request arrives", () =>
  withProxy(async (proxy) => {
    const queue = uniqueName();
    const client = new Client(proxy.url, { key: "glk_1_x" });
    proxy.plan = ["lose", "busy", "hang_up", "lose", "pass"];
    // The gateway of the tests needs no key, and refuses none
    const job = await client.enqueue("a", [], { queue });
    // More if the machine is so slow that a request takes too long
    assert.ok(proxy.plan.length === 0 && proxy.requests.length >= 5);
    assert.equal(new Set(proxy.requests.map((headers) => headers["idempotency-key"])).size, 1);
    assert.deepEqual([...new Set(proxy.requests.map(({ authorization }) => authorization))], ["Bearer glk_1_x"]);
    assert.equal((await client.get(job)).state, "available");
    assert.equal((await client.getQueue(queue)).available, 1);
  }));

test("a cancelled job whose answer was lost is cancelled", () =>
  withProxy(async (proxy) => {
    const client = new Client(proxy.url);
    const job = await client.enqueue("a", [], { queue: uniqueName() });
    proxy.plan = ["lose", "busy"];
    assert.equal((await client.cancel(job)).state, "cancelled");
    proxy.plan = ["lose"];
    assert.equal((await client.retry(job)).state, "available");
  }));

for (const kind of ["result", "failure"]) {
  test(`the ${kind} of a job is told after the lease too`, () =>
    withProxy(async (proxy) => {
      const queue = uniqueName();
      const held = [];
      // The gateway has given the job to nobody else: the worker cannot know that
      proxy.leaseMs = 3_600_000;
      const worker = new Worker({ url: proxy.url, queues: [queue], leaseMs: 1000 });
      worker.job("a", (context) => {
        held.push(context);
        proxy.isAway = true;
        if (kind === "failure") throw new NoRetry("the end");
        return "the end";
      });
      const client = new Client();
      const job = await client.enqueue("a", [], { queue });
      await withWorker(worker, async () => {
        await eventually(() => (held.length > 0 && Date.now() > held[0].leaseUntil) || undefined);
        proxy.isAway = false;
        let ended;
        await eventually(async () => {
          ended = await client.get(job);
          return ["completed", "discarded"].includes(ended.state) || undefined;
        });
        assert.deepEqual([ended.state, ended.attempt], [kind === "result" ? "completed" : "discarded", 1]);
        assert.equal(held.length, 1);
      });
    }));
}

test("a gateway that stays away is an error after the patience", () =>
  withProxy(async (proxy) => {
    proxy.plan = Array(1000).fill("busy");
    const away = await new Client(proxy.url, { patienceMs: 300 }).enqueue("a", []).catch((error) => error);
    assert.ok(away instanceof Unavailable);
    assert.deepEqual([away.status, away.code, away.retryAfterMs], [503, "backend_error", 0]);
    assert.ok(proxy.requests.length >= 1);
    // A port that nobody listens on
    await assert.rejects(new Client("http://127.0.0.1:1", { patienceMs: 0 }).enqueue("a", []), Unavailable);
  }));

test("Retry-After is honoured in seconds and as a date", async () => {
  const { Patience, read } = await load("http");
  const after = (value) => {
    try {
      read(429, "{}", value);
    } catch (error) {
      return error.retryAfterMs;
    }
    assert.fail("429 is an error");
  };
  assert.deepEqual([after("7"), after("0"), after(null), after("soon")], [7000, 0, undefined, undefined]);
  const atDate = after(new Date(Date.now() + 3_600_000).toUTCString());
  assert.ok(3_000_000 < atDate && atDate <= 3_600_000);
  const busy = new Unavailable("busy", 429, "queue_full", 7000);
  const pause = new Patience(60_000).pauseAfter(busy);
  assert.ok(7000 <= pause && pause < 17_000);
  assert.throws(() => new Patience(6000).pauseAfter(busy), Unavailable);
});

test("GALLEY_URL and GALLEY_KEY are used", () =>
  withProxy(async (proxy) => {
    const { GALLEY_URL } = process.env;
    try {
      Object.assign(process.env, { GALLEY_URL: `${proxy.url}/`, GALLEY_KEY: "glk_2_y" });
      const client = new Client();
      process.env.GALLEY_URL = GALLEY_URL;
      await client.enqueue("a", [], { queue: uniqueName() });
      assert.equal(proxy.requests[0].authorization, "Bearer glk_2_y");
    } finally {
      process.env.GALLEY_URL = GALLEY_URL;
      delete process.env.GALLEY_KEY;
    }
  }));

test("the problem details of channels are read", async () => {
  const { read } = await load("http");
  const details = '{"status": 404, "code": "not_found", "detail": "no such channel", "retryable": false}';
  assert.throws(
    () => read(404, details),
    (error) => error instanceof GalleyError && error.code === "not_found" && error.message.includes("no such channel"),
  );
});
