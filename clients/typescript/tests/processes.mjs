// Redis servers and gateways for the tests.
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync } from "node:fs";
import { rm } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const binaries = process.env.GALLEY_TEST_BINARIES ?? fileURLToPath(new URL("../../../target/debug", import.meta.url));

const BROWSERS = ["chromium", "chromium-browser", "google-chrome"];
const browser = BROWSERS.find((name) => spawnSync(name, ["--version"]).status === 0);

export const BROWSER_FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"];

/** Why tests with a browser are skipped; false if they are not. */
export const browserMissing = browser === undefined && process.env.CI !== "true" ? "there is no Chromium" : false;

/** The name of a browser. */
export function findBrowser() {
  if (browser === undefined) throw new Error("there is no Chromium: CI=true makes this an error");
  return browser;
}

async function freePort() {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  await once(server, "close");
  return port;
}

/** The first line of a program's output that `wanted` gives something for. */
async function firstOf(child, wanted) {
  for await (const line of createInterface({ input: child.stdout })) {
    const found = wanted(line);
    if (found !== undefined) {
      child.stdout.resume();
      return found;
    }
  }
  throw new Error(`${child.spawnfile} does not start`);
}

/** Starts a Redis server. */
export async function startRedis() {
  const folder = mkdtempSync(join(tmpdir(), "galley-redis-"));
  const program = process.env.GALLEY_TEST_REDIS_SERVER ?? "redis-server";
  for (let tries = 1; ; tries++) {
    const port = await freePort();
    const options = ["--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", folder];
    const child = spawn(program, options.map(String), { stdio: ["ignore", "pipe", "inherit"] });
    try {
      await firstOf(child, (line) => (line.includes("Ready to accept connections") ? true : undefined));
    } catch (error) {
      await kill(child);
      // The port is free until somebody else takes it in the moment between: then another one
      if (tries < 10) continue;
      await removeFolder(folder);
      throw error;
    }
    const stop = async () => {
      await kill(child);
      await removeFolder(folder);
    };
    return { url: `redis://127.0.0.1:${port}`, stop };
  }
}

/** A gateway, which may be killed and started again at the same address. */
export class GatewayProcess {
  address = "127.0.0.1:0";

  constructor(redisUrl, settings = {}) {
    this.redisUrl = redisUrl;
    this.settings = settings;
  }

  async start() {
    const variables = {
      GALLEY__REDIS__URL: this.redisUrl,
      GALLEY__GATEWAY__LISTEN: this.address,
      GALLEY__LOG__FORMAT: "json",
      GALLEY__MAINTENANCE__SWEEP_MS: "100",
      // A Redis that stands still for a moment is not away
      GALLEY__REDIS__CONNECT_TIMEOUT_MS: "20000",
      GALLEY__REDIS__RESPONSE_TIMEOUT_MS: "20000",
      ...this.settings,
    };
    const options = { env: { ...process.env, ...variables }, stdio: ["ignore", "pipe", "inherit"] };
    this.child = spawn(join(binaries, "gateway"), [], options);
    this.address = await firstOf(this.child, (line) => {
      const told = JSON.parse(line);
      return String(told.event).endsWith(".listening") ? told.address : undefined;
    });
    return this;
  }

  get url() {
    return `http://${this.address}`;
  }

  kill() {
    return kill(this.child);
  }
}

/** Kills a process and waits for its end. */
export async function kill(child, signal = "SIGKILL") {
  if (child.exitCode !== null || child.signalCode !== null) return;
  child.kill(signal);
  await once(child, "exit");
}

/**
 * Removes a folder of a test. The children of a browser outlive it for a moment and write on: what they leave is worth a line,
 * and no failure.
 */
export async function removeFolder(path) {
  try {
    await rm(path, { recursive: true, force: true, maxRetries: 10, retryDelay: 100 });
  } catch (error) {
    console.error(`${path} is left: ${error.message}`);
  }
}
