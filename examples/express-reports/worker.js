// Builds the reports.
import { NoRetry, Worker } from "galley-jobs";

/** How long one page takes; less in the test. */
const PAGE_MS = Number(process.env.PAGE_MS ?? 1000);

const worker = new Worker({ queues: ["reports"], concurrency: 4 });

worker.job("report.build", async (ctx, title, pages) => {
  if (pages > 100) throw new NoRetry(`${pages} pages are too many: 100 at most`);
  const built = [];
  while (built.length < pages) {
    await new Promise((resolve) => setTimeout(resolve, PAGE_MS));
    // Cancelled, or this worker must stop
    ctx.signal.throwIfAborted();
    built.push(`${title}, page ${built.length + 1}`);
    await ctx.progress(built.length / pages, `page ${built.length} is built`);
  }
  return { title, pages: built };
});

await worker.run();
