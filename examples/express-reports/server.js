// The pages: one orders a report, the other follows it while it is built.
import { fileURLToPath } from "node:url";
import express from "express";
import { Client, GalleyError, JobFailed } from "galley-jobs";

const galley = new Client();
const app = express();
const page = (name) => fileURLToPath(new URL(`public/${name}`, import.meta.url));

app.use(express.urlencoded({ extended: false }));
app.get("/", (request, response) => response.sendFile(page("index.html")));

app.post("/reports", async (request, response) => {
  const { title = "Report", pages = "5" } = request.body;
  const retry = { max_attempts: 5, initial_interval: "PT1S" };
  const job = await galley.enqueue("report.build", [title, Number(pages)], { queue: "reports", retry });
  response.redirect(303, `/reports/${job.id}`);
});

app.get("/reports/:id", (request, response) => response.sendFile(page("report.html")));

app.get("/reports/:id/events", async (request, response) => {
  const closed = new AbortController();
  response.on("close", () => closed.abort());
  // A browser that reconnects says what it saw last, and misses nothing
  const lastId = request.get("Last-Event-ID") ?? "0-0-0";
  response.type("text/event-stream").flushHeaders();
  for await (const { id, type, data } of galley.events(request.params.id, { lastId, signal: closed.signal })) {
    response.write(`id: ${id}\nevent: ${type}\ndata: ${JSON.stringify(data)}\n\n`);
  }
  response.end();
});

app.get("/reports/:id/result", async (request, response) => {
  try {
    response.json(await galley.result(request.params.id, { waitMs: 30_000 }));
  } catch (error) {
    if (!(error instanceof JobFailed)) throw error;
    response.status(422).json({ error: error.message });
  }
});

app.delete("/reports/:id", async (request, response) => response.json(await galley.cancel(request.params.id)));

app.use((error, request, response, next) => {
  if (response.headersSent) return next(error);
  response.status(error instanceof GalleyError ? error.status : 500).json({ error: error.message });
});

const server = app.listen(Number(process.env.PORT ?? 3000), "127.0.0.1", () => {
  console.log(`http://127.0.0.1:${server.address().port}/`);
});
