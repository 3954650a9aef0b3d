// galley-worker runs what a module exports, with middleware.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { test } from "node:test";
import { galley, project, run, source, uniqueName, withWorker, write } from "./kit.mjs";
import { kill } from "./processes.mjs";

const { Client, Worker } = galley;
const command = join(project, "node_modules/.bin/galley-worker");
/** For each thing that is waited for, also on a machine that is ten times slower. */
const limit = () => ({ signal: AbortSignal.timeout(120_000) });

const HANDLER = 'worker.job("greet", (ctx, name) => `hello ${name}`);\nsetInterval(() => {}, 1000);\n';
const MODULES = {
  "named.mjs": `import { Worker } from "galley-jobs";\nexport const worker = new Worker();\n${HANDLER}`,
  "standard.mjs": `import { Worker } from "galley-jobs";\nconst worker = new Worker();\nexport default worker;\n${HANDLER}`,
  "common.cjs": `const { Worker } = require("galley-jobs");\nconst worker = new Worker();\nmodule.exports = { worker };\n${HANDLER}`,
  "none.mjs": "export const worker = 7;\n",
  "broken.mjs": 'throw new RangeError("no such thing");\n',
};

for (const module of ["named.mjs", "standard.mjs", "common.cjs"]) {
  test(`galley-worker runs ${module}, and ends though the module keeps something open`, async () => {
    const [folder, queue] = [write("command", MODULES), uniqueName()];
    const words = [`./${module}`, "--queue", queue, "-c", "3", "--lease", "5", "--grace", "2"];
    const child = spawn(command, words, { cwd: folder, stdio: ["ignore", "pipe", "inherit"] });
    try {
      const [line] = await once(createInterface({ input: child.stdout }), "line", limit());
      assert.ok(line.endsWith(`works on ${queue}`), line);
      assert.equal(await new Client().wait("greet", ["ada"], { queue }), "hello ada");
      child.kill("SIGTERM");
      const [code] = await once(child, "exit", limit());
      assert.equal(code, 0);
    } finally {
      await kill(child);
    }
  });
}

test("galley-worker says what is wrong", async () => {
  const folder = write("command", MODULES);
  const ends = async (...words) => {
    const child = spawn(command, words, { cwd: folder, stdio: ["ignore", "pipe", "pipe"] });
    let said = "";
    child.stderr.on("data", (piece) => (said += piece));
    const [code] = await once(child, "close", limit());
    return [code, said];
  };
  for (const [words, expected, message] of [
    [[], 2, /say which module/],
    [["./missing.mjs"], 2, /there is no .*missing\.mjs/],
    [["./none.mjs"], 2, /exports no worker/],
    [["./named.mjs", "--concurency", "3"], 2, /concurency/],
    [["./named.mjs", "-c", "many"], 2, /--concurrency must be a number above 0/],
    [["./named.mjs", "--lease", "0.5"], 2, /leaseMs at least 1000/],
    [["./named.mjs", "--url", "nowhere"], 2, /URL/],
    [["./broken.mjs"], 1, /no such thing/],
  ]) {
    const [code, said] = await ends(...words);
    assert.equal(code, expected, said);
    assert.match(said, message);
  }
  const { code, output } = await run(command, ["--help"]);
  assert.equal(code, 0);
  const known = [...output.matchAll(/--[a-z]+/g)].map(([option]) => option).filter((option) => option !== "--help");
  const readme = readFileSync(join(source, "README.md"), "utf8");
  const table = readme.slice(readme.indexOf("## The command"), readme.indexOf("## Middleware"));
  assert.deepEqual([...new Set(table.match(/`--[a-z]+`/g))].sort(), known.map((option) => `\`${option}\``).sort());
});

test("middleware runs around each attempt, the first one outermost, and may give another result", async () => {
  const [queue, seen] = [uniqueName(), []];
  const worker = new Worker({ queues: [queue] });
  worker.use(async (ctx, next) => {
    seen.push(`first ${ctx.attempt}`);
    try {
      return `<${await next()}>`;
    } finally {
      seen.push("first is over");
    }
  });
  worker.use((ctx, next) => {
    seen.push("second");
    if (ctx.job.args[0] === "refused" && ctx.attempt === 1) throw new Error("not now");
    return next();
  });
  worker.job("echo", (ctx, what) => what);
  const client = new Client();
  await withWorker(worker, async () => {
    assert.equal(await client.wait("echo", ["a"], { queue }), "<a>");
    const retry = { max_attempts: 2, initial_interval: "PT0.1S", jitter: false };
    const job = await client.enqueue("echo", ["refused"], { queue, retry });
    assert.equal(await client.result(job), "<refused>");
    assert.equal((await client.get(job)).errors[0].message, "not now");
  });
  const around = (attempt) => [`first ${attempt}`, "second", "first is over"];
  assert.deepEqual(seen, [...around(1), ...around(1), ...around(2)]);
  const jobs = client.inline(worker);
  assert.equal(await client.wait("echo", ["b"]), "<b>");
  jobs.end();
});
