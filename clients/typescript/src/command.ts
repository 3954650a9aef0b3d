#!/usr/bin/env node
/** `galley-worker ./app.js` runs the worker that a module exports. */

import type { Worker, WorkerOptions } from "./worker.js";

declare const process: {
  argv: string[];
  cwd(): string;
  exit(code: number): never;
};

const USAGE = `Usage: galley-worker MODULE [options]

Runs the worker that a module exports as its default or as "worker", until SIGTERM or Ctrl-C. The key is in GALLEY_KEY.

  -q, --queue NAME          repeatable; those of the worker unless given
  -c, --concurrency NUMBER  how many jobs run at once
      --lease SECONDS       without a heartbeat until others get a job
      --grace SECONDS       for running jobs on SIGTERM
      --url URL             of the gateway; that of the worker unless given
  -h, --help
`;

/** The command line, or the module, is wrong. */
class Wrong extends Error {}

async function main(words: string[]): Promise<number> {
  try {
    const { path, options } = await read(words);
    if (path === undefined) {
      console.log(USAGE);
      return 0;
    }
    const worker = await find(path);
    try {
      worker.configure(options);
    } catch (error) {
      throw new Wrong((error as Error).message);
    }
    await worker.run();
    return 0;
  } catch (error) {
    console.error("galley-worker:", error instanceof Wrong ? error.message : error);
    return error instanceof Wrong ? 2 : 1;
  }
}

async function read(words: string[]): Promise<{ path?: string; options: WorkerOptions }> {
  const text = { type: "string" } as const;
  const known = {
    queue: { ...text, short: "q", multiple: true },
    concurrency: { ...text, short: "c" },
    lease: text,
    grace: text,
    url: text,
    help: { type: "boolean", short: "h" },
  };
  const parsed = await parse({ args: words, options: known, allowPositionals: true });
  const { queue, concurrency, lease, grace, url, help } = parsed.values;
  if (help) return { options: {} };
  const [path, ...more] = parsed.positionals;
  if (path === undefined || more.length > 0) throw new Wrong("say which module, such as ./app.js");
  const options: WorkerOptions = {};
  if (queue !== undefined) options.queues = queue;
  if (concurrency !== undefined) options.concurrency = number("concurrency", concurrency);
  if (lease !== undefined) options.leaseMs = 1000 * number("lease", lease);
  if (grace !== undefined) options.graceMs = 1000 * number("grace", grace);
  if (url !== undefined) options.url = url;
  return { path, options };
}

interface Parsed {
  values: { queue?: string[]; concurrency?: string; lease?: string; grace?: string; url?: string; help?: boolean };
  positionals: string[];
}

async function parse(config: object): Promise<Parsed> {
  const { parseArgs } = await builtin<{ parseArgs(config: object): Parsed }>("node:util");
  try {
    return parseArgs(config);
  } catch (error) {
    throw new Wrong((error as Error).message);
  }
}

function number(option: string, text: string): number {
  const value = Number(text);
  if (!(value > 0)) throw new Wrong(`--${option} must be a number above 0, not ${text}`);
  return value;
}

/** The worker of a module, which may have the CommonJS half of this package: not the same class. */
async function find(path: string): Promise<Worker> {
  const { resolve } = await builtin<{ resolve(...parts: string[]): string }>("node:path");
  const { pathToFileURL } = await builtin<{ pathToFileURL(path: string): URL }>("node:url");
  const file = resolve(process.cwd(), path);
  const { existsSync } = await builtin<{ existsSync(path: string): boolean }>("node:fs");
  if (!existsSync(file)) throw new Wrong(`there is no ${file}`);
  const module = (await import(/* webpackIgnore: true */ pathToFileURL(file).href)) as Record<string, unknown>;
  const standard = module["default"] as Record<string, unknown> | undefined;
  const found = [module["worker"], standard, standard?.["worker"], standard?.["default"]].find(isWorker);
  if (found === undefined) throw new Wrong(`${path} exports no worker: as its default or as "worker"`);
  return found;
}

function isWorker(value: unknown): value is Worker {
  const { run, job, configure } = (value ?? {}) as Partial<Worker>;
  return [run, job, configure].every((method) => typeof method === "function");
}

function builtin<T>(name: string): Promise<T> {
  return import(name) as Promise<T>;
}

// What else the module keeps open, such as connections, must not keep the process
void main(process.argv.slice(2)).then((code) => process.exit(code));
