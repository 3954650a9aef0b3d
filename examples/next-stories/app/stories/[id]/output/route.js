import { GalleyError } from "galley-jobs";
import { galley } from "../../../../galley.js";

/** Passes on what the handler streams. A browser that reconnects says what it saw last, and misses nothing. */
export async function GET(request, { params }) {
  const { id } = await params;
  const lastId = request.headers.get("last-event-id") ?? undefined;
  try {
    await galley.get(id);
  } catch (error) {
    if (!(error instanceof GalleyError)) throw error;
    return Response.json({ error: error.message }, { status: error.status });
  }
  const chunks = galley.output(id, { lastId, signal: request.signal });
  const text = new TextEncoder();
  const events = new ReadableStream({
    async pull(controller) {
      const { value: chunk, done } = await chunks.next();
      const write = (event, data, id) => {
        const head = id === undefined ? "" : `id: ${id}\n`;
        controller.enqueue(text.encode(`${head}event: ${event}\ndata: ${JSON.stringify(data)}\n\n`));
      };
      if (!done) return write("chunk", { attempt: chunk.attempt, chunk: chunk.data }, chunk.id);
      write("end", { state: (await galley.get(id)).state });
      controller.close();
    },
    cancel: () => chunks.return(),
  });
  return new Response(events, { headers: { "content-type": "text/event-stream", "cache-control": "no-cache" } });
}
