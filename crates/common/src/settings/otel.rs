//! The variables that OpenTelemetry defines for every program. A setting of Galley comes first.

use std::{ops::RangeInclusive, time::Duration};

use super::{SettingError, error::invalid_value, kinds::parse_value};
use crate::sampling::{SAMPLERS, Sampling};

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const ANY_PROTOCOL: &str = "OTEL_EXPORTER_OTLP_PROTOCOL";
/// How often metrics may be sent, in milliseconds.
pub(super) const METRIC_INTERVALS: RangeInclusive<u64> = 100..=86_400_000;
const METRIC_INTERVAL: &str = "OTEL_METRIC_EXPORT_INTERVAL";
const SAMPLER: &str = "OTEL_TRACES_SAMPLER";
const SAMPLER_ARGUMENT: &str = "OTEL_TRACES_SAMPLER_ARG";
const PROTOCOL: &str = "grpc or http/protobuf";
/// Where receivers of gRPC listen.
const GRPC_PORT: &str = ":4317";
/// Where OpenTelemetry says that a receiver is if nothing else says it: of gRPC, and of HTTP.
const DEFAULT_ENDPOINTS: [&str; 2] = ["http://localhost:4317", "http://localhost:4318"];

/// What a process sends to a receiver, with the variables about it.
#[derive(Debug, Clone, Copy)]
pub(super) struct OtlpSignal {
    endpoint: &'static str,
    protocol: &'static str,
    exporter: &'static str,
    /// The values of `exporter` that name no receiver.
    not_sent: &'static [&'static str],
    path: &'static str,
    /// Whether it is sent wherever the endpoint of everything is. Else somebody must ask for it.
    is_sent_by_default: bool,
}

pub(super) const TRACES: OtlpSignal = OtlpSignal {
    endpoint: "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    protocol: "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    exporter: "OTEL_TRACES_EXPORTER",
    not_sent: &["none"],
    path: "/v1/traces",
    is_sent_by_default: true,
};
pub(super) const METRICS: OtlpSignal = OtlpSignal {
    endpoint: "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
    protocol: "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL",
    exporter: "OTEL_METRICS_EXPORTER",
    // Prometheus reads them in any case
    not_sent: &["none", "prometheus"],
    path: "/v1/metrics",
    is_sent_by_default: false,
};
pub(super) const LOGS: OtlpSignal = OtlpSignal {
    endpoint: "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT",
    protocol: "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL",
    exporter: "OTEL_LOGS_EXPORTER",
    not_sent: &["none"],
    path: "/v1/logs",
    is_sent_by_default: false,
};

/// Where the variables say that a signal goes, in the form of `telemetry.otlp_endpoint`; none if they say nothing.
pub(super) fn otlp_endpoint(
    signal: OtlpSignal,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Option<String>, SettingError> {
    // An empty variable is as good as none, says the specification
    let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
    if variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return Ok(None);
    }
    let is_asked_for = asks_for_otlp(signal, variable(signal.exporter))?;
    if is_asked_for == Some(false) {
        return Ok(None);
    }
    let protocol = [signal.protocol, ANY_PROTOCOL].into_iter().find_map(|name| Some((name, variable(name)?)));
    let is_grpc = match protocol {
        Some((_, text)) if text == "grpc" => Some(true),
        Some((_, text)) if text == "http/protobuf" => Some(false),
        Some((name, text)) => return Err(invalid_value(name, PROTOCOL, format_args!("{text:?}"))),
        None => None,
    };
    let is_sent = signal.is_sent_by_default || is_asked_for == Some(true);
    let (name, url) = match (variable(signal.endpoint), variable(ENDPOINT)) {
        (Some(url), _) => (signal.endpoint, url),
        (None, Some(url)) if is_sent => (ENDPOINT, url),
        (None, None) if is_asked_for == Some(true) => {
            (ENDPOINT, DEFAULT_ENDPOINTS[usize::from(is_grpc != Some(true))].to_owned())
        }
        (None, _) => return Ok(None),
    };
    let Some((_, after_scheme)) = url.split_once("://").filter(|(scheme, _)| ["http", "https"].contains(scheme)) else {
        return Err(invalid_value(name, "a URL that begins with http:// or https://", format_args!("{url:?}")));
    };
    let base = url.trim_end_matches('/');
    let is_grpc = is_grpc.unwrap_or_else(|| after_scheme.trim_end_matches('/').ends_with(GRPC_PORT));
    Ok(Some(if is_grpc {
        // A path would mean HTTP
        base.split('/').take(3).collect::<Vec<_>>().join("/")
    } else if name == signal.endpoint && after_scheme.contains('/') {
        url
    } else {
        format!("{base}{}", signal.path)
    }))
}

/// Whether the variable of a signal's exporters names OTLP; none if it says nothing.
fn asks_for_otlp(signal: OtlpSignal, exporters: Option<String>) -> Result<Option<bool>, SettingError> {
    let Some(text) = exporters else { return Ok(None) };
    let mut names = text.split(',').map(str::trim);
    if names.clone().all(|name| name == "otlp" || signal.not_sent.contains(&name)) {
        return Ok(Some(names.any(|name| name == "otlp")));
    }
    let allowed = format!("otlp or {}", signal.not_sent.join(" or "));
    Err(invalid_value(signal.exporter, allowed, format_args!("{text:?}")))
}

