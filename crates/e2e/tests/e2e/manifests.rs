//! The Kubernetes manifests and the compose files, as `deploy/dev/check-manifests.py` and `check-compose.py` see them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use testkit::skip;

const MANIFESTS: &str = "deploy/dev/check-manifests.py";
const COMPOSE: &str = "deploy/dev/check-compose.py";
const OBSERVABILITY: &str = "deploy/dev/check-observability.py";
/// What they read.
const READ: &[&str] = &[
    "k8s",
    "deploy",
    "docker-compose.yml",
    "docs/observability.md",
    "docs/reference/settings.md",
    "docs/reference/metrics.md",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Whether a script is content, and what it says; none if this machine lacks what it needs.
fn check(script: &str, of: Option<&Path>) -> Option<(bool, String)> {
    let python = std::env::var("GALLEY_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let needed = "import check_jsonschema, jsonschema, kubernetes_validate, yaml";
    let probe = Command::new(&python).args(["-c", needed]).stderr(Stdio::null()).status();
    if !probe.is_ok_and(|status| status.success()) {
        skip(&format!("{python} has no kubernetes-validate and check-jsonschema"));
        return None;
    }
    let output = Command::new(python).arg(root().join(script)).args(of).output().expect("it runs");
    let said = [output.stdout, output.stderr].concat();
    Some((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
}

/// Breaks a copy: each change is a file, a text in it, and what stands there instead. Gives what the script says.
fn check_broken(script: &str, changes: &[(&str, &str, &str)]) -> Option<String> {
    let folder = tempfile::tempdir().expect("a folder");
    for path in READ {
        let to = folder.path().join(path);
        fs::create_dir_all(to.parent().expect("a folder")).expect("a folder");
        let copied = Command::new("cp").arg("-r").arg(root().join(path)).arg(&to).status().expect("cp runs");
        assert!(copied.success(), "{path}");
    }
    for (path, from, to) in changes {
        let path = folder.path().join(path);
        let text = fs::read_to_string(&path).expect("a file");
        assert!(text.contains(from), "{} has no {from:?}", path.display());
        fs::write(path, text.replace(from, to)).expect("it is written");
    }
    let (is_content, said) = check(script, Some(folder.path()))?;
    assert!(!is_content, "{said}");
    Some(said)
}

#[test]
fn the_manifests_fit_schemas_settings_and_each_other() {
    let Some((is_content, said)) = check(MANIFESTS, None) else { return };
    assert!(is_content, "{said}");
}

#[test]
fn the_compose_files_fit_their_schema_and_the_settings() {
    let Some((is_content, said)) = check(COMPOSE, None) else { return };
    assert!(is_content, "{said}");
}

#[test]
fn rules_dashboards_and_runbook_fit_each_other_and_the_metrics() {
    if !has_promtool() {
        return;
    }
    let Some((is_content, said)) = check(OBSERVABILITY, None) else { return };
    assert!(is_content, "{said}");
}

fn has_promtool() -> bool {
    let started = Command::new("promtool").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if started.is_err() {
        skip("there is no promtool, which Debian's package prometheus has; `.ci/run` installs it");
    }
    started.is_ok()
}

#[test]
fn what_is_broken_in_rules_dashboards_and_runbook_is_found() {
    const ALERTS: &str = "deploy/observability/rules/alerts.yml";
    const OVERVIEW: &str = "deploy/observability/grafana/dashboards/overview.json";
    const QUEUE: &str = "deploy/observability/grafana/dashboards/queue.json";
    if !has_promtool() {
        return;
    }
    let changes = [
        (ALERTS, "galley_leases_lost_total", "galley_leases_gone_total"),
        (ALERTS, "galley:redis_memory:ratio > 0.8", "galley:redis_mem:ratio > 0.8"),
        (ALERTS, "sum(galley_leader) < 1", "sum(galley_leader)) < 1"),
        (ALERTS, "galley_attempts_total{outcome=", "galley_attempts_total{result="),
        (ALERTS, "#galleyredisunreachable", "#galleyredisgone"),
        (ALERTS, "labels: { severity: warning }", "labels: { severity: warning, team: ours }"),
        ("docs/observability.md", "### GalleyQueueStuck", "### GalleyQueueHangs"),
        ("deploy/observability/alerts.test.yml", "alertname: GalleyRedisCannotSave", "alertname: GalleyRedisMemory"),
        ("k8s/components/monitoring/prometheus-rule.yaml", "galley_results_dropped_total", "galley_results_total"),
        (OVERVIEW, "\"uid\": \"prometheus\"", "\"uid\": \"prometheus-2\""),
        (OVERVIEW, "galley_build_info", "galley_build"),
        (QUEUE, "queue=~\\\"$queue\\\"", "queue=~\\\"$name\\\""),
        (QUEUE, "\"w\": 12", "\"w\": 25"),
        ("deploy/observability/compose.yml", "dashboards/channels.json", "dashboards/channel.json"),
        ("deploy/observability/prometheus.yml", "rules/*.yml", "rules/a*.yml"),
    ];
    let expected = [
        "there is no metric galley_leases_gone_total",
        "there is no recording rule galley:redis_mem:ratio",
        "promtool check rules",
        "promtool test rules",
        "galley_attempts_total has no label result",
        "GalleyRedisUnreachable: its runbook_url does not lead to its paragraph",
        "GalleyErrors: it needs severity, summary and runbook_url",
        "GalleyQueueStuck: it has no paragraph in docs/observability.md",
        "GalleyQueueHangs: it has a paragraph in docs/observability.md, and there is no such alert",
        "GalleyRedisCannotSave: it has no test",
        "prometheus-rule.yaml: it is not what check-observability.py --write makes",
        "overview.json: there is no data source prometheus-2",
        "overview.json: Processes: there is no metric galley_build",
        "queue.json: Jobs by state: an unknown variable",
        "it is wider than the page",
        "Oldest job that waits lies on Jobs by state",
        "Grafana does not get deploy/observability/grafana/dashboards/channels.json",
        "Prometheus does not get all rules",
    ];
    let Some(said) = check_broken(OBSERVABILITY, &changes) else { return };
    for problem in expected {
        assert!(said.contains(problem), "{problem:?} is not in\n{said}");
    }
}

#[test]
fn what_is_broken_in_manifests_is_found() {
    const GATEWAY: &str = "k8s/base/gateway.yaml";
    let changes = [
        ("k8s/base/kustomization.yaml", "GALLEY__LOG__FORMAT", "GALLEY__LOG__SHAPE"),
        (GATEWAY, "targetPort: http }", "targetPort: web }"),
        (GATEWAY, "path: /health/ready", "path: /health/live"),
        (GATEWAY, "terminationGracePeriodSeconds: 30", "terminationGracePeriodSeconds: 15"),
        (GATEWAY, "runAsNonRoot: true", "runAsNonRoot: false"),
        (GATEWAY, "imagePullPolicy", "imagePullPolice"),
        (GATEWAY, "requests: { cpu: 100m, memory: 96Mi }", "requests: { cpu: 100m }"),
        ("k8s/base/pubsub-worker.yaml", "serviceName: pubsub-worker", "serviceName: pubsub"),
        ("k8s/base/queue-worker.yaml", "secretName: galley-redis", "secretName: redis"),
        ("k8s/base/pubsub-worker.yaml", "key: pubsub-worker-url", "key: gateway-url"),
        ("k8s/overlays/dev/kustomization.yaml", "- gateway-url=", "- gateways-url="),
        ("k8s/components/redis/redis.acl", "~galley:*", "~*"),
        (
            "k8s/base/network-policies.yaml",
            "podSelector: {}\n  policyTypes: [Ingress, Egress]",
            "podSelector: {}\n  policyTypes: [Ingress]",
        ),
        ("k8s/components/ingress/ingress.yaml", "hosts: [galley.example.com]", "hosts: [other.example.com]"),
        ("k8s/components/keda/scaled-object.yaml", "minReplicaCount", "minReplicas"),
        ("k8s/components/monitoring/service-monitor.yaml", "port: http", "port: metrics"),
        ("k8s/components/monitoring/prometheus-rule.yaml", "galley_leases_lost_total", "galley_leases_gone_total"),
        (
            "k8s/components/monitoring/prometheus-rule.yaml",
            "record: queue:galley_dead_letters:max",
            "record: queue:galley_dead_letters:sum",
        ),
        ("k8s/components/redis/redis.conf", "appendonly yes", "appendonly no"),
        ("k8s/overlays/dev/kustomization.yaml", "newName: localhost/galley-gateway", "newName: galley/gateway"),
        ("k8s/overlays/dev/kustomization.yaml", "UseForNothingElse", "UseForNothing"),
    ];
    let expected = [
        "there is no setting GALLEY__LOG__SHAPE",
        "Service gateway: Deployment gateway has no port web",
        "readinessProbe: it must ask /health/ready",
        "terminationGracePeriodSeconds is below 20",
        "Deployment gateway: it may run as root",
        "imagePullPolice",
        "Deployment gateway: it needs requests of cpu and memory",
        "there is no headless Service pubsub",
        "Deployment queue-worker: there is no Secret redis",
        "no NetworkPolicy denies by default",
        "galley.example.com has no TLS",
        "minReplicas",
        "the Service gateway has no port metrics",
        "there is no metric galley_leases_gone_total",
        "there is no recording rule queue:galley_dead_letters:max",
        "it is not deploy/redis.conf",
        "it is not deploy/redis.acl",
        "StatefulSet pubsub-worker: of galley-redis it gets gateway-url",
        "the Secret galley-redis",
        "its image is galley/gateway:0.1.0",
        "first-key is not glk_<id>_<secret>",
    ];
    let Some(said) = check_broken(MANIFESTS, &changes) else { return };
    for problem in expected {
        assert!(said.contains(problem), "{problem:?} is not in\n{said}");
    }
}

#[test]
fn what_is_broken_in_compose_files_is_found() {
    let changes = [
        ("docker-compose.yml", "GALLEY__QUEUE_WORKER__DEMO_HANDLERS", "GALLEY__QUEUE_WORKER__DEMO"),
        ("docker-compose.yml", "[queue-worker-secret:/run", "[gateway-secret:/run"),
        ("docker-compose.yml", "stop_grace_period: 50s", "stop_grace_period: 20s"),
        ("docker-compose.yml", "127.0.0.1:${GALLEY_REDIS_PORT:-6379}", "0.0.0.0:${GALLEY_REDIS_PORT:-6379}"),
        ("docker-compose.yml", "${GALLEY_IMAGES:-localhost}/galley-gateway", "galley/gateway"),
        ("deploy/compose/example.env", "#GALLEY_CPUS", "#GALLEY_CPU"),
        ("deploy/observability/compose.yml", "    ports:", "    prots:"),
        ("deploy/observability/prometheus.yml", "port: 8081", "port: 8080"),
    ];
    let expected = [
        "there is no setting GALLEY__QUEUE_WORKER__DEMO",
        "pubsub-worker: its stop_grace_period is shorter",
        "queue-worker: it gets other secrets than its own",
        "redis: the port 0.0.0.0:${GALLEY_REDIS_PORT:-6379}:6379 is not on loopback",
        "gateway: its image is galley/gateway",
        "GALLEY_CPUS is not in deploy/compose/example.env",
        "prots",
        "deploy/observability/prometheus.yml: it asks",
        "it is not what check-compose.py --write makes",
    ];
    let Some(said) = check_broken(COMPOSE, &changes) else { return };
    for problem in expected {
        assert!(said.contains(problem), "{problem:?} is not in\n{said}");
    }
}
