"""What the shop does with an order: three steps, one after the other. `galley-worker tasks:app` runs them."""

import os

import galley

app = galley.App()
#: How long one item takes; less in the test.
PACKING_S = float(os.environ.get("PACKING_S", "1"))


@app.task("order.charge", queue="shop", retry={"max_attempts": 5})
def charge(to: str, cents: int) -> dict[str, object]:
    if "@" not in to:
        raise galley.NoRetry(f"{to!r} is no address")
    # The id is the same in each attempt: a payment service that gets it charges once
    return {"payment": galley.current().id, "to": to, "cents": cents}


@app.task("order.pack", queue="shop")
def pack(items: list[str]) -> list[str]:
    context = galley.current()
    packed: list[str] = []
    for item in items:
        if context.cancelled.wait(PACKING_S):
            raise galley.Retry("the packing was stopped")
        packed.append(item)
        context.progress(len(packed) / len(items), f"{item} is packed")
        context.log(f"{item} is packed")
    return packed


@app.task("order.confirm", queue="shop")
def confirm() -> str:
    charged, packed = galley.current().parent_results
    return f"{charged['to']} paid {charged['cents'] / 100:.2f} for {' and '.join(packed)}"