/// How often the variables say that metrics are sent; none if they say nothing.
pub(super) fn metric_interval(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Duration>, SettingError> {
    let Some(text) = variable(METRIC_INTERVAL).filter(|value| !value.is_empty()) else { return Ok(None) };
    let allowed = format!("milliseconds, {} to {}", METRIC_INTERVALS.start(), METRIC_INTERVALS.end());
    let millis = text.parse().ok().filter(|millis| METRIC_INTERVALS.contains(millis));
    let millis = millis.ok_or_else(|| invalid_value(METRIC_INTERVAL, allowed, format_args!("{text:?}")))?;
    Ok(Some(Duration::from_millis(millis)))
}

/// What the variables say about sampling; none if they say nothing.
pub(super) fn sampler(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Sampling>, SettingError> {
    let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
    let Some(name) = variable(SAMPLER) else { return Ok(None) };
    // The argument is about ratios only
    let argument = variable(SAMPLER_ARGUMENT).filter(|_| name.ends_with("traceidratio"));
    let text = argument.map_or_else(|| name.clone(), |argument| format!("{name}/{argument}"));
    parse_value(SAMPLER, &text, SAMPLERS).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sampler_is_what_opentelemetry_says() {
        let of = |name: &str, argument: &str| {
            sampler(|asked| Some(if asked == SAMPLER { name } else { argument }.to_owned()))
        };
        assert_eq!(of("", "0.5").expect("allowed"), None);
        assert_eq!(of("always_on", "0.5").expect("allowed"), Some(Sampling { follows_parent: false, ratio: 1.0 }));
        let half = Some(Sampling { follows_parent: true, ratio: 0.5 });
        assert_eq!(of("parentbased_traceidratio", "0.5").expect("allowed"), half);
        for (name, argument) in [("jaeger_remote", ""), ("traceidratio", "2")] {
            let error = of(name, argument).expect_err("not allowed").to_string();
            assert!(error.contains(SAMPLER), "{error}");
        }
    }

    fn of(signal: OtlpSignal, variables: &[(&str, &str)]) -> Result<Option<String>, SettingError> {
        let find =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        otlp_endpoint(signal, find)
    }

    #[test]
    fn the_endpoint_is_what_opentelemetry_says() {
        for (variables, expected) in [
            (&[][..], None),
            (&[(ENDPOINT, "")], None),
            (&[(ENDPOINT, "http://jaeger:4318")], Some("http://jaeger:4318/v1/traces")),
            (&[(ENDPOINT, "https://host/otel/")], Some("https://host/otel/v1/traces")),
            (&[(ENDPOINT, "http://jaeger:4317")], Some("http://jaeger:4317")),
            (
                &[(ENDPOINT, "http://jaeger:4317"), (ANY_PROTOCOL, "http/protobuf")],
                Some("http://jaeger:4317/v1/traces"),
            ),
            (&[(ENDPOINT, "https://host:443/x"), (ANY_PROTOCOL, "grpc")], Some("https://host:443")),
            (&[(TRACES.endpoint, "http://a:1/t"), (ENDPOINT, "http://b:4317")], Some("http://a:1/t")),
            (&[(ENDPOINT, "http://jaeger:4317"), ("OTEL_SDK_DISABLED", "TRUE")], None),
            (&[(ENDPOINT, "http://jaeger:4317"), (TRACES.exporter, "none")], None),
        ] {
            assert_eq!(of(TRACES, variables).expect("allowed").as_deref(), expected, "{variables:?}");
        }
        for variables in [
            &[(ENDPOINT, "jaeger:4317")][..],
            &[(ENDPOINT, "http://a"), (ANY_PROTOCOL, "http/json")],
            &[(ENDPOINT, "http://a"), (TRACES.exporter, "otlp,zipkin")],
        ] {
            let error = of(TRACES, variables).expect_err("not allowed").to_string();
            assert!(error.contains(variables[variables.len() - 1].0), "{error}");
        }
    }

    #[test]
    fn metrics_and_logs_are_sent_where_somebody_asks_for_it() {
        for (signal, path) in [(METRICS, "/v1/metrics"), (LOGS, "/v1/logs")] {
            let base = |variables: &[(&str, &str)]| of(signal, variables).expect("allowed");
            assert_eq!(base(&[(ENDPOINT, "http://jaeger:4318")]), None, "a receiver of traces may take nothing else");
            assert_eq!(base(&[(signal.endpoint, "http://a:4317")]).as_deref(), Some("http://a:4317"));
            assert_eq!(base(&[(signal.endpoint, "http://a:4317"), (signal.exporter, "none")]), None);
            let everything = [(ENDPOINT, "http://a:4318"), (signal.exporter, "otlp")];
            assert_eq!(base(&everything), Some(format!("http://a:4318{path}")));
            assert_eq!(base(&[(signal.exporter, "otlp")]), Some(format!("http://localhost:4318{path}")));
            let grpc = [(signal.exporter, "otlp"), (signal.protocol, "grpc"), (ANY_PROTOCOL, "http/protobuf")];
            assert_eq!(base(&grpc).as_deref(), Some("http://localhost:4317"));
            let error = of(signal, &[(signal.exporter, "console")]).expect_err("not allowed").to_string();
            assert!(error.contains(signal.exporter) && error.contains("otlp or none"), "{error}");
        }
        let both = [(ENDPOINT, "http://a:4317"), (METRICS.exporter, "prometheus, otlp")];
        assert_eq!(of(METRICS, &both).expect("allowed").as_deref(), Some("http://a:4317"));
        assert_eq!(
            of(METRICS, &[(ENDPOINT, "http://a:4317"), (METRICS.exporter, "prometheus")]).expect("allowed"),
            None
        );
    }

    #[test]
    fn the_interval_of_metrics_is_what_opentelemetry_says() {
        let of = |text: &str| metric_interval(|_| Some(text.to_owned()));
        assert_eq!(of("").expect("allowed"), None);
        assert_eq!(of("5000").expect("allowed"), Some(Duration::from_secs(5)));
        for text in ["0", "often"] {
            assert!(of(text).expect_err("not allowed").to_string().contains(METRIC_INTERVAL), "{text}");
        }
    }
}
