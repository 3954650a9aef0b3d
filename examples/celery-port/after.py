"""An album is uploaded: its pictures are resized, it is published, and its owner is asked about it a day later."""

import galley

app = galley.App()


@app.task("photos.resize", queue="photos", retry={"max_attempts": 5})
def resize(name, width):
    if name.endswith(".part"):
        raise galley.Retry("the upload goes on", after=30)
    return f"{width}/{name}"


@app.task("photos.publish", queue="photos")
def publish(owner):
    return f"{owner} shows {' and '.join(galley.current().parent_results)}"


@app.task("photos.ask", queue="photos")
def ask(owner, question="How was it?"):
    return f"{owner}: {question}"


@app.task("photos.sweep", queue="photos")
def sweep():
    return "swept"


def upload(owner, names):
    ask.schedule(86400, owner, question="Do you like it?")
    return app.client.batch(*[resize.job(name, 800) for name in names], on_success=publish.job(owner))


def preview(name):
    return resize.delay(name, width=80).wait(30)


if __name__ == "__main__":
    app.client.set_cron("sweep", "0 3 * * *", sweep.job())
    upload("ada", ["sea.jpg", "hill.jpg"])
    print(preview("sea.jpg"))
