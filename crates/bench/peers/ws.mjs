// Sends what Redis publishes on the channel "news" to every WebSocket, with `ws` as its documentation shows it.
import Redis from "ioredis";
import { WebSocket, WebSocketServer } from "ws";

const server = new WebSocketServer({ host: "127.0.0.1", port: 0, backlog: 4096, perMessageDeflate: false });
const redis = new Redis(process.env.PEER_REDIS_URL);
redis.on("messageBuffer", (_channel, message) => {
  for (const client of server.clients) {
    if (client.readyState === WebSocket.OPEN) client.send(message, { binary: false });
  }
});
await redis.subscribe("news");
console.log(`listening ${server.address().port}`);
