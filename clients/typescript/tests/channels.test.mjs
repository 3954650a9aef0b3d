// Channels with a real gateway: messages are published, followed and resumed, and none is missed.
import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:http";
import { test } from "node:test";
import { galley, load, uniqueName } from "./kit.mjs";
import { GatewayProcess } from "./processes.mjs";

const { applyDelta, Client, DeltaError, GalleyError } = galley;
const client = new Client();

/** A subscription that ends after a while: a test that waits for what never comes fails. */
function follow(channels, options = {}, of = client) {
  return of.subscribe(channels, { signal: AbortSignal.timeout(120_000), ...options });
}

async function take(messages, count) {
  const taken = [];
  while (taken.length < count) {
    const { done, value } = await messages.next();
    assert.ok(!done, `${taken.length} of ${count} messages came`);
    taken.push(value);
  }
  return taken;
}

test("messages are published, read and followed", async () => {
  const channel = uniqueName();
  const messages = await follow(channel).open();
  const bytes = new Uint8Array([0, 255]);
  const ids = [await client.publish(channel, "text"), await client.publish(channel, { order: 7 })];
  ids.push(await client.publish(channel, bytes), ...(await client.publishMany(channel, ["more", [1]])));
  const got = await take(messages, 5);
  assert.deepEqual(got.map(({ data }) => data), ["text", { order: 7 }, bytes, "more", [1]]);
  assert.deepEqual(got.map(({ id }) => id), ids);
  assert.equal(messages.lastId, ids.at(-1));
  messages.close();
  assert.equal((await messages.next()).done, true);
  assert.deepEqual((await client.history(channel, { after: ids[2] })).map(({ data }) => data), ["more", [1]]);
  for await (const message of follow(channel, { lastId: ids[3] })) {
    assert.deepEqual(message.data, [1]);
    break;
  }
  const attributes = { specversion: "1.0", id: "1", source: "/shop", type: "order.paid", subject: 'Müller, "100 %"' };
  await client.publish(channel, { order: 8 }, { attributes });
  const [read] = await client.history(channel, { after: ids[4] });
  assert.deepEqual([read.attributes.type, read.attributes.subject], [attributes.type, attributes.subject]);
});

test("a message with a key is published once", async () => {
  const channel = uniqueName();
  const options = { idempotencyKey: channel };
  assert.equal(await client.publish(channel, "a", options), await client.publish(channel, "a", options));
  assert.equal((await client.history(channel)).length, 1);
});

test("a pattern covers channels that come later, and resumes", async () => {
  const name = uniqueName();
  const messages = await follow([`${name}.*`]).open();
  await client.publish(`${name}.a`, "1");
  await client.publish(`${name}.b`, "2");
  assert.deepEqual((await take(messages, 2)).map(({ data }) => data).sort(), ["1", "2"]);
  messages.close();
  await client.publish(`${name}.a`, "3");
  const resumed = follow(`${name}.*`, { lastId: messages.lastId });
  assert.equal((await take(resumed, 1))[0].data, "3");
  resumed.close();
});

test("a subscriber gets the messages that its filter matches, and resumes behind the others", async () => {
  const channel = uniqueName();
  const event = (type) => ({ attributes: { specversion: "1.0", id: "1", source: "/shop", type } });
  const filter = { attributes: { type: { prefix: "order." } }, data: { "/total": { gte: 100 } } };
  const streams = [await follow(channel, { filter }).open(), await follow([channel, `${channel}.*`], { filter }).open()];
  for (const [type, total] of [["order.paid", 99], ["x", 100], ["order.paid", 100], ["order.sent", 101]]) {
    await client.publish(channel, { total }, event(type));
  }
  for (const messages of streams) {
    assert.deepEqual((await take(messages, 2)).map(({ data }) => data.total), [100, 101]);
    messages.close();
  }
  const wrong = follow(channel, { filter: { attributes: { type: { suffix: "x" } } } });
  await assert.rejects(wrong.next(), (error) => error instanceof GalleyError && error.status === 400);
});

test("a subscriber that asks for differences gets whole messages", async () => {
  const channel = uniqueName();
  const streams = [await follow(channel, { delta: true }).open(), await follow([channel, "x.*"], { delta: true }).open()];
  const sent = [0, 1, 2, 3].map((n) => ({ n, words: "Съешь ещё этих мягких французских булок 🥐 ".repeat(30) }));
  for (const data of sent) await client.publish(channel, data);
  for (const messages of streams) {
    assert.deepEqual((await take(messages, 4)).map(({ data }) => data), sent);
    messages.close();
  }
  const resumed = follow(channel, { delta: true, lastId: streams[0].lastId });
  await client.publish(channel, sent[0]);
  assert.deepEqual((await take(resumed, 1))[0].data, sent[0]);
  resumed.close();
});

/** Messages about a number, and the differences of the second and third from the one before, by another program. */
const shown = (n) =>
  `{"id":"1-${n}","channel":"a","time":"2026-01-01T00:00:00.000Z","data":{"words":"Съешь ещё этих мягких французских булок 🥐","n":${n}}}`;
const DELTAS = { 2: '2_\nA:{"id":"1-22N@A,3:2}}2ydjHr;', 3: '2_\nA:{"id":"1-32N@A,3:3}}2yeEHr;' };

