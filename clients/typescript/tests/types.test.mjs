// The compiler knows tasks, arguments and options, and refuses what is misspelt; so does the package when it runs.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { galley, load, repository, run, source, uniqueName, write } from "./kit.mjs";
import { kill } from "./processes.mjs";

const COMPILER_OPTIONS = {
  strict: true,
  noEmit: true,
  exactOptionalPropertyTypes: true,
  module: "nodenext",
  target: "es2022",
  lib: ["es2022", "dom"],
  types: [],
};

const SAMPLE = `
import { chain, Client, forEach, group, Worker } from "galley-jobs";

interface Tasks {
  "crop": { args: [width: number, image: string]; result: string };
  "email.send": { args: [to: string, subject?: string]; result: string };
  "sum": { args: number[]; result: number };
  "clean": { args: [] };
}

const galley = new Client<Tasks>();
const text: string = await galley.wait("email.send", ["ada"]);
const sum: number = await galley.result(await galley.enqueue("sum", [1, 2, 3], { queue: "a", retry: { max_attempts: 3 } }));
const nothing: unknown = await galley.wait("clean", []);
await galley.schedule(new Date(), "email.send", ["ada", "hello"], { unique: { keys: ["args"] } });
await galley.chain([galley.job("sum", [1]), galley.job("clean", [], { priority: 3 })]);
await galley.chain([galley.job("clean", []), galley.each("crop", [80]), group([galley.job("clean", [])], { name: "n" })]);
await galley.dag({ a: galley.job("clean", []), b: forEach(chain([galley.job("sum", [1])]), "a") }, { b: ["a"] });
for await (const message of galley.subscribe<{ order: number }>("orders")) message.data.order.toFixed();
new Worker<Tasks>({ queues: ["a"] }).job("email.send", (ctx, to, subject = "") => to + subject + ctx.id);
await new Client().enqueue("any.thing", [1, "x"]);
new Worker().job("any.thing", (ctx, to: string, times: number) => to.repeat(times));

await galley.enqueue("e-mail.send", ["ada"]); // refused: '"e-mail.send"' is not assignable
await galley.enqueue("email.send", [7]); // refused: 'number' is not assignable to type 'string'
await galley.enqueue("email.send", []); // refused: Source has 0 element(s) but target requires 1
await galley.enqueue("email.send", ["ada"], { priorty: 3 }); // refused: Did you mean to write 'priority'?
await galley.enqueue("sum", [1], { retry: { max_atempts: 1 } }); // refused: Did you mean to write 'max_attempts'?
await galley.enqueue("sum", [1], { timeout_ms: "1" }); // refused: 'string' is not assignable to type 'number'
const wrong: number = await galley.wait("email.send", ["ada"]); // refused: 'string' is not assignable to type 'number'
galley.each("crop", ["80"]); // refused: 'string' is not assignable to type 'number'
galley.job("clean", ["x"]); // refused: Source has 1 element(s) but target allows only 0
(await galley.get("x")).stat; // refused: Property 'stat' does not exist
galley.subscribe("orders", { onGaps() {} }); // refused: Did you mean to write 'onGap'?
new Worker<Tasks>().job("email.send", (ctx, to: number) => ""); // refused: 'string' is not assignable to type 'number'
new Worker<Tasks>().job("sum", () => "x"); // refused: 'string' is not assignable to type 'number | Promise<number>'
new Worker({ concurency: 3 }); // refused: Did you mean to write 'concurrency'?
`;

