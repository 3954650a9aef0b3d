// Tells the stories, a word at a time, as a model would.
import { setTimeout as pause } from "node:timers/promises";
import { NoRetry, Worker } from "galley-jobs";

/** How long a word takes; less in the test. */
const WORD_MS = Number(process.env.WORD_MS ?? 200);

const worker = new Worker({ queues: ["stories"], concurrency: 4 });

worker.job("story.tell", async (ctx, hero) => {
  if (hero === "Nobody") throw new NoRetry("there is nothing to tell about nobody");
  const words = `Once upon a time ${hero} opened a galley, and every order was served once.`.split(" ");
  for (const word of words) {
    await pause(WORD_MS, undefined, { signal: ctx.signal });
    await ctx.stream(word);
  }
  return { words: words.length };
});

await worker.run();
