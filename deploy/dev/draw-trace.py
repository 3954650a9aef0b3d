#!/usr/bin/env python3
"""Draws one trace as a waterfall, as pages such as Jaeger's show it: an SVG.

    otlp-receiver 127.0.0.1:4317 json > spans.jsonl
    draw-trace.py spans.jsonl TRACE_ID > trace.svg

The spans are lines of JSON as the receiver prints them. Without a trace id the trace with the most spans is drawn.
"""

import collections
import html
import json
import sys

WIDTH, NAMES, ROW, TOP = 1200, 470, 26, 84
COLOURS = {"gateway": "#2f6f9f", "queue-worker": "#3a8f5b", "pubsub-worker": "#b0642a"}
OTHER, ERROR = "#7a5ea8", "#c0392b"


def main() -> None:
    spans = [json.loads(line) for line in open(sys.argv[1], encoding="utf-8") if line.startswith("{")]
    counts = collections.Counter(span["trace_id"] for span in spans)
    trace_id = sys.argv[2] if len(sys.argv) > 2 else counts.most_common(1)[0][0]
    spans = [span for span in spans if span["trace_id"] == trace_id]
    print(draw(trace_id, spans))


def in_order(spans: list) -> list:
    """The spans with their depth, each before its children."""
    known = {span["span_id"] for span in spans}
    children = collections.defaultdict(list)
    for span in sorted(spans, key=lambda span: span["began"]):
        children[span["parent_span_id"] if span["parent_span_id"] in known else ""].append(span)
    rows = []

    def add(parent: str, depth: int) -> None:
        for span in children[parent]:
            rows.append((depth, span))
            add(span["span_id"], depth + 1)

    add("", 0)
    return rows


def text(x: float, y: float, words: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {more}>{html.escape(words)}</text>'


def draw(trace_id: str, spans: list) -> str:
    rows = in_order(spans)
    first, last = min(span["began"] for span in spans), max(span["ended"] for span in spans)
    scale = (WIDTH - NAMES - 110) / max(1, last - first)
    height = TOP + ROW * len(rows) + 16
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="system-ui, sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        text(16, 26, f"Trace {trace_id}", 'font-weight="600" font-size="15" fill="#222"'),
    ]
    services = sorted({span["service"] for span in spans})
    total = f"{len(spans)} spans of {len(services)} services, {(last - first) / 1e6:.1f} ms"
    out.append(text(16, 46, total, 'fill="#555"'))
    for number, service in enumerate(services):
        x = 16 + number * 140
        out.append(f'<rect x="{x}" y="56" width="11" height="11" fill="{COLOURS.get(service, OTHER)}"/>')
        out.append(text(x + 17, 66, service, 'fill="#333"'))
    for number, (depth, span) in enumerate(rows):
        y = TOP + number * ROW
        if number % 2 == 0:
            out.append(f'<rect x="0" y="{y}" width="{WIDTH}" height="{ROW}" fill="#f5f6f8"/>')
        colour = COLOURS.get(span["service"], OTHER)
        x = 16 + depth * 18
        out.append(f'<rect x="{x}" y="{y + 5}" width="4" height="{ROW - 10}" fill="{colour}"/>')
        attempt = span["attributes"].get("galley.job.attempt")
        name = span["name"] + (f" (attempt {attempt})" if attempt and span["name"].startswith("process") else "")
        fill = ERROR if span["is_error"] else "#222"
        out.append(text(x + 10, y + 17, name, f'fill="{fill}"'))
        start, length = NAMES + (span["began"] - first) * scale, max(2.0, (span["ended"] - span["began"]) * scale)
        bar = ERROR if span["is_error"] else colour
        out.append(f'<rect x="{start:.1f}" y="{y + 7}" width="{length:.1f}" height="{ROW - 14}" rx="2" fill="{bar}"/>')
        took = f"{(span['ended'] - span['began']) / 1e6:.2f} ms"
        out.append(text(start + length + 6, y + 17, took, 'fill="#555" font-size="11"'))
    out.append("</svg>")
    return "\n".join(out)


main()
