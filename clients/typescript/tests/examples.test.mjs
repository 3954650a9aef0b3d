// The example apps: the commands of their READMEs, run as they are but for the ports.
import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { cpSync, mkdtempSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { createInterface } from "node:readline";
import { test } from "node:test";
import { installed, repository, run } from "./kit.mjs";
import { BROWSER_FLAGS, browserMissing, findBrowser, removeFolder } from "./processes.mjs";

const libraries = process.env.GALLEY_TEST_NODE_FOLDER;

const PACK = /^\(cd \.\.\/\.\.\/clients\/typescript && .* npm pack/;

/** What `npm install` would bring: the packed package, and what `make test` installed, which must have the version that is named. */
function install(folder) {
  const { dependencies } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
  const { "galley-jobs": tarball, ...others } = dependencies;
  assert.match(tarball, /^file:\.\.\/\.\.\/clients\/typescript\/galley-jobs-/);
  assert.ok(tarball.endsWith(`-${JSON.parse(readFileSync(join(installed, "package.json"), "utf8")).version}.tgz`), tarball);
  // Next.js follows no symbolic links out of its folder; hard links need another copy where the folders are on two disks
  const [from, to] = [join(libraries, "node_modules"), join(folder, "node_modules")];
  const { status } = spawnSync("bash", ["-c", 'mkdir "$2"; cp -al "$1/." "$2" || cp -a "$1/." "$2"', "-", from, to]);
  assert.equal(status, 0);
  cpSync(installed, join(folder, "node_modules/galley-jobs"), { recursive: true });
  for (const [name, version] of Object.entries(others)) {
    const library = join(folder, "node_modules", name);
    assert.equal(JSON.parse(readFileSync(join(library, "package.json"), "utf8")).version, version, name);
  }
}

async function killGroup(service) {
  if (service.exitCode !== null || service.signalCode !== null) return;
  process.kill(-service.pid, "SIGKILL");
  await once(service, "exit");
}

/** Calls `work` with the commands of an example's README, and what runs them in a copy of it. */
async function withExample(name, variables, work) {
  const root = mkdtempSync(join(tmpdir(), "galley-examples-"));
  const folder = join(root, "examples", name);
  const isSource = (path) => !["node_modules", ".next"].includes(basename(path));
  cpSync(join(repository, "examples", name), folder, { recursive: true, filter: isSource });
  const blocks = readFileSync(join(folder, "README.md"), "utf8").split("```sh\n").slice(1);
  const env = { ...process.env, ...variables, PORT: "0" };
  const services = [];
  const start = (command) => {
    // A group of its own: npm starts others
    const service = spawn("bash", ["-c", `exec ${command}`], { cwd: folder, env, stdio: ["ignore", "pipe", "inherit"], detached: true });
    services.push(service);
    return service;
  };
  /** Starts a web server, and gives its address as soon as it tells it. */
  const startServer = async (command) => {
    const { stdout } = start(command);
    for await (const line of createInterface({ input: stdout })) {
      const [url] = line.match(/http:\/\/127\.0\.0\.1:\d+/) ?? [];
      if (url === undefined) continue;
      stdout.resume();
      return url;
    }
    throw new Error(`${command} has ended`);
  };
  const shell = async (command, url = "") => {
    const local = command.replaceAll("http://127.0.0.1:3000", url);
    const { code, output } = await run("bash", ["-euo", "pipefail", "-c", local], { cwd: folder, env });
    assert.equal(code, 0, output);
    return output;
  };
  try {
    install(folder);
    await work(blocks.map((block) => block.split("```")[0]), { start, startServer, shell });
  } finally {
    await Promise.all(services.map(killGroup));
    await removeFolder(root);
  }
}

/** The types of the events of a stream. */
const typesOf = (stream) => [...stream.matchAll(/^event: (.*)$/gm)].map(([, type]) => type);

test("the reports with Express do what their README says", async () => {
  await withExample("express-reports", { PAGE_MS: "100" }, async (commands, { start, startServer, shell }) => {
    const [pack, npmInstall, worker, server, good, bad] = commands;
    // Both would fetch: run.mjs packed the package, and `make test` installed the rest
    assert.match(pack, PACK);
    assert.match(npmInstall, /^npm install /);
    start(worker);
    const url = await startServer(server);
    const followed = await shell(good, url);
    const types = typesOf(followed);
    assert.deepEqual([types.filter((type) => type === "job.progress").length, types.at(-1)], [3, "job.completed"], followed);
    assert.ok(followed.endsWith('{"title":"Sales","pages":["Sales, page 1","Sales, page 2","Sales, page 3"]}'), followed);
    const failed = await shell(bad, url);
    assert.match(failed, /1000 pages are too many/);
    assert.match(failed, /"state":"cancelled"/);
  });
});

test("the stories with Next.js do what their README says", async () => {
  const variables = { WORD_MS: "1", NEXT_TELEMETRY_DISABLED: "1" };
  await withExample("next-stories", variables, async (commands, { start, startServer, shell }) => {
    const [pack, npmInstall, build, worker, server, good, bad] = commands;
    assert.match(pack, PACK);
    assert.match(npmInstall, /^npm install /);
    await shell(build);
    start(worker);
    const url = await startServer(server);
    const told = await shell(`${good}echo "story: $STORY"`, url);
    assert.deepEqual(typesOf(told), [...Array(14).fill("chunk"), "end"], told);
    assert.match(told, /^data: \{"attempt":1,"chunk":"Once"\}$/m);
    assert.match(told, /^data: \{"state":"completed"\}$/m);
    const [story] = told.match(/(?<=^story: ).*$/m);
    // A browser that lost its connection after the twelfth word
    const ids = [...told.matchAll(/^id: (.*)$/gm)].map(([, id]) => id);
    const rest = await shell(`curl -sN ${story}/output -H 'Last-Event-ID: ${ids[11]}'`);
    assert.deepEqual([typesOf(rest), rest.includes('"chunk":"served"')], [["chunk", "chunk", "end"], true], rest);
    if (!browserMissing) {
      // Its clock stands still while the page waits for the stream
      const words = [...BROWSER_FLAGS, "--user-data-dir=browser", "--virtual-time-budget=20000", "--dump-dom", story];
      const page = await shell(`${findBrowser()} ${words.join(" ")} 2>/dev/null`);
      assert.match(page, /<p id="story">Once upon a time Ann opened .* served once\.<\/p><p id="state">completed</, page);
    }
    assert.equal(await shell(`${good.split("curl -sN")[0]}echo "$STORY"`, url), `${story}\n`, "one form, one story");
    const [form] = good.split("\n");
    assert.match(await shell(`${form}\n${bad}`, url), /^event: end\ndata: \{"state":"discarded"\}$/m);
    assert.match(await shell(`curl -s ${url}/stories/00000000-0000-7000-8000-000000000000/output`), /"error":/);
  });
});
