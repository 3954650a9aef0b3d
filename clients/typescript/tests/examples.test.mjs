// The example app: the commands of its README, run as they are but for the ports.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { copyFileSync, cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { createInterface } from "node:readline";
import { test } from "node:test";
import { repository, run } from "./kit.mjs";
import { kill } from "./processes.mjs";

const tarball = process.env.GALLEY_TEST_TARBALL;

test("the reports with Express do what their README says", async () => {
  const root = mkdtempSync(join(tmpdir(), "galley-examples-"));
  const folder = join(root, "examples/express-reports");
  cpSync(join(repository, "examples/express-reports"), folder, {
    recursive: true,
    filter: (path) => basename(path) !== "node_modules",
  });
  mkdirSync(join(root, "clients/typescript"), { recursive: true });
  copyFileSync(tarball, join(root, "clients/typescript", basename(tarball)));

  const readme = readFileSync(join(folder, "README.md"), "utf8");
  const [pack, install, worker, server, good, bad] = readme.split("```sh\n").slice(1).map((block) => block.split("```")[0]);
  // run.mjs did what this one says: the tarball is there
  assert.match(pack, /^\(cd \.\.\/\.\.\/clients\/typescript && .* npm pack/);
  const inherited = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("npm_")));
  // What the tests installed before is in npm's cache
  const env = { ...inherited, npm_config_prefer_offline: "true", PAGE_MS: "10", PORT: "0" };
  const shell = (command) => run("bash", ["-euo", "pipefail", "-c", command], { cwd: folder, env });
  const services = [];
  const start = (command) => {
    const service = spawn("bash", ["-c", `exec ${command}`], { cwd: folder, env, stdio: ["ignore", "pipe", "inherit"] });
    services.push(service);
    return service;
  };
  try {
    assert.equal((await shell(install)).code, 0);
    start(worker);
    const [url] = await once(createInterface({ input: start(server).stdout }), "line");
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
    rmSync(root, { recursive: true });
  }
});
