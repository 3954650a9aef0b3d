// What the tests share: the installed package, and the gateway that run.mjs started.
import { spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

export const project = process.env.GALLEY_TEST_PROJECT;
export const installed = join(project, "node_modules/galley-jobs");
export const source = fileURLToPath(new URL("..", import.meta.url));
export const repository = fileURLToPath(new URL("../../..", import.meta.url));
export const galley = await load("index");

/** A module of the installed package. */
export function load(name) {
  return import(pathToFileURL(join(installed, "dist/esm", `${name}.js`)).href);
}

/** A name for a queue, a channel or the like that no other test has. */
export function uniqueName() {
  return `t${randomUUID().slice(-12)}`;
}

/** Writes files into a folder of the project, where the package can be imported. */
export function write(folder, files) {
  mkdirSync(join(project, folder), { recursive: true });
  for (const [name, text] of Object.entries(files)) writeFileSync(join(project, folder, name), text);
  return join(project, folder);
}

/** Runs a program to its end: its exit code and what it wrote. */
export function run(program, words, options = {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(program, words, { stdio: ["ignore", "pipe", "inherit"], ...options });
    let output = "";
    child.stdout.setEncoding("utf8").on("data", (piece) => (output += piece));
    child.on("error", reject).on("close", (code) => resolve({ code, output }));
  });
}

/** Runs a worker while `work` does something. */
export async function withWorker(worker, work) {
  const running = worker.run();
  try {
    return await work();
  } finally {
    worker.stop();
    worker.stop();
    await running;
  }
}

/** What `look` gives as soon as it gives something. */
export async function eventually(look) {
  for (const deadline = Date.now() + 30_000; Date.now() < deadline; ) {
    const found = await look();
    if (found !== undefined) return found;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  throw new Error("waited in vain");
}
