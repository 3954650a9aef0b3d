//! A Prometheus of a test: it reads the metrics of services and evaluates the rules of `deploy/observability`.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::{ReservedPort, ServiceProcess, eventually_for, skip};

/// What a minute of the rules is here. Windows and pauses are shorter; what they ask is the same.
const MINUTE_MS: u64 = 1000;
/// As often as Prometheus reads and evaluates.
const INTERVAL: &str = "500ms";
/// How long a test waits for an alert: the longest window and pause, several times.
const LIMIT: Duration = Duration::from_mins(2);

pub(crate) struct Prometheus {
    process: Child,
    port: ReservedPort,
    folder: TempDir,
}

impl Prometheus {
    /// Starts it; none if it is not installed.
    pub(crate) async fn start(services: &[(&str, &ServiceProcess)]) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/observability/rules");
        for file in ["alerts.yml", "recording.yml"] {
            let text = std::fs::read_to_string(rules.join(file)).expect("the rules");
            std::fs::write(folder.path().join(file), shortened(&text)).expect("a file");
        }
        let config = format!(
            "global: {{ scrape_interval: {INTERVAL}, scrape_timeout: {INTERVAL}, evaluation_interval: {INTERVAL} }}\n\
             rule_files: [alerts.yml, recording.yml]\n\
             scrape_configs:\n  - job_name: galley\n    file_sd_configs: [{{ files: [targets.json], refresh_interval: 1s }}]\n"
        );
        std::fs::write(folder.path().join("prometheus.yml"), config).expect("a file");
        let port = ReservedPort::choose();
        write_targets(folder.path(), services);
        let started = Command::new("prometheus")
            .arg(format!("--config.file={}", folder.path().join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{}", port.number()))
            .arg("--log.level=error")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(process) = started else {
            skip("there is no Prometheus, which Debian's package prometheus has; `.ci/run` installs it");
            return None;
        };
        let server = Self { process, port, folder };
        eventually_for(LIMIT, "Prometheus has read every service", || async {
            let up = server.query("count(up == 1)").await;
            (up.first()?["value"][1].as_str()?.parse() == Ok(services.len())).then_some(())
        })
        .await;
        Some(server)
    }

    /// Reads these services from now on.
    pub(crate) fn read_from(&self, services: &[(&str, &ServiceProcess)]) {
        write_targets(self.folder.path(), services);
    }

    async fn get(&self, path: &str) -> Option<Value> {
        let url = format!("http://127.0.0.1:{}/api/v1/{path}", self.port.number());
        let answer = reqwest::get(url).await.ok()?;
        answer.json().await.ok()
    }

    /// What an expression gives now: one value for each series; nothing while Prometheus does not answer.
    pub(crate) async fn query(&self, expression: &str) -> Vec<Value> {
        let encoded = expression.bytes().fold(String::new(), |text, byte| text + &format!("%{byte:02x}"));
        let Some(answer) = self.get(&format!("query?query={encoded}")).await else { return Vec::new() };
        assert_ne!(answer["status"], "error", "{expression}: {answer}");
        answer["data"]["result"].as_array().cloned().unwrap_or_default()
    }

    /// The values of a label.
    pub(crate) async fn label_values(&self, metric: &str, label: &str) -> Vec<String> {
        let series = self.query(&format!("count by ({label}) ({metric})")).await;
        series.iter().filter_map(|series| series["metric"][label].as_str().map(ToOwned::to_owned)).collect()
    }

    /// The states of an alert: `pending` or `firing` for each set of labels.
    async fn states(&self, alert: &str, label: Option<(&str, &str)>) -> Vec<String> {
        let answer = self.get("alerts").await.unwrap_or_default();
        let alerts = answer["data"]["alerts"].as_array().cloned().unwrap_or_default();
        let wanted = alerts.iter().filter(|found| {
            found["labels"]["alertname"] == alert && label.is_none_or(|(name, value)| found["labels"][name] == value)
        });
        wanted.filter_map(|alert| alert["state"].as_str().map(ToOwned::to_owned)).collect()
    }

    /// Waits until an alert fires, and does something at each look.
    pub(crate) async fn fires_while<F: Future<Output = ()>>(
        &self,
        alert: &str,
        label: Option<(&str, &str)>,
        mut go_on: impl FnMut() -> F,
    ) {
        eventually_for(LIMIT, &format!("{alert} fires"), || {
            let goes_on = go_on();
            async move {
                goes_on.await;
                self.states(alert, label).await.iter().any(|state| state == "firing").then_some(())
            }
        })
        .await;
    }

    /// The same without doing anything.
    pub(crate) async fn fires(&self, alert: &str, label: Option<(&str, &str)>) {
        self.fires_while(alert, label, || async {}).await;
    }

    /// Waits until an alert is neither pending nor firing.
    pub(crate) async fn ends(&self, alert: &str) {
        eventually_for(LIMIT, &format!("{alert} ends"), || async {
            self.states(alert, None).await.is_empty().then_some(())
        })
        .await;
    }

    /// Asserts that an alert is not even pending.
    pub(crate) async fn is_quiet(&self, alert: &str) {
        assert_eq!(self.states(alert, None).await, Vec::<String>::new(), "{alert}");
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Names each service as the overlay of compose does.
fn write_targets(folder: &Path, services: &[(&str, &ServiceProcess)]) {
    let targets: Vec<Value> = services
        .iter()
        .map(|(job, service)| json!({ "targets": [service.address().to_string()], "labels": { "job": job } }))
        .collect();
    // Whole at once: Prometheus reads it at any time
    let (new, path) = (folder.join("targets.new"), folder.join("targets.json"));
    std::fs::write(&new, json!(targets).to_string()).expect("a file");
    std::fs::rename(new, path).expect("a file");
}

/// The rules with shorter windows and pauses. Nothing else changes.
pub(crate) fn shortened(rules: &str) -> String {
    let text = ["[", "offset ", "for: "].iter().fold(rules.to_owned(), |text, before| shorten_after(&text, before));
    // A limit of minutes, written as seconds
    text.replace("* 60", &format!("* {}.{:03}", MINUTE_MS / 1000, MINUTE_MS % 1000))
}

fn shorten_after(text: &str, before: &str) -> String {
    let mut parts = text.split(before);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str(before);
        let digits = part.bytes().take_while(u8::is_ascii_digit).count();
        let minutes = match part[digits..].chars().next() {
            Some('m') => Some(1),
            Some('h') => Some(60),
            Some('d') => Some(24 * 60),
            _ => None,
        };
        match (part[..digits].parse::<u64>(), minutes) {
            (Ok(number), Some(minutes)) => {
                out = out + &(number * minutes * MINUTE_MS).to_string() + "ms" + &part[digits + 1..];
            }
            _ => out.push_str(part),
        }
    }
    out
}

#[test]
fn rules_get_shorter_and_ask_the_same() {
    let rules = "expr: a > 15 * 60 unless increase(b[10m] offset 10m) > 0 or max_over_time(c:d[1d]) > 0\nfor: 5m\n";
    let expected = "expr: a > 15 * 1.000 unless increase(b[10000ms] offset 10000ms) > 0 or max_over_time(c:d[1440000ms]) > 0\n\
                    for: 5000ms\n";
    assert_eq!(shortened(rules), expected);
}
