//! Spans by OpenTelemetry's conventions for messaging and HTTP.
//!
//! Without an exporter a span is nothing but the trace that is passed on: no allocation, no clock. With one, a trace that is
//! not sampled costs two random numbers: nothing is recorded, unless the attempt fails ([`ActiveSpan::record_failed`]).
//! A span is sampled if its parent is; one without a parent as `telemetry.sampler` says.

use std::{
    cell::Cell,
    sync::OnceLock,
    time::{Duration, SystemTime},
};

use opentelemetry::{
    Context, KeyValue, Value,
    trace::{
        Link, Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId,
        TraceState, Tracer as _,
    },
};
use opentelemetry_sdk::trace::{
    IdGenerator, RandomIdGenerator, SamplingDecision, SamplingResult, SdkTracer, ShouldSample, Span,
};
/// The names of attributes.
pub use opentelemetry_semantic_conventions::attribute;
use opentelemetry_semantic_conventions::attribute as names;

pub use super::span_description::{MAX_LINKS, Operation, SpanDescription};
use crate::sampling::Sampling;
use crate::trace_context::{SpanReference, TraceContext};

/// Longest message of an exception, in characters.
const MAX_MESSAGE_CHARS: usize = 1024;

static RECORDING: OnceLock<Recording> = OnceLock::new();

/// What records the spans of this process.
struct Recording {
    tracer: SdkTracer,
    sampling: Sampling,
}

thread_local! {
    /// The span that is built on this thread: whether it is recorded, and its ids, were decided before.
    static BUILT: Cell<Option<SpanReference>> = const { Cell::new(None) };
}

/// From now on spans are recorded.
pub(super) fn start_recording(tracer: SdkTracer, sampling: Sampling) {
    let _ = RECORDING.set(Recording { tracer, sampling });
}

/// Whether spans are exported.
#[must_use]
pub fn is_exporting() -> bool {
    RECORDING.get().is_some()
}

/// A span that has not ended. It ends when it is dropped.
#[derive(Debug)]
pub struct ActiveSpan {
    parent: TraceContext,
    /// None where nothing is exported.
    own: Option<OwnSpan>,
    passed_on: OnceLock<TraceContext>,
}

#[derive(Debug)]
struct OwnSpan {
    reference: SpanReference,
    started: SystemTime,
    /// None if it is not sampled, or not recorded yet.
    recorded: Option<Box<Span>>,
}

impl ActiveSpan {
    /// Starts a span in the trace of its parent, or a trace if that names none.
    #[must_use]
    pub fn start(parent: &TraceContext, describe: impl FnOnce() -> SpanDescription) -> Self {
        Self::start_at(parent, None, describe)
    }

    /// Starts a span that began earlier.
    #[must_use]
    pub fn start_at(
        parent: &TraceContext,
        began: Option<SystemTime>,
        describe: impl FnOnce() -> SpanDescription,
    ) -> Self {
        let mut span = Self::prepare_at(parent, began);
        if span.is_sampled() {
            span.record(describe());
        }
        span
    }

    /// Starts a span that is recorded only if [`ActiveSpan::record`] says so: it is not known yet whether anything happens.
    #[must_use]
    pub fn prepare(parent: &TraceContext) -> Self {
        Self::prepare_at(parent, None)
    }

    fn prepare_at(parent: &TraceContext, began: Option<SystemTime>) -> Self {
        let own = RECORDING.get().map(|recording| OwnSpan {
            reference: new_reference(parent.span(), recording.sampling),
            started: began.unwrap_or_else(SystemTime::now),
            recorded: None,
        });
        Self { parent: parent.clone(), own, passed_on: OnceLock::new() }
    }

    /// Whether its trace is recorded.
    #[must_use]
    pub fn is_sampled(&self) -> bool {
        self.own.as_ref().is_some_and(|own| own.reference.is_sampled())
    }

