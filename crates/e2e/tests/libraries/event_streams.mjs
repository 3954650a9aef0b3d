// Follows an event stream with a common library and prints each event as a line of JSON.
// node event_streams.mjs LIBRARY URL, in a folder with node_modules

import { createRequire } from "node:module";

const [library, url] = process.argv.slice(2);
const require = createRequire(`${process.cwd()}/`);

function print(event, data, id) {
  console.log(JSON.stringify({ event, data, id }));
}

function follow(source) {
  for (const name of ["begin", "message", "gap"]) {
    source.addEventListener(name, event => print(name, event.data, event.lastEventId));
  }
}

// What libraries for browsers expect
globalThis.window = globalThis;
globalThis.document = { hidden: false, readyState: "complete", addEventListener() {}, removeEventListener() {} };

switch (library) {
  case "eventsource2": {
    const EventSource = require("eventsource2");
    follow(new EventSource(url));
    break;
  }
  case "eventsource4": {
    const { EventSource } = require("eventsource4");
    follow(new EventSource(url));
    break;
  }
  case "event-source-polyfill": {
    const { EventSourcePolyfill } = require("event-source-polyfill");
    follow(new EventSourcePolyfill(url));
    break;
  }
  case "@microsoft/fetch-event-source": {
    const { fetchEventSource } = require("@microsoft/fetch-event-source");
    fetchEventSource(url, {
      openWhenHidden: true,
      onmessage: event => print(event.event, event.data, event.id),
    });
    break;
  }
  default:
    throw new Error(`no such library: ${library}`);
}
