#!/usr/bin/env python3
"""Checks the compose files: against the schema of compose, against the settings, and for what every service must have.

`--write` writes deploy/compose/images.yml, which is docker-compose.yml for people who have images and no sources. Needs
check-jsonschema (which brings the schema) and PyYAML of PyPI. An argument names another root of the repository, for the
test that breaks a copy.
"""

import importlib.resources
import json
import pathlib
import re
import sys

import jsonschema
import yaml

BASE = "docker-compose.yml"
IMAGES = "deploy/compose/images.yml"
OVERLAYS = (
    "deploy/observability/compose.yml",
    "deploy/compose/tls.yml",
    "deploy/compose/sentinel.yml",
    "deploy/compose/cluster.yml",
)
GALLEY = {"gateway": 8080, "queue-worker": 8081, "pubsub-worker": 8082}
IMAGES_HEADER = """\
# Galley from published images: builds nothing, and needs no other file of the repository.
#   GALLEY_IMAGES=ghcr.io/OWNER GALLEY_VERSION=0.1.0 docker compose -f images.yml up --detach --wait
# Written from docker-compose.yml by deploy/dev/check-compose.py --write, and checked by make test.
"""

arguments = [argument for argument in sys.argv[1:] if argument != "--write"]
root = pathlib.Path(arguments[0] if arguments else pathlib.Path(__file__).parent / "../..").resolve()


def read(path):
    return (root / path).read_text(encoding="utf-8")


def images_file():
    """docker-compose.yml without `build`, with the text of its configs inside."""
    text = re.sub(r"\A(#.*\n)+", IMAGES_HEADER, read(BASE))
    text = re.sub(r"^    build: .*\n", "", text, flags=re.MULTILINE)
    text = text.replace("${GALLEY_IMAGES:-localhost}", "${GALLEY_IMAGES:?set it to where the images are, such as ghcr.io/OWNER}")

    def inlined(match):
        # Compose puts variables into the text of a config
        lines = read(match[1]).replace("$", "$$").splitlines()
        return "    content: |\n" + "".join(f"      {line}\n" if line else "\n" for line in lines)

    return re.sub(r"^    file: (.*)\n", inlined, text, flags=re.MULTILINE)


def read_settings():
    """Patterns of the environment variables of the settings, from their reference."""
    names = set(re.findall(r"`(GALLEY__[A-Z0-9_<>]+)`", read("docs/reference/settings.md")))
    return {re.sub("<[A-Z]+>", "[A-Z0-9_]+", name) for name in names}


def grace_seconds(service):
    pattern = rf"`{service.replace('-', '_')}\.shutdown_grace_ms`.*?Default: `(\d+)`"
    return int(re.search(pattern, read("docs/reference/settings.md"), re.DOTALL)[1]) / 1000


def problems_of_service(name, service):
    """What each service of a whole file must have."""
    if not re.search(r":[^/]+$", re.sub(r"\$\{[^}]*:-([^}]*)\}", r"\1", service["image"])):
        yield "its image has no tag"
    if "max-size" not in service.get("logging", {}).get("options", {}):
        yield "its log is not rotated"
    if service.get("cap_drop") != ["ALL"] or "no-new-privileges:true" not in service.get("security_opt", ()):
        yield "it has capabilities, or may get privileges"
    if name == "setup":
        return
    if service.get("read_only") is not True:
        yield "it may write to its image"
    limits = service.get("deploy", {}).get("resources", {}).get("limits", {})
    if not {"memory", "pids"} <= set(limits):
        yield "it has no limits of memory and processes"
    for port in service.get("ports", ()):
        if not port.startswith(("127.0.0.1:", "${GALLEY_ADDRESS:-127.0.0.1}:")):
            yield f"the port {port} is not on loopback"


def problems_of_galley(name, service):
    prefix = r"\$\{GALLEY_IMAGES:[-?][^}]*\}"
    if not re.fullmatch(rf"{prefix}/galley-{name}:\$\{{GALLEY_VERSION:-\d+\.\d+\.\d+\}}", service["image"]):
        yield f"its image is {service['image']}"
    if service.get("healthcheck", {}).get("test") != ["CMD", f"/{name}", "healthcheck"]:
        yield "it does not check its health"
    if service.get("volumes") != [f"{name}-secret:/run/galley/service:ro"]:
        yield "it gets other secrets than its own"
    if float(service["stop_grace_period"].rstrip("s")) < grace_seconds(name) + 5:
        yield "its stop_grace_period is shorter than its drain and 5 s"


def problems_of_environment(service, settings):
    environment = service.get("environment", {})
    mounts = [re.sub(r":ro$", "", volume).split(":")[-1] for volume in service.get("volumes", ()) if isinstance(volume, str)]
    for name, value in environment.items():
        if name.startswith("GALLEY__") and not any(re.fullmatch(pattern, name) for pattern in settings):
            yield f"there is no setting {name}"
        if name.startswith("GALLEY__") and name.endswith("_FILE") and not str(value).startswith(tuple(mounts)):
            yield f"{name} names {value}, where nothing is mounted"


def problems_of_file(path, schema, settings):
    document = yaml.safe_load(read(path))
    for error in jsonschema.validators.validator_for(schema)(schema).iter_errors(document):
        yield f"{'/'.join(map(str, error.absolute_path))}: {error.message}"
    base = yaml.safe_load(read(BASE))
    for name, service in document["services"].items():
        for problem in problems_of_environment(service, settings):
            yield f"{name}: {problem}"
        if path in OVERLAYS and name in base["services"]:
            continue
        checks = [problems_of_service(name, service)]
        if name in GALLEY:
            checks.append(problems_of_galley(name, service))
        for problem in (problem for check in checks for problem in check):
            yield f"{name}: {problem}"
    for config in document.get("configs", {}).values():
        if "file" in config and not (root / config["file"]).is_file():
            yield f"{config['file']} does not exist"
    if path == BASE:
        yield from problems_of_variables(document)


def problems_of_variables(document):
    """deploy/compose/example.env names every variable, with the value that the files have without it."""
    used = set(re.findall(r"\$\{([A-Z_]+)[:}]", "".join(map(read, (BASE, *OVERLAYS)))))
    named = set(re.findall(r"^#?([A-Z_]+)=", read("deploy/compose/example.env"), re.MULTILINE))
    for name in sorted(used ^ named):
        yield f"{name} is {'not ' if name in used else 'only '}in deploy/compose/example.env"


def problems_of_prometheus():
    jobs = yaml.safe_load(read("deploy/observability/prometheus.yml"))["scrape_configs"]
    found = {job["job_name"]: job["dns_sd_configs"][0]["port"] for job in jobs}
    if found != GALLEY:
        yield f"deploy/observability/prometheus.yml: it asks {found}"


def main():
    if "--write" in sys.argv:
        (root / IMAGES).write_text(images_file(), encoding="utf-8")
        return 0
    schemas = importlib.resources.files("check_jsonschema") / "builtin_schemas/vendor"
    schema = json.loads((schemas / "compose-spec.json").read_text(encoding="utf-8"))
    settings = read_settings()
    files = (BASE, IMAGES, *OVERLAYS)
    found = [f"{path}: {problem}" for path in files for problem in problems_of_file(path, schema, settings)]
    found += problems_of_prometheus()
    if read(IMAGES) != images_file():
        found.append(f"{IMAGES}: it is not what check-compose.py --write makes of {BASE}")
    print("\n".join(found) or f"compose: {', '.join(files)} are right")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