    /// Records a prepared span, from when it started.
    pub fn record(&mut self, description: SpanDescription) {
        if let (Some(recording), Some(own)) = (RECORDING.get(), &mut self.own) {
            own.recorded.get_or_insert_with(|| build(recording, own.reference, &self.parent, description, own.started));
        }
    }

    /// What to pass on to what this span causes.
    #[must_use]
    pub fn context(&self) -> &TraceContext {
        let Some(own) = &self.own else { return &self.parent };
        self.passed_on.get_or_init(|| match self.parent.span() {
            Some(_) => self.parent.with_span(own.reference),
            None => self.parent.with_first_span(own.reference),
        })
    }

    /// The span itself; none if it is not recorded.
    #[must_use]
    pub fn recorded(&self) -> Option<SpanReference> {
        let own = self.own.as_ref()?;
        own.recorded.as_ref().map(|_| SpanReference { flags: own.reference.flags | 1, ..own.reference })
    }

    /// Adds an attribute.
    pub fn set(&mut self, name: &'static str, value: impl Into<Value>) {
        if let Some(span) = self.span() {
            span.set_attribute(KeyValue::new(name, value));
        }
    }

    /// Adds the status of an HTTP answer. One of 500 and above is an error of a server, one of 400 and above of a client's.
    pub fn set_http_status(&mut self, status: u16, first_error: u16) {
        if let Some(span) = self.span() {
            span.set_attribute(KeyValue::new(names::HTTP_RESPONSE_STATUS_CODE, i64::from(status)));
            if status >= first_error {
                span.set_attribute(KeyValue::new(names::ERROR_TYPE, status.to_string()));
                span.set_status(Status::error(""));
            }
        }
    }

    /// Notes that it failed, with the exception as an event.
    pub fn fail(&mut self, error_type: &str, message: Option<&str>) {
        if let Some(span) = self.span() {
            note_failure(span, error_type, message);
        }
    }

    /// Notes that an attempt failed. It is recorded whether or not its trace is sampled.
    pub fn record_failed(
        &mut self,
        error_type: &str,
        message: Option<&str>,
        describe: impl FnOnce() -> SpanDescription,
    ) {
        if let (Some(recording), Some(own)) = (RECORDING.get(), &mut self.own) {
            let span = own
                .recorded
                .get_or_insert_with(|| build(recording, own.reference, &self.parent, describe(), own.started));
            note_failure(span, error_type, message);
        }
    }

    /// Makes what `work` does part of this span: spans that it makes with `tracing` are its children.
    pub fn attach<F: Future>(&self, work: F) -> impl Future<Output = F::Output> + use<F> {
        let span = self.own.as_ref().and_then(|own| own.recorded.as_ref());
        let context = span.map(|span| Context::new().with_remote_span_context(span.span_context().clone()));
        async move {
            let mut work = std::pin::pin!(work);
            std::future::poll_fn(|task| {
                let _attached = context.clone().map(Context::attach);
                work.as_mut().poll(task)
            })
            .await
        }
    }

    fn span(&mut self) -> Option<&mut Span> {
        self.own.as_mut()?.recorded.as_deref_mut()
    }
}

fn note_failure(span: &mut Span, error_type: &str, message: Option<&str>) {
    span.set_attribute(KeyValue::new(names::ERROR_TYPE, error_type.to_owned()));
    span.set_status(Status::error(error_type.to_owned()));
    let mut exception = vec![KeyValue::new(names::EXCEPTION_TYPE, error_type.to_owned())];
    if let Some(message) = message {
        let message: String = message.chars().take(MAX_MESSAGE_CHARS).collect();
        exception.push(KeyValue::new(names::EXCEPTION_MESSAGE, message));
    }
    span.add_event("exception", exception);
}

