"""The program of a run: it gets the job on standard input, and writes down what it does."""

import json
import os
import sys

import check_history

folder, name = os.environ["JOBS_CHECK_FOLDER"], os.environ["JOBS_CHECK_NAME"]
job = json.load(sys.stdin)
attempt = int(os.environ["GALLEY_ATTEMPT"])
result = check_history.run(folder, f"program-{name}", name, os.environ["GALLEY_JOB_ID"], attempt, job["args"])
if result is None:
    sys.exit(1)
print(json.dumps(result))
