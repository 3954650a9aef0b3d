"""``galley-worker module:app`` runs the tasks of an app. (``galley`` is the command line of the server.)"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys

from ._app import App
from ._errors import nearest
from ._reload import run_reloading


def find_app(where: str) -> App:
    name, colon, attribute = where.partition(":")
    if not colon or not name or not attribute:
        raise ValueError(f"say module:app, such as shop.tasks:app, not {where!r}")
    # As `python -m` does, so that the program need not be installed
    sys.path.insert(0, os.getcwd())
    module = importlib.import_module(name)
    app = getattr(module, attribute, None)
    if not isinstance(app, App):
        apps = [known for known, value in vars(module).items() if isinstance(value, App)]
        raise ValueError(f"{name} has no galley.App called {attribute!r}{nearest(attribute, apps)}")
    return app


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="galley-worker",
        description="Runs the tasks of an app until SIGTERM or Ctrl-C. The key is in GALLEY_KEY.",
        # What is removed for the process that --reload starts must be spelt out
        allow_abbrev=False,
    )
    parser.add_argument("app", metavar="module:app", help="where the galley.App is, such as shop.tasks:app")
    parser.add_argument(
        "-q", "--queue", action="append", dest="queues", help="repeatable; those of the tasks unless given"
    )
    parser.add_argument("-c", "--concurrency", type=int, default=4, help="how many jobs run at once (4)")
    parser.add_argument(
        "--lease", type=float, default=30.0, help="seconds without heartbeat until others get a job (30)"
    )
    parser.add_argument("--grace", type=float, default=25.0, help="seconds for running jobs on SIGTERM (25)")
    parser.add_argument("--url", help="of the gateway; GALLEY_URL unless given")
    parser.add_argument("--reload", action="store_true", help="for development: start again when a *.py file changes")
    given = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(given)
    if options.reload:
        return run_reloading([argument for argument in given if argument != "--reload"])
    if options.url:
        os.environ["GALLEY_URL"] = options.url
    try:
        app = find_app(options.app)
        worker = app.worker(
            queues=options.queues, concurrency=options.concurrency, lease=options.lease, grace=options.grace
        )
    except (ValueError, ModuleNotFoundError) as error:
        print(f"galley-worker: {error}", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    worker.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
