// The tarball, installed in an empty project, gives a job's result in under 20 lines.
import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { installed, repository, run, uniqueName, write } from "./kit.mjs";

const ESM = 'import { Client, Worker } from "galley-jobs";';
const CJS = 'const { Client, Worker } = require("galley-jobs");';
const PROGRAM = `
const queue = process.argv[2];
const worker = new Worker({ queues: [queue] });
worker.job("greet", (ctx, name) => "hello " + name);

async function main() {
  const working = worker.run();
  const galley = new Client();
  const job = await galley.enqueue("greet", ["ada"], { queue });
  console.log("result: " + (await galley.result(job.id)));
  worker.stop();
  await working;
}

main();
`;

for (const [name, head] of [["program.mjs", ESM], ["program.cjs", CJS]]) {
  test(`${name} gives a result in under 20 lines`, async () => {
    assert.ok((head + PROGRAM).trimEnd().split("\n").length < 20);
    const folder = write("programs", { [name]: head + PROGRAM });
    const { code, output } = await run(process.execPath, [name, uniqueName()], { cwd: folder });
    assert.equal(code, 0);
    assert.ok(output.split("\n").includes("result: hello ada"), output);
  });
}

test("the package is what it should be, and needs nothing else", () => {
  assert.deepEqual(readdirSync(installed).sort(), ["LICENSE", "README.md", "dist", "package.json"]);
  assert.equal(readFileSync(join(installed, "LICENSE"), "utf8"), readFileSync(join(repository, "LICENSE"), "utf8"));
  const { dependencies, name, private: isPrivate } = JSON.parse(readFileSync(join(installed, "package.json"), "utf8"));
  assert.deepEqual([name, dependencies, isPrivate], ["galley-jobs", undefined, undefined]);
});

for (const [name, module] of [["types.mts", "nodenext"], ["types.cts", "nodenext"], ["types.ts", "bundler"]]) {
  test(`the compiler finds the types of ${name}`, async () => {
    const options = { strict: true, noEmit: true, target: "es2022", lib: ["es2022", "dom"], types: [] };
    Object.assign(options, module === "bundler" ? { module: "esnext", moduleResolution: "bundler" } : { module });
    const files = {
      [name]: 'import { Client, type Job } from "galley-jobs";\nexport const job: Promise<Job> = new Client().get("x");\n',
      "tsconfig.json": JSON.stringify({ compilerOptions: options, files: [name] }),
    };
    const folder = write(`types-${name}`, files);
    const { code, output } = await run(process.env.GALLEY_TEST_TSC, ["-p", folder]);
    assert.equal(code, 0, output);
  });
}
