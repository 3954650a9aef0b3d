// Sends what Redis publishes on the channel "news" to every client of socket.io. Only the WebSocket transport, which is its
// fastest; clients are not pinged while a measurement lasts, because those of the benchmark do not answer.
import { createServer } from "node:http";
import Redis from "ioredis";
import { Server } from "socket.io";

const http = createServer();
const io = new Server(http, { transports: ["websocket"], serveClient: false, pingInterval: 600_000 });
const redis = new Redis(process.env.PEER_REDIS_URL);
redis.on("message", (_channel, message) => io.emit("m", message));
await redis.subscribe("news");
http.listen({ host: "127.0.0.1", port: 0, backlog: 4096 }, () => console.log(`listening ${http.address().port}`));
