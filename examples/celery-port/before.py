"""An album is uploaded: its pictures are resized, it is published, and its owner is asked about it a day later."""

from celery import Celery, chord
from celery.schedules import crontab

app = Celery("photos", broker="redis://localhost:6379/0", backend="redis://localhost:6379/0", task_default_queue="photos")
app.conf.beat_schedule = {"sweep": {"task": "photos.sweep", "schedule": crontab(hour=3, minute=0)}}


@app.task(name="photos.resize", bind=True, max_retries=4)
def resize(self, name, width):
    if name.endswith(".part"):
        raise self.retry(countdown=30)
    return f"{width}/{name}"


@app.task(name="photos.publish")
def publish(pictures, owner):
    return f"{owner} shows {' and '.join(pictures)}"


@app.task(name="photos.ask")
def ask(owner, question="How was it?"):
    return f"{owner}: {question}"


@app.task(name="photos.sweep")
def sweep():
    return "swept"


def upload(owner, names):
    ask.apply_async((owner,), {"question": "Do you like it?"}, countdown=86400)
    return chord([resize.s(name, 800) for name in names])(publish.s(owner))


def preview(name):
    return resize.delay(name, width=80).get(timeout=30)


if __name__ == "__main__":
    upload("ada", ["sea.jpg", "hill.jpg"])
    print(preview("sea.jpg"))
