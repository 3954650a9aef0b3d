"""The pages of the shop: `python -m flask --app shop run`."""

import uuid

import galley
from flask import Flask, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from tasks import app as tasks
from tasks import charge, confirm, pack

web = Flask(__name__)
PRICES = {"tea": 450, "cup": 900, "pot": 2400}


@web.get("/")
def shop() -> str:
    return render_template("shop.html", prices=PRICES, form=uuid.uuid4())


@web.post("/orders")
def order() -> ResponseReturnValue:
    items = [item for item in request.form.getlist("item") if item in PRICES]
    to = request.form.get("to", "")
    if not items or not to:
        return "say who you are and what you want\n", 400
    steps = [charge.job(to, sum(PRICES[item] for item in items)), pack.job(items), confirm.job()]
    # A form that is sent twice makes one order
    started = tasks.client.chain(*steps, name="order", idempotency_key=request.form.get("form"))
    return redirect(url_for("show", order=started["id"]), 303)


@web.get("/orders/<order>")
def show(order: str) -> str:
    started = tasks.client.get_workflow(order)
    return render_template("order.html", order=started, steps=[step_of(member) for member in started["members"]])


def step_of(member: galley.WorkflowMember) -> galley.WorkflowMember | galley.Job:
    """The job of a step. A step whose turn did not come is no job yet."""
    try:
        return tasks.client.get(member["id"])
    except galley.GalleyError as error:
        if error.status != 404:
            raise
        return member


@web.errorhandler(galley.GalleyError)
def refused(error: galley.GalleyError) -> ResponseReturnValue:
    return f"{error}\n", error.status


# `python -m flask --app shop` looks for this name
app = web
