// With OpenTelemetry jobs belong to the active span, and handlers run in a span; without it traces go on all the same.
import assert from "node:assert/strict";
import { cpSync, mkdirSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { installed, run, uniqueName, write } from "./kit.mjs";

const libraries = process.env.GALLEY_TEST_NODE_FOLDER;

const PROGRAM = `
import { context, propagation, trace } from "@opentelemetry/api";
import { InMemorySpanExporter, NodeTracerProvider, SimpleSpanProcessor } from "@opentelemetry/sdk-trace-node";
import { Client, Worker } from "galley-jobs";

const exporter = new InMemorySpanExporter();
new NodeTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] }).register();
const queue = process.argv[2];
const client = new Client();
const worker = new Worker({ queues: [queue] });
let inner, seen;
worker.job("outer", async (ctx) => {
  seen = propagation.getBaggage(context.active())?.getEntry("tenant")?.value;
  inner = await client.enqueue("inner", [], { queue, retry: { max_attempts: 1 } });
});
worker.job("inner", () => { throw new Error("no"); });
const working = worker.run();
const baggage = propagation.createBaggage({ tenant: { value: "a" } });
await context.with(propagation.setBaggage(context.active(), baggage), () =>
  trace.getTracer("test").startActiveSpan("request", async (span) => {
    const job = await client.enqueue("outer", [], { queue });
    await client.result(job);
    await client.result(inner).catch(() => {});
    span.end();
  }),
);
worker.stop();
await working;
const spans = exporter.getFinishedSpans().map((span) => ({
  name: span.name, code: span.status.code, trace: span.spanContext().traceId, attempt: span.attributes["galley.job.attempt"],
}));
console.log(JSON.stringify({ spans, seen, inner: inner.traceparent, baggage: (await client.get(inner)).baggage }));
`;

test("jobs are part of the trace of the active span, and handlers have spans", { skip: libraries === undefined }, async () => {
  const folder = write("otel", { "program.mjs": PROGRAM });
  mkdirSync(join(folder, "node_modules"));
  // A copy: it looks for OpenTelemetry from where it is
  cpSync(installed, join(folder, "node_modules/galley-jobs"), { recursive: true });
  symlinkSync(join(libraries, "node_modules/@opentelemetry"), join(folder, "node_modules/@opentelemetry"));
  const { code, output } = await run(process.execPath, ["program.mjs", uniqueName()], { cwd: folder });
  assert.equal(code, 0, output);
  const { spans, seen, inner, baggage } = JSON.parse(output.trim().split("\n").at(-1));
  const of = (name) => spans.filter((span) => span.name === name);
  const [request] = of("request");
  assert.equal(of("process outer").length, 1);
  assert.ok(of("process inner").length >= 1);
  assert.deepEqual([...new Set(spans.map(({ trace }) => trace))], [request.trace]);
  assert.deepEqual([of("process outer")[0].code, of("process inner")[0].code, of("process inner")[0].attempt], [0, 2, 1]);
  assert.ok(inner.startsWith(`00-${request.trace}-`), inner);
  assert.deepEqual([seen, baggage], ["a", "tenant=a"]);
});
