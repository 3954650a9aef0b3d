#!/usr/bin/env python3
"""Checks rules, dashboards and the runbook of deploy/observability against each other and against the metrics of Galley, with
promtool of Prometheus: every expression is parsed, every metric exists, every alert has unit tests and a paragraph.

`--write` writes the rules of k8s/components/monitoring, which are the same. Needs promtool (Debian's package prometheus) and
PyYAML. An argument names another root of the repository, for the test that breaks a copy.
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile

import yaml

FOLDER = "deploy/observability"
RULES = (f"{FOLDER}/rules/recording.yml", f"{FOLDER}/rules/alerts.yml")
TESTS = f"{FOLDER}/alerts.test.yml"
K8S = "k8s/components/monitoring/prometheus-rule.yaml"
RUNBOOK = "docs/observability.md"
DASHBOARDS = {"overview", "queue", "channels", "redis"}
# What Prometheus has itself
OWN = {"up", "ALERTS"}
K8S_HEAD = """\
# The rules of deploy/observability/rules. Written by deploy/dev/check-observability.py --write, and checked by make test.
"""

arguments = [argument for argument in sys.argv[1:] if argument != "--write"]
root = pathlib.Path(arguments[0] if arguments else pathlib.Path(__file__).parent / "../..").resolve()


def read(path):
    return (root / path).read_text(encoding="utf-8")


def rules_for_kubernetes():
    groups = [group for path in RULES for group in yaml.safe_load(read(path))["groups"]]
    rule = {"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule",
            "metadata": {"name": "galley", "namespace": "galley"}, "spec": {"groups": groups}}
    return K8S_HEAD + yaml.safe_dump(rule, sort_keys=False, width=1000)


def promtool(*words):
    run = subprocess.run(["promtool", *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=root)
    if run.returncode != 0:
        yield f"promtool {' '.join(map(str, words[:2]))}: {run.stdout.strip()}"


def metrics_of_galley():
    """With the labels of each, and the series of histograms."""
    rows = re.findall(r"^\| `((?:galley|process)_\w+)` \| (\w+) \|([^|]*)\|", read("docs/reference/metrics.md"), re.MULTILINE)
    known = {}
    for name, kind, labels in rows:
        labels = set(re.findall(r"`(\w+)`", labels)) | {"job", "instance", "namespace"}
        names = [name] if kind != "histogram" else [f"{name}_{suffix}" for suffix in ("bucket", "sum", "count")]
        known |= {series: labels | ({"le"} if series.endswith("_bucket") else set()) for series in names}
    return known


def problems_of_expression(expression, known):
    recorded = {rule["record"] for group in yaml.safe_load(read(RULES[0]))["groups"] for rule in group["rules"]}
    # What stands in quotes is no name
    code = re.sub(r'"[^"]*"', '""', expression)
    for name in re.findall(r"\b(?:galley|process)_\w+|\b[\w]*:[\w:]+", code):
        if ":" in name and name not in recorded:
            yield f"there is no recording rule {name}"
        elif ":" not in name and name not in known:
            yield f"there is no metric {name}"
    for name, selector in re.findall(r"\b((?:galley|process)_\w+)\{([^}]*)\}", code):
        for label in re.findall(r"(\w+)\s*[=!]", selector):
            if label not in known.get(name, {label}):
                yield f"{name} has no label {label}"


def problems_of_rules(known):
    yield from promtool("check", "rules", *RULES)
    yield from promtool("test", "rules", TESTS)
    alerts = []
    for path in RULES:
        for rule in (rule for group in yaml.safe_load(read(path))["groups"] for rule in group["rules"]):
            name = rule.get("alert") or rule["record"]
            yield from (f"{path}: {name}: {problem}" for problem in problems_of_expression(rule["expr"], known))
            alerts += [rule] if "alert" in rule else []
    tests = yaml.safe_load(read(TESTS))["tests"]
    fired = {check["alertname"] for test in tests for check in test["alert_rule_test"] if check.get("exp_alerts")}
    quiet = {check["alertname"] for test in tests for check in test["alert_rule_test"] if not check.get("exp_alerts")}
    headings = set(re.findall(r"^### (Galley\w+)$", read(RUNBOOK), re.MULTILINE))
    names = {alert["alert"] for alert in alerts}
    for alert in alerts:
        name = alert["alert"]
        if set(alert["annotations"]) != {"summary", "runbook_url"} or set(alert["labels"]) != {"severity"}:
            yield f"{name}: it needs severity, summary and runbook_url, and nothing else"
        elif not alert["annotations"]["runbook_url"].endswith(f"/{RUNBOOK}#{name.lower()}"):
            yield f"{name}: its runbook_url does not lead to its paragraph"
    for what, found in ((f"a test in {TESTS} where it fires", fired), (f"a test in {TESTS} where it does not", quiet),
                        (f"a paragraph in {RUNBOOK}", headings)):
        yield from (f"{name}: it has no {what[2:]}" for name in sorted(names - found))
        yield from (f"{name}: it has {what}, and there is no such alert" for name in sorted(found - names))
    if read(K8S) != rules_for_kubernetes():
        yield f"{K8S}: it is not what check-observability.py --write makes of {FOLDER}/rules"


def expressions_of(dashboard):
    for panel in dashboard["panels"]:
        yield from ((panel["title"], target["expr"]) for target in panel["targets"])
    yield from (("annotations", annotation["expr"]) for annotation in dashboard["annotations"]["list"])
    for variable in dashboard["templating"]["list"]:
        query = re.fullmatch(r"label_values\((\w+), \w+\)", variable["query"]["query"])
        yield variable["name"], query[1] if query else variable["query"]["query"]


def as_prometheus_gets_it(expression):
    """The expression with Grafana's variables filled in."""
    return re.sub(r"\$(queue|subscription)\b", ".*", expression.replace("$__rate_interval", "1m"))


