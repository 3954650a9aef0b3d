"""Follows an event stream with a common library and prints each event as a line of JSON.

python event_streams.py LIBRARY URL. The libraries leave reconnecting to their users: that is the loop below.
"""

import json
import sys
import time

library, url = sys.argv[1:]


def httpx_sse(headers):
    import httpx
    import httpx_sse

    with httpx.Client(timeout=None) as client, httpx_sse.connect_sse(client, "GET", url, headers=headers) as source:
        yield from source.iter_sse()


def sseclient(headers):
    import requests
    import sseclient

    response = requests.get(url, stream=True, headers={"Accept": "text/event-stream", **headers})
    response.raise_for_status()
    yield from sseclient.SSEClient(response).events()


last_id = None
while True:
    try:
        follow = {"httpx-sse": httpx_sse, "sseclient-py": sseclient}[library]
        for event in follow({"Last-Event-ID": last_id} if last_id else {}):
            last_id = event.id or last_id
            print(json.dumps({"event": event.event, "data": event.data, "id": event.id}), flush=True)
    except KeyError:
        raise
    except Exception as problem:
        print(problem, file=sys.stderr)
    time.sleep(0.1)
