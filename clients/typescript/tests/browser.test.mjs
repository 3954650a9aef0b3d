// A page of another site follows a channel with the package, and misses nothing while the gateway restarts.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { galley, installed, uniqueName } from "./kit.mjs";
import { BROWSER_FLAGS, browserMissing, findBrowser, GatewayProcess, kill, removeFolder } from "./processes.mjs";

/** A browser that starts on a busy machine takes its time. */
const LIMIT_MS = 120_000;

const PAGE = `<!doctype html><script type="module">
import { Client } from "/esm/index.js";

const [gateway, channel] = new URLSearchParams(location.search).getAll("of");
const tell = (body) => fetch("/told", { method: "POST", body: JSON.stringify(body) });
try {
  const messages = await new Client(gateway).subscribe(channel).open();
  await tell("open");
  for await (const message of messages) await tell(message.data);
} catch (error) {
  await tell(String(error));
}
</script>`;

/** A site with the page, and what its page tells it, one after the other. */
async function startSite() {
  const told = [];
  let arrived = () => {};
  const server = createServer(async (request, response) => {
    if (request.method === "POST") {
      const pieces = await request.toArray();
      told.push(JSON.parse(Buffer.concat(pieces).toString()));
      arrived();
      return response.end();
    }
    const isModule = request.url.startsWith("/esm/");
    response.setHeader("content-type", isModule ? "text/javascript" : "text/html");
    return response.end(isModule ? readFileSync(join(installed, "dist", request.url)) : PAGE);
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  const next = async () => {
    while (told.length === 0) {
      await new Promise((resolve, reject) => {
        arrived = resolve;
        AbortSignal.timeout(LIMIT_MS).addEventListener("abort", () => reject(new Error("the page tells nothing")));
      });
    }
    return told.shift();
  };
  const stop = () => {
    server.closeAllConnections();
    server.close();
  };
  return { origin: `http://127.0.0.1:${server.address().port}`, next, stop };
}

test("a page misses nothing while the gateway restarts", { skip: browserMissing }, async () => {
  const browser = findBrowser();
  const [channel, site] = [uniqueName(), await startSite()];
  const settings = { GALLEY__GATEWAY__ALLOWED_ORIGINS: site.origin };
  const gateway = await new GatewayProcess(process.env.GALLEY_TEST_REDIS_URL, settings).start();
  const profile = mkdtempSync(join(tmpdir(), "galley-browser-"));
  const page = `${site.origin}/?${new URLSearchParams([["of", gateway.url], ["of", channel]])}`;
  const words = [...BROWSER_FLAGS, `--user-data-dir=${profile}`, "--remote-debugging-port=0", page];
  const child = spawn(browser, words, { stdio: "ignore" });
  try {
    const client = new galley.Client();
    assert.equal(await site.next(), "open");
    await client.publish(channel, 1);
    assert.equal(await site.next(), 1);
    await gateway.kill();
    await client.publish(channel, 2);
    await gateway.start();
    await client.publish(channel, 3);
    assert.deepEqual([await site.next(), await site.next()], [2, 3]);
  } finally {
    await kill(child, "SIGTERM");
    await gateway.kill();
    site.stop();
    await removeFolder(profile);
  }
});