def problems_of_layout(dashboard):
    ids = [panel["id"] for panel in dashboard["panels"]]
    if len(ids) != len(set(ids)):
        yield "two panels have one id"
    taken = {}
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        if place["x"] + place["w"] > 24:
            yield f"{panel['title']}: it is wider than the page"
        for spot in ((x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])):
            if taken.setdefault(spot, panel["title"]) != panel["title"]:
                yield f"{panel['title']} lies on {taken[spot]}"
                break


def problems_of_dashboards(known):
    sources = {source["uid"] for source in yaml.safe_load(read(f"{FOLDER}/grafana/provisioning/datasources.yml"))["datasources"]}
    compose = yaml.safe_load(read(f"{FOLDER}/compose.yml"))
    mounted = {config["target"]: compose["configs"][config["source"]]["file"] for config in compose["services"]["grafana"]["configs"]}
    provider = yaml.safe_load(read(f"{FOLDER}/grafana/provisioning/dashboards.yml"))["providers"][0]["options"]["path"]
    for target, file in (("datasources", "datasources"), ("dashboards", "dashboards")):
        if mounted.get(f"/etc/grafana/provisioning/{target}/galley.yml") != f"{FOLDER}/grafana/provisioning/{file}.yml":
            yield f"{FOLDER}/compose.yml: Grafana does not get provisioning/{file}.yml"
    uids, rules = [], []
    present = {path.stem for path in (root / FOLDER / "grafana/dashboards").glob("*.json")}
    if present != DASHBOARDS:
        yield f"the dashboards are {', '.join(sorted(present))}"
    for name in sorted(present):
        path = f"{FOLDER}/grafana/dashboards/{name}.json"
        if mounted.get(f"{provider}/{name}.json") != path:
            yield f"{FOLDER}/compose.yml: Grafana does not get {path}"
        dashboard = json.loads(read(path))
        uids.append(dashboard["uid"])
        for uid in set(re.findall(r'"type": "prometheus",\s*"uid": "([^"]*)"', read(path))) - sources:
            yield f"{path}: there is no data source {uid}"
        yield from (f"{path}: {problem}" for problem in problems_of_layout(dashboard))
        for number, (title, expression) in enumerate(expressions_of(dashboard)):
            expression = as_prometheus_gets_it(expression)
            if "$" in expression:
                yield f"{path}: {title}: an unknown variable"
            yield from (f"{path}: {title}: {problem}" for problem in problems_of_expression(expression, known))
            rules.append({"record": f"dashboard:{name}:{number}", "expr": expression})
    if len(uids) != len(set(uids)):
        yield "two dashboards have one uid"
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "dashboards.yml"
        path.write_text(yaml.safe_dump({"groups": [{"name": "dashboards", "rules": rules}]}), encoding="utf-8")
        yield from promtool("check", "rules", path)


def problems_of_prometheus():
    """Its configuration, with the files where the overlay puts them."""
    compose = yaml.safe_load(read(f"{FOLDER}/compose.yml"))
    with tempfile.TemporaryDirectory() as folder:
        for config in compose["services"]["prometheus"]["configs"]:
            target = pathlib.Path(folder) / config["target"].removeprefix("/etc/prometheus/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(read(compose["configs"][config["source"]]["file"]), encoding="utf-8")
        path = pathlib.Path(folder) / "prometheus.yml"
        yield from promtool("check", "config", path)
        rules = sorted(file.name for file in (path.parent / "rules").iterdir())
        if rules != sorted(pathlib.Path(file).name for file in RULES) or yaml.safe_load(path.read_text())["rule_files"] != ["rules/*.yml"]:
            yield f"{FOLDER}/compose.yml: Prometheus does not get all rules"


def main():
    if "--write" in sys.argv:
        (root / K8S).write_text(rules_for_kubernetes(), encoding="utf-8")
        return 0
    known = metrics_of_galley() | {name: set() for name in OWN}
    found = [*problems_of_rules(known), *problems_of_dashboards(known), *problems_of_prometheus()]
    print("\n".join(found) or "observability: rules, their tests, dashboards and the runbook are right")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