test("what is misspelt does not compile", async () => {
  const config = { compilerOptions: COMPILER_OPTIONS, files: ["sample.mts"] };
  const folder = write("misspelt", { "sample.mts": SAMPLE, "tsconfig.json": JSON.stringify(config) });
  const { output } = await run(process.env.GALLEY_TEST_TSC, ["-p", folder, "--pretty", "false"], { cwd: folder });
  const said = new Map();
  let number = 0;
  for (const line of output.split("\n")) {
    // What belongs to an error is indented
    if (line !== "" && !line.startsWith(" ")) number = Number(/^sample\.mts\((\d+),/.exec(line)?.[1]);
    said.set(number, `${said.get(number) ?? ""}${line}\n`);
  }
  for (const [index, line] of SAMPLE.split("\n").entries()) {
    const [, reason] = line.split("// refused: ");
    const found = said.get(index + 1)?.trim() ?? "";
    if (reason === undefined) assert.equal(found, "", line);
    else assert.ok(found.includes("error TS") && found.includes(reason), `${line}\n${found}`);
    said.delete(index + 1);
  }
  assert.deepEqual([...said.keys()], []);
});

test("the programs of the README compile, and do what they say", async () => {
  const readme = readFileSync(join(source, "README.md"), "utf8");
  const snippets = readme.split("```ts\n").slice(1).map((block) => block.split("```")[0]);
  const files = Object.fromEntries(snippets.map((snippet) => [/^\/\/ (\S+)\n/.exec(snippet)[1], snippet]));
  const config = { compilerOptions: { ...COMPILER_OPTIONS, noEmit: false }, include: ["*.ts"] };
  const folder = write("readme", { ...files, "package.json": '{"type":"module"}', "tsconfig.json": JSON.stringify(config) });
  const { code, output } = await run(process.env.GALLEY_TEST_TSC, ["-p", folder]);
  assert.equal(code, 0, output);
  const printed = async (name) => (await run(process.execPath, [name], { cwd: folder })).output.split("\n");
  // worker.ts and enqueue.ts are run by the tests of all clients
  assert.deepEqual(await printed("tested.js"), ["hello", "bob@example.org", ""]);
  const [first, lastId] = await printed("channels.js");
  assert.equal(first, "orders 7");
  assert.match(lastId, /^\S+$/);
});

test("the quick start prints what it says", async () => {
  const page = readFileSync(join(repository, "docs/quick-start.md"), "utf8");
  const programs = page.split("```js\n").slice(1).map((block) => block.split("```")[0]);
  const folder = write("quick-start", Object.fromEntries(programs.map((text) => [/^\/\/ (\S+)\n/.exec(text)[1], text])));
  const worker = spawn(process.execPath, ["worker.mjs"], { cwd: folder, stdio: "inherit" });
  try {
    const { code, output } = await run(process.execPath, ["main.mjs"], { cwd: folder });
    assert.deepEqual([code, output], [0, "hello ada\n"]);
  } finally {
    await kill(worker);
  }
});

test("the program of the page about BullMQ compiles", async () => {
  const page = readFileSync(join(repository, "docs/from-bullmq.md"), "utf8");
  const diff = page.split("```diff\n")[1].split("```")[0].split("\n");
  const after = diff.filter((line) => !line.startsWith("-")).map((line) => line.slice(1)).join("\n");
  const config = { compilerOptions: COMPILER_OPTIONS, files: ["after.mts"] };
  const folder = write("bullmq", { "after.mts": after, "tsconfig.json": JSON.stringify(config) });
  const { code, output } = await run(process.env.GALLEY_TEST_TSC, ["-p", folder]);
  assert.equal(code, 0, output);
});

test("an unknown option is an error that names the nearest one", async () => {
  const client = new galley.Client();
  const refusals = [
    [() => client.enqueue("a", [], { priorty: 3 }), 'enqueue() has no option "priorty": did you mean "priority"?'],
    [() => client.enqueue("a", [], { idempotency_key: "x" }), 'no option "idempotency_key": did you mean "idempotencyKey"?'],
    [() => client.enqueue("a", [], { retry: { max_atempts: 1 } }), 'retry has no option "max_atempts": did you mean "max_attempts"?'],
    [() => client.job("a", [], { rate_limit: { rate: { limt: 1 } } }), 'rate_limit.rate has no option "limt": did you mean "limit"?'],
    [() => client.schedule(1, "a", [], { qeue: "x" }), 'did you mean "queue"?'],
    [() => client.publish("a", 1, { attribute: {} }), 'did you mean "attributes"?'],
    [() => client.subscribe("a", { lastid: "1-1" }), 'did you mean "lastId"?'],
    [() => new galley.Client(undefined, { patience: 3 }), 'did you mean "patienceMs"?'],
    [() => new galley.Worker({ concurency: 3 }), 'did you mean "concurrency"?'],
  ];
  for (const [call, message] of refusals) {
    await assert.rejects(async () => call(), (error) => error instanceof TypeError && error.message.includes(message), message);
  }
  await assert.rejects(async () => client.enqueue("a", [], { zzzzzz: 1 }), /has no option "zzzzzz"$/);
});

test("the options are those of the gateway", async () => {
  const described = JSON.parse(readFileSync(join(repository, "crates/gateway/openapi.json"), "utf8"));
  const { NewJob, RateLimit, RetryPolicy, Unique } = described.components.schemas;
  const names = ({ properties }) => Object.keys(properties).sort();
  const options = await load("options");
  const ofJobs = names(NewJob).filter((name) => !["type", "args", "options"].includes(name));
  assert.deepEqual([...options.JOB_OPTIONS].sort(), ofJobs);
  assert.deepEqual([...options.RETRY].sort(), names(RetryPolicy));
  assert.deepEqual([...options.UNIQUE].sort(), names(Unique));
  assert.deepEqual([...options.RATE_LIMIT].sort(), names(RateLimit));
  assert.deepEqual([...options.RATE].sort(), names(RateLimit.properties.rate));
  assert.deepEqual([...options.THROTTLE].sort(), names(RateLimit.properties.throttle));
});

test("a time is a date, milliseconds from now, or a text", async () => {
  const [client, queue] = [new galley.Client(), uniqueName()];
  const at = new Date(Date.now() + 3_600_000);
  const job = await client.schedule(at, "a", [], { queue });
  assert.equal(job.state, "scheduled");
  assert.equal(Date.parse(job.scheduled_at), at.getTime());
  const { spelled } = await load("options");
  assert.deepEqual([spelled(1500), spelled(-1), spelled("+PT5M")], ["+PT1.500S", "+PT0.000S", "+PT5M"]);
});
