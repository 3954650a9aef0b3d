// The example app: the commands of its README, run as they are but for the ports.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { cpSync, mkdirSync, mkdtempSync, readFileSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { createInterface } from "node:readline";
import { test } from "node:test";
import { installed, repository, run } from "./kit.mjs";
import { kill, removeFolder } from "./processes.mjs";

const libraries = process.env.GALLEY_TEST_NODE_FOLDER;

/** What `npm install` would bring: the packed package, and what `make test` installed, which must have the version that is named. */
function install(folder) {
  const { dependencies } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
  const { "galley-jobs": tarball, ...others } = dependencies;
  assert.match(tarball, /^file:\.\.\/\.\.\/clients\/typescript\/galley-jobs-/);
  assert.ok(tarball.endsWith(`-${JSON.parse(readFileSync(join(installed, "package.json"), "utf8")).version}.tgz`), tarball);
  mkdirSync(join(folder, "node_modules"));
  symlinkSync(installed, join(folder, "node_modules/galley-jobs"));
  for (const [name, version] of Object.entries(others)) {
    const library = join(libraries, "node_modules", name);
    assert.equal(JSON.parse(readFileSync(join(library, "package.json"), "utf8")).version, version, name);
    symlinkSync(library, join(folder, "node_modules", name));
  }
}

test("the reports with Express do what their README says", async () => {
  const root = mkdtempSync(join(tmpdir(), "galley-examples-"));
  const folder = join(root, "examples/express-reports");
  cpSync(join(repository, "examples/express-reports"), folder, {
    recursive: true,
    filter: (path) => basename(path) !== "node_modules",
  });
  const readme = readFileSync(join(folder, "README.md"), "utf8");
  const [pack, npmInstall, worker, server, good, bad] = readme.split("```sh\n").slice(1).map((block) => block.split("```")[0]);
  // Both would fetch: run.mjs packed the package, and `make test` installed the rest
  assert.match(pack, /^\(cd \.\.\/\.\.\/clients\/typescript && .* npm pack/);
  assert.match(npmInstall, /^npm install /);
  install(folder);
  const env = { ...process.env, PAGE_MS: "100", PORT: "0" };
  const shell = (command) => run("bash", ["-euo", "pipefail", "-c", command], { cwd: folder, env });
  const services = [];
  const start = (command) => {
    const service = spawn("bash", ["-c", `exec ${command}`], { cwd: folder, env, stdio: ["ignore", "pipe", "inherit"] });
    services.push(service);
    return service;
  };
  try {
    start(worker);
    const [url] = await once(createInterface({ input: start(server).stdout }), "line", { signal: AbortSignal.timeout(60_000) });
    const answer = async (command) => {
      const { code, output } = await shell(command.replaceAll("http://127.0.0.1:3000/", url));
      assert.equal(code, 0, output);
      return output;
    };
    const followed = await answer(good);
    const types = [...followed.matchAll(/^event: (.*)$/gm)].map(([, type]) => type);
    assert.deepEqual([types.filter((type) => type === "job.progress").length, types.at(-1)], [3, "job.completed"], followed);
    assert.ok(followed.endsWith('{"title":"Sales","pages":["Sales, page 1","Sales, page 2","Sales, page 3"]}'), followed);
    const failed = await answer(bad);
    assert.match(failed, /1000 pages are too many/);
    assert.match(failed, /"state":"cancelled"/);
  } finally {
    await Promise.all(services.map((service) => kill(service)));
    await removeFolder(root);
  }
});