test("a difference that does not fit leads to a whole message", async () => {
  const event = (n, name, data) => `id: 1-${n}\nevent: ${name}\ndata: ${data}\n\n`;
  const delta = (n, from) => event(n, "delta", JSON.stringify({ channel: "a", from, delta: DELTAS[n] }));
  const begin = (n) => `retry: 1\n${event(n, "begin", "{}")}`;
  const streams = [
    begin(0) + event(1, "message", shown(1)) + delta(2, "1-1") + delta(3, "1-1"),
    begin(2) + event(3, "message", shown(3)),
  ];
  const requests = [];
  const server = createServer(({ url, headers }, response) => {
    requests.push([url, headers["last-event-id"]]);
    response.writeHead(200, { "content-type": "text/event-stream" }).write(streams[requests.length - 1] ?? begin(3));
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  const messages = follow("a", { delta: true }, new Client(`http://127.0.0.1:${server.address().port}`));
  try {
    assert.deepEqual((await take(messages, 3)).map(({ id, data }) => [id, data.n]), [["1-1", 1], ["1-2", 2], ["1-3", 3]]);
    const path = "/v1/channels/a/stream?delta=fossil";
    assert.deepEqual(requests, [[path, undefined], [path, "1-2"]]);
  } finally {
    messages.close();
    server.closeAllConnections();
    server.close();
  }
});

test("a difference is applied to its base, and to no other text", () => {
  assert.equal(applyDelta(shown(1), DELTAS[2]), shown(2));
  assert.equal(applyDelta("", "2\n2:xy1tUG00;"), "xy");
  const wrong = ["", "1G", "1G\n1G@0,", "1G\n1G@0;0;", "1G\n~~~~~:x0;", "1G\n~~~~~@~~~~~,0;", "1\n2:ab0;", "1\n1!a0;", "0\n1;"];
  for (const delta of wrong) assert.throws(() => applyDelta(shown(1), delta), DeltaError, delta);
  assert.throws(() => applyDelta(shown(1).replace("T00", "T01"), DELTAS[2]), DeltaError);
});

test("members of a channel are seen as they join and leave", async () => {
  const channel = uniqueName();
  const events = [];
  const watcher = await follow(channel, { onPresence: (event) => events.push(event) }).open();
  const ada = await follow([channel, `${channel}.hall`], { join: { member: "ada", info: { name: "Ada" } } }).open();
  assert.deepEqual((await client.members(channel)).map(({ member, info }) => [member, info]), [["ada", { name: "Ada" }]]);
  // Events of presence have no order with messages
  for (let n = 0; events.length < 2; n += 1) {
    await client.publish(channel, n);
    await take(watcher, 1);
  }
  assert.deepEqual(events.map(({ type, channel: of }) => [type, of]), [["members", channel], ["join", channel]]);
  assert.deepEqual([events[0].members, events[1].member], [[], "ada"]);
  ada.close();
  watcher.close();
  await assert.rejects(follow(channel, { join: true }).next(), (error) => error.status === 400);
  assert.throws(() => client.subscribe(channel, { join: { name: "ada" } }), TypeError);
});

test("messages that are not kept are a gap", async () => {
  const channel = uniqueName();
  await client.publish(channel, "kept");
  const gaps = [];
  const messages = follow(channel, { lastId: "1-1", onGap: (gap) => gaps.push(gap) });
  assert.equal((await take(messages, 1))[0].data, "kept");
  messages.close();
  assert.deepEqual(gaps.map((gap) => [gap.channel, gap.after]), [[channel, "1-1"]]);
});

test("a refused subscription says why", async () => {
  const refused = (error) => error instanceof GalleyError && error.status === 400 && error.code === "invalid_request";
  await assert.rejects(follow("not a channel").next(), refused);
});

test("a signal ends a subscription that waits", async () => {
  const aborter = new AbortController();
  const messages = await follow(uniqueName(), { signal: aborter.signal }).open();
  const next = messages.next();
  aborter.abort();
  assert.equal((await next).done, true);
});

test("a subscriber misses nothing while its gateway restarts", async () => {
  const channel = uniqueName();
  const doomed = await new GatewayProcess(process.env.GALLEY_TEST_REDIS_URL).start();
  try {
    const messages = await follow(channel, {}, new Client(doomed.url)).open();
    await client.publish(channel, 1);
    assert.equal((await take(messages, 1))[0].data, 1);
    await doomed.kill();
    await client.publish(channel, 2);
    await doomed.start();
    await client.publish(channel, 3);
    assert.deepEqual((await take(messages, 2)).map(({ data }) => data), [2, 3]);
    messages.close();
  } finally {
    await doomed.kill();
  }
});

test("events are read whatever pieces they arrive in", async () => {
  const { Parser } = await load("subscription");
  const text = ": hello\r\nid: 1-1\nevent: begin\r\ndata: {}\r\n\r\nretry: 250\nid: 2-1\rdata:a\ndata: b\n\n: x\n\ndata: c\n\n";
  const expected = [
    { name: "begin", data: "{}", id: "1-1" },
    { name: "message", data: "a\nb", id: "2-1" },
    { name: "message", data: "c", id: "2-1" },
  ];
  for (const size of [1, 2, 3, text.length]) {
    const parser = new Parser();
    const frames = [];
    for (let start = 0; start < text.length; start += size) frames.push(...parser.feed(text.slice(start, start + size)));
    assert.deepEqual(frames, expected);
    assert.equal(parser.retryMs, 250);
  }
});
