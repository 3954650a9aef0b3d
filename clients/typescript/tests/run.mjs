// Packs the package, installs it in an empty project, starts Redis and a gateway, and runs the tests with them.
//
// GALLEY_TEST_BINARIES is the folder of the programs, else target/debug of the repository; GALLEY_TEST_REDIS_SERVER is the
// program of Redis, else redis-server; GALLEY_TEST_TSC is the compiler, else the one in node_modules;
// GALLEY_TEST_NODE_FOLDER has the libraries of the example app in its node_modules.
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { cpSync, mkdirSync, mkdtempSync, readdirSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { GatewayProcess, removeFolder, startRedis } from "./processes.mjs";

const tests = dirname(fileURLToPath(import.meta.url));
const source = dirname(tests);
const folder = mkdtempSync(join(tmpdir(), "galley-typescript-"));
const tsc = process.env.GALLEY_TEST_TSC ?? join(source, "node_modules/.bin/tsc");

function run(program, words, cwd) {
  // What an `npm` around this one told its scripts is none of its business
  const inherited = Object.entries(process.env).filter(([name]) => !name.startsWith("npm_"));
  const env = { ...Object.fromEntries(inherited), PATH: dirname(tsc) + delimiter + process.env.PATH };
  const { status, error } = spawnSync(program, words, { cwd, env, stdio: ["ignore", "ignore", "inherit"] });
  if (error !== undefined) throw error;
  if (status !== 0) throw new Error(`${program} ${words.join(" ")} ended with ${status}`);
}

/** An empty project with the packed package. */
function installPackage() {
  const [copy, project] = [join(folder, "package"), join(folder, "project")];
  mkdirSync(project);
  // The sources stay as they are: other tests compile them at the same time
  for (const name of readdirSync(source)) {
    if (!["node_modules", "dist", "tests"].includes(name)) cpSync(join(source, name), join(copy, name), { recursive: true });
  }
  run("npm", ["pack", "--silent", "--pack-destination", folder], copy);
  const tarball = readdirSync(folder).find((name) => name.endsWith(".tgz"));
  writeFileSync(join(project, "package.json"), "{}");
  run("npm", ["install", "--silent", "--offline", "--no-audit", "--no-fund", join(folder, tarball)], project);
  return project;
}

let status = 1;
let redis, gateway;
try {
  const project = installPackage();
  redis = await startRedis();
  gateway = await new GatewayProcess(redis.url).start();
  const env = { ...process.env, GALLEY_URL: gateway.url, GALLEY_TEST_REDIS_URL: redis.url };
  Object.assign(env, { GALLEY_TEST_PROJECT: project, GALLEY_TEST_TSC: tsc });
  delete env.GALLEY_KEY;
  const files = readdirSync(tests).filter((name) => name.endsWith(".test.mjs"));
  const words = ["--test", "--test-reporter=spec", ...files.map((name) => join(tests, name))];
  const [code] = await once(spawn(process.execPath, words, { env, stdio: "inherit" }), "exit");
  status = code ?? 1;
} finally {
  await gateway?.kill();
  await redis?.stop();
  await removeFolder(folder);
}
process.exitCode = status;
