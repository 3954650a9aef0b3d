//! Workers in the languages of `clients/` whose outcomes are hard to tell, and whose handlers enqueue.

/// Handlers that end with text that UTF-8 cannot carry, with what JSON does not have, or nested too deeply.
pub(crate) const ODD_WORKER_PY: &str = r#"
import os
from galley import Client, NoRetry, Worker

worker = Worker(queues=["mail"])
name = os.fsdecode(b"caf\xe9")

class Unshown(Exception):
    def __str__(self):
        raise ValueError("no text")

@worker.job("odd.failure")
def failure(ctx):
    ctx.progress(0.5, name)
    raise NoRetry(f"no file {name}")

@worker.job("odd.result")
def result(ctx):
    return [name, {name: "\ud83d\ude00"}]

@worker.job("odd.deep")
def deep(ctx):
    value = []
    for _ in range(100):
        value = [value]
    return value

@worker.job("odd.unshown")
def unshown(ctx):
    raise NoRetry(Unshown()) from Unshown()

@worker.job("odd.outer")
def outer(ctx):
    return Client().enqueue("odd.inner", queue="nested")["id"]

worker.run()
"#;
pub(crate) const ODD_WORKER_TS: &str = r#"
import { Client, NoRetry, Worker } from "galley-jobs";

const name = "caf" + "\u{1f600}".slice(0, 1);

await new Worker({ queues: ["mail"] })
  .job("odd.failure", async (ctx) => {
    await ctx.progress(0.5, name);
    throw new NoRetry(`no file ${name}`);
  })
  .job("odd.result", () => [name, { [name]: "\u{1f600}" }])
  .job("odd.deep", () => {
    let value: unknown[] = [];
    for (let n = 0; n < 100; n++) value = [value];
    return value;
  })
  .job("odd.unshown", () => {
    throw Object.assign(new NoRetry("x"), { message: Object.create(null) });
  })
  .job("odd.outer", async (ctx) => {
    await ctx.progress(0.5);
    return (await new Client().enqueue("odd.inner", [], { queue: "nested" })).id;
  })
  .run();
"#;
