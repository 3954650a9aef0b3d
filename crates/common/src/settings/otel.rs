//! The variables that OpenTelemetry defines for every program. A setting of Galley comes first.

use super::{SettingError, error::invalid_value, kinds::parse_value};
use crate::sampling::{SAMPLERS, Sampling};

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const TRACES_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
const PROTOCOLS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];
const SAMPLER: &str = "OTEL_TRACES_SAMPLER";
const SAMPLER_ARGUMENT: &str = "OTEL_TRACES_SAMPLER_ARG";
const PROTOCOL: &str = "grpc or http/protobuf";
/// Where receivers of gRPC listen.
const GRPC_PORT: &str = ":4317";

/// Where the variables say that spans go, in the form of `telemetry.otlp_endpoint`; none if they say nothing.
pub(super) fn otlp_endpoint(variable: impl Fn(&str) -> Option<String>) -> Result<Option<String>, SettingError> {
    // An empty variable is as good as none, says the specification
    let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
    if variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return Ok(None);
    }
    let (name, url, is_for_traces) = match (variable(TRACES_ENDPOINT), variable(ENDPOINT)) {
        (Some(url), _) => (TRACES_ENDPOINT, url, true),
        (None, Some(url)) => (ENDPOINT, url, false),
        (None, None) => return Ok(None),
    };
    let Some((_, after_scheme)) = url.split_once("://").filter(|(scheme, _)| ["http", "https"].contains(scheme)) else {
        return Err(invalid_value(name, "a URL that begins with http:// or https://", format_args!("{url:?}")));
    };
    let base = url.trim_end_matches('/');
    let protocol = PROTOCOLS.into_iter().find_map(|name| Some((name, variable(name)?)));
    let is_grpc = match protocol {
        Some((_, text)) if text == "grpc" => true,
        Some((_, text)) if text == "http/protobuf" => false,
        Some((name, text)) => return Err(invalid_value(name, PROTOCOL, format_args!("{text:?}"))),
        None => after_scheme.trim_end_matches('/').ends_with(GRPC_PORT),
    };
    Ok(Some(match (is_grpc, is_for_traces) {
        // A path would mean HTTP
        (true, _) => base.split('/').take(3).collect::<Vec<_>>().join("/"),
        (false, true) if after_scheme.contains('/') => url,
        (false, _) => format!("{base}/v1/traces"),
    }))
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

    fn of(variables: &[(&str, &str)]) -> Result<Option<String>, SettingError> {
        let find =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        otlp_endpoint(find)
    }

    #[test]
    fn the_endpoint_is_what_opentelemetry_says() {
        let protocol = PROTOCOLS[1];
        for (variables, expected) in [
            (&[][..], None),
            (&[(ENDPOINT, "")], None),
            (&[(ENDPOINT, "http://jaeger:4318")], Some("http://jaeger:4318/v1/traces")),
            (&[(ENDPOINT, "https://host/otel/")], Some("https://host/otel/v1/traces")),
            (&[(ENDPOINT, "http://jaeger:4317")], Some("http://jaeger:4317")),
            (&[(ENDPOINT, "http://jaeger:4317"), (protocol, "http/protobuf")], Some("http://jaeger:4317/v1/traces")),
            (&[(ENDPOINT, "https://host:443/x"), (protocol, "grpc")], Some("https://host:443")),
            (&[(TRACES_ENDPOINT, "http://a:1/t"), (ENDPOINT, "http://b:4317")], Some("http://a:1/t")),
            (&[(ENDPOINT, "http://jaeger:4317"), ("OTEL_SDK_DISABLED", "TRUE")], None),
        ] {
            assert_eq!(of(variables).expect("allowed").as_deref(), expected, "{variables:?}");
        }
        for variables in [&[(ENDPOINT, "jaeger:4317")][..], &[(ENDPOINT, "http://a"), (protocol, "http/json")]] {
            let error = of(variables).expect_err("not allowed").to_string();
            assert!(error.contains(variables[variables.len() - 1].0), "{error}");
        }
    }
}