/// Records what a batch went through, after it is over: one span in the trace of its jobs, or one of its own with links to
/// them if they belong to several. Nothing if none of them is recorded.
pub fn record_batch(
    jobs: impl IntoIterator<Item = SpanReference>,
    took: Duration,
    describe: impl FnOnce() -> SpanDescription,
) {
    let Some(recording) = RECORDING.get() else { return };
    let mut jobs: Vec<SpanReference> = jobs.into_iter().filter(|job| job.is_sampled()).take(MAX_LINKS).collect();
    let Some(first) = jobs.first().copied() else { return };
    let is_one_trace = jobs.iter().all(|job| job.trace_id == first.trace_id);
    if is_one_trace {
        jobs.remove(0);
    }
    let parent = if is_one_trace { TraceContext::default().with_span(first) } else { TraceContext::default() };
    let reference = SpanReference { flags: 1, ..new_reference(parent.span(), recording.sampling) };
    let began = SystemTime::now().checked_sub(took).unwrap_or_else(SystemTime::now);
    drop(build(recording, reference, &parent, describe().with_links(jobs), began));
}

fn new_reference(parent: Option<SpanReference>, sampling: Sampling) -> SpanReference {
    let new_id = || loop {
        // Zero is no id
        let id = rand::random::<u64>();
        if id != 0 {
            return id;
        }
    };
    if let Some(parent) = parent {
        let is_sampled = sampling.samples_child(parent);
        return SpanReference { span_id: new_id(), flags: parent.flags & !1 | u8::from(is_sampled), ..parent };
    }
    let trace_id = u128::from(new_id()) << 64 | u128::from(new_id());
    SpanReference { trace_id, span_id: new_id(), flags: u8::from(sampling.samples_root(trace_id)) }
}

fn build(
    recording: &Recording,
    own: SpanReference,
    parent: &TraceContext,
    description: SpanDescription,
    started: SystemTime,
) -> Box<Span> {
    let SpanDescription { name, kind, attributes, links } = description;
    let links = links.into_iter().map(|link| Link::with_context(span_context(link, TraceState::default())));
    let builder = SpanBuilder::from_name(name)
        .with_kind(kind)
        .with_start_time(started)
        .with_attributes(attributes)
        .with_links(links.collect());
    let context = match parent.span() {
        Some(span) => {
            let state = parent.tracestate().and_then(|text| text.parse().ok()).unwrap_or_default();
            Context::new().with_remote_span_context(span_context(span, state))
        }
        None => Context::new(),
    };
    BUILT.set(Some(own));
    let span = recording.tracer.build_with_context(builder, &context);
    BUILT.set(None);
    Box::new(span)
}

fn span_context(span: SpanReference, state: TraceState) -> SpanContext {
    let (trace_id, span_id) = (TraceId::from(span.trace_id), SpanId::from(span.span_id));
    SpanContext::new(trace_id, span_id, TraceFlags::new(span.flags), true, state)
}

/// Gives a span the ids that were chosen for it.
#[derive(Debug, Default)]
pub(super) struct ChosenIds(RandomIdGenerator);

impl IdGenerator for ChosenIds {
    fn new_trace_id(&self) -> TraceId {
        BUILT.get().map_or_else(|| self.0.new_trace_id(), |built| TraceId::from(built.trace_id))
    }

    fn new_span_id(&self) -> SpanId {
        BUILT.get().map_or_else(|| self.0.new_span_id(), |built| SpanId::from(built.span_id))
    }
}

/// Records what was decided to be recorded, and spans of handlers inside such a span.
#[derive(Debug, Clone)]
pub(super) struct DecidedBefore;

impl ShouldSample for DecidedBefore {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        _: TraceId,
        _: &str,
        _: &SpanKind,
        _: &[KeyValue],
        _: &[Link],
    ) -> SamplingResult {
        let span = parent.filter(|parent| parent.has_active_span()).map(|parent| parent.span().span_context().clone());
        let is_recorded = BUILT.get().is_some() || span.as_ref().is_some_and(SpanContext::is_sampled);
        SamplingResult {
            decision: if is_recorded { SamplingDecision::RecordAndSample } else { SamplingDecision::Drop },
            attributes: Vec::new(),
            trace_state: span.map(|span| span.trace_state().clone()).unwrap_or_default(),
        }
    }
}
