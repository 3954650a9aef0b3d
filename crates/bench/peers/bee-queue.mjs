// bee-queue: saveAll, one worker with 100 jobs at a time, without the options that its documentation says to switch off for
// speed. `keep` keeps finished jobs; its default is to remove them.
import Queue from "bee-queue";

const [task, jobs] = process.argv.slice(2);
const keep = process.env.PEER_KEEP === "1";
const queue = new Queue("bench", {
  redis: process.env.PEER_REDIS_URL,
  isWorker: task === "work",
  getEvents: false,
  sendEvents: false,
  storeJobs: false,
  removeOnSuccess: !keep,
});
await queue.ready();
if (task === "enqueue") {
  const data = ["x".repeat(200)];
  const began = performance.now();
  for (let sent = 0; sent < Number(jobs); sent += 1000) {
    await queue.saveAll(Array.from({ length: 1000 }, () => queue.createJob(data)));
  }
  console.log(`enqueued ${jobs} ${(performance.now() - began) / 1000}`);
  process.exit(0);
} else {
  queue.process(100, async () => null);
}
