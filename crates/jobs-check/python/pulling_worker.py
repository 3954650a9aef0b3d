"""The worker of a run that pulls: clients/python, with a handler that writes down what it does."""

import os

import check_history
from galley import Context, Worker

folder, name = os.environ["JOBS_CHECK_FOLDER"], os.environ["JOBS_CHECK_NAME"]
worker = Worker(queues=["check.pull"], concurrency=8, lease=float(os.environ["JOBS_CHECK_LEASE"]), grace=1.0)


@worker.job("check.pull")
def handle(ctx: Context, *args: object) -> dict:
    metadata = ctx.job.get("metadata") or {}
    cron = f"{metadata['cron_name']} {metadata['cron_triggered_at']}" if "cron_triggered_at" in metadata else None
    result = check_history.run(folder, name, name, ctx.id, ctx.attempt, list(args), cron)
    if result is None:
        raise RuntimeError("as planned")
    return result


worker.run()
