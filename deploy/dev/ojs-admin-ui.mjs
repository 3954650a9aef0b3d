// Serves the built admin UI of the Open Job Spec under /ojs/admin and passes everything else on to a gateway, so that the
// browser sees one origin. Usage: node ojs-admin-ui.mjs FOLDER GATEWAY_URL. Prints its own URL.
import { createReadStream, existsSync, statSync } from 'node:fs';
import { createServer, request } from 'node:http';
import { extname, join, normalize } from 'node:path';

const [folder, gateway] = process.argv.slice(2);
const TYPES = { '.html': 'text/html', '.js': 'text/javascript', '.css': 'text/css', '.svg': 'image/svg+xml' };

function sendFile(path, response) {
  const inside = normalize(path).replace(/^(\.\.[/\\])+/, '');
  // Pages are made by the script: they are no files
  const asset = inside.includes('/assets/') ? inside.slice(inside.indexOf('/assets/')) : inside;
  const file = join(folder, asset);
  const found = existsSync(file) && statSync(file).isFile() ? file : join(folder, 'index.html');
  response.writeHead(200, { 'content-type': TYPES[extname(found)] ?? 'application/octet-stream' });
  createReadStream(found).pipe(response);
}

function passOn(incoming, response) {
  const target = new URL(incoming.url, gateway);
  const headers = { ...incoming.headers, host: target.host };
  // The page and the gateway are one site here
  delete headers.origin;
  delete headers.referer;
  for (const name of Object.keys(headers)) if (name.startsWith('sec-fetch-')) delete headers[name];
  const outgoing = request(target, { method: incoming.method, headers }, (answer) => {
    response.writeHead(answer.statusCode, answer.headers);
    answer.pipe(response);
  });
  outgoing.on('error', () => response.writeHead(502).end());
  incoming.pipe(outgoing);
}

const server = createServer((incoming, response) => {
  const path = new URL(incoming.url, 'http://localhost').pathname;
  if (path === '/ojs/admin' || path.startsWith('/ojs/admin/')) sendFile(path.slice('/ojs/admin'.length), response);
  else passOn(incoming, response);
});
server.listen(0, '127.0.0.1', () => console.log(`http://127.0.0.1:${server.address().port}`));
