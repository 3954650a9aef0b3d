//! Log lines say what they are about: the job, the request, and the span, by which people find the trace.

use std::fmt::{self, Write};

use tracing::{Event, Subscriber};
use tracing_subscriber::{
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::{Format, Full, Json, Writer},
    },
    registry::LookupSpan,
};

use super::WorkScope;

/// Lines with the ids of what the task works on.
pub(super) struct WorkLines<F> {
    lines: F,
    /// Adds a field to a line without its end.
    push: fn(&mut String, &str, &dyn fmt::Display) -> fmt::Result,
    /// How a line ends.
    end: &'static str,
}

impl WorkLines<Format<Json>> {
    pub(super) fn for_machines(lines: Format<Json>) -> Self {
        // Ids need no escapes
        Self { lines, push: |line, name, id| write!(line, ",\"{name}\":\"{id}\""), end: "}\n" }
    }
}

impl WorkLines<Format<Full>> {
    pub(super) fn for_people(lines: Format<Full>) -> Self {
        Self { lines, push: |line, name, id| write!(line, " {name}={id}"), end: "\n" }
    }
}

impl<F, S, N> FormatEvent<S, N> for WorkLines<F>
where
    F: FormatEvent<S, N>,
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let work = WorkScope::current();
        let (job, request, span) = (work.job(), work.request(), work.trace().span());
        if job.is_none() && request.is_none() && span.is_none() {
            return self.lines.format_event(context, writer, event);
        }
        let mut line = String::with_capacity(512);
        self.lines.format_event(context, Writer::new(&mut line), event)?;
        if line.ends_with(self.end) {
            line.truncate(line.len() - self.end.len());
            let mut add = |name: &str, id: &dyn fmt::Display| {
                // The event may say it itself
                if event.metadata().fields().field(name).is_none() {
                    return (self.push)(&mut line, name, id);
                }
                Ok(())
            };
            if let Some(job) = &job {
                add("job_id", job)?;
            }
            if let Some(request) = &request {
                add("request_id", request)?;
            }
            if let Some(span) = span {
                add("trace_id", &format_args!("{:032x}", span.trace_id))?;
                add("span_id", &format_args!("{:016x}", span.span_id))?;
            }
            line.push_str(self.end);
        }
        writer.write_str(&line)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use super::*;
    use crate::trace_context::TraceContext;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("not poisoned").extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_says_which_job_request_and_span_it_is_about() {
        let trace = TraceContext::new(Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), None, None);
        let job = "0190c7a2-0000-7000-8000-000000000000".parse().expect("an id");
        let written = Lines::default();
        let lines = written.clone();
        let format = tracing_subscriber::fmt::format().json().flatten_event(true).with_current_span(false);
        let subscriber = tracing_subscriber::fmt()
            .json()
            .with_writer(move || lines.clone())
            .event_format(WorkLines::for_machines(format.with_span_list(false)))
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(a = 1, "about nothing");
            WorkScope::of_job(job, trace.clone()).within(|| tracing::info!("about a job"));
            WorkScope::of_request("r-1", trace).within(|| tracing::info!(request_id = "own", "about a request"));
        });
        let written = written.0.lock().expect("not poisoned").clone();
        let written: Vec<serde_json::Value> = String::from_utf8(written)
            .expect("text")
            .lines()
            .map(|line| serde_json::from_str(line).expect(line))
            .collect();
        let ids = |line: &serde_json::Value| {
            ["job_id", "request_id", "trace_id", "span_id"].map(|name| line[name].as_str().map(ToOwned::to_owned))
        };
        let trace = || (Some("0af7651916cd43dd8448eb211c80319c".to_owned()), Some("b7ad6b7169203331".to_owned()));
        assert_eq!(ids(&written[0]), [None, None, None, None]);
        assert_eq!(ids(&written[1]), [Some(job.to_string()), None, trace().0, trace().1]);
        assert_eq!(ids(&written[2]), [None, Some("own".to_owned()), trace().0, trace().1]);
    }
}
