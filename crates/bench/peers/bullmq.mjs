// BullMQ: addBulk, one worker with 100 jobs at a time; completed jobs are kept, which is its default.
import { Queue, Worker } from "bullmq";
import Redis from "ioredis";

const [task, jobs] = process.argv.slice(2);
const connection = new Redis(process.env.PEER_REDIS_URL, { maxRetriesPerRequest: null });
if (task === "enqueue") {
  const queue = new Queue("bench", { connection });
  const data = ["x".repeat(200)];
  const bulk = Array.from({ length: 1000 }, () => ({ name: "noop", data }));
  const began = performance.now();
  for (let sent = 0; sent < Number(jobs); sent += bulk.length) await queue.addBulk(bulk);
  console.log(`enqueued ${jobs} ${(performance.now() - began) / 1000}`);
  process.exit(0);
} else {
  new Worker("bench", async () => null, { connection, concurrency: 100 });
}
