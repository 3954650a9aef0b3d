//! The stream entry of a new, ordinary job.

use std::borrow::Cow;

use common::{id::new_salt, trace_context::TraceContext};
use model::job::NewJob;
use redis::{RedisWrite, ToRedisArgs};

use super::record::TRACE_REST;
use crate::sealing::Sealer;

/// The fields of a new, ordinary job, with the salt of its future id. They are written into the command as they are.
#[derive(Debug)]
pub(crate) struct NewEntry<'a> {
    pub(crate) salt: u32,
    pub(crate) job: &'a NewJob,
    /// As it is stored.
    pub(crate) envelope: Cow<'a, str>,
    pub(crate) trace: &'a TraceContext,
    /// What is stored of it beside its `traceparent`.
    trace_rest: Option<String>,
}

impl<'a> NewEntry<'a> {
    pub(crate) fn new(sealer: &Sealer, job: &'a NewJob, trace: &'a TraceContext) -> Self {
        let (salt, plain) = (new_salt(trace.is_new_and_unrecorded()), job.envelope.as_str());
        let owner = || format!("{salt:x}");
        let envelope = if sealer.is_on() {
            sealer.seal(&["e", job.queue.as_str(), &owner()], plain)
        } else {
            Cow::Borrowed(plain)
        };
        let seal = |rest: String| sealer.seal(&[TRACE_REST, job.queue.as_str(), &owner()], &rest).into_owned();
        let trace_rest = trace.stored_rest().map(seal);
        Self { salt, job, envelope, trace, trace_rest }
    }

    fn trace_fields(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let fields = [("c", self.trace.stored_with_new_job()), (TRACE_REST, self.trace_rest.as_deref())];
        fields.into_iter().filter_map(|(name, text)| Some((name, text?)))
    }

    fn timeouts(&self) -> impl Iterator<Item = (&'static [u8], u64)> {
        let timeouts: [(&[u8], _); 2] = [(b"v", self.job.visibility_timeout_ms), (b"t", self.job.timeout_ms)];
        timeouts.into_iter().filter_map(|(name, ms)| Some((name, ms?)))
    }
}

impl ToRedisArgs for NewEntry<'_> {
    fn write_redis_args<W: RedisWrite + ?Sized>(&self, out: &mut W) {
        out.write_arg(b"i");
        out.write_arg_fmt(format_args!("{:x}", self.salt));
        out.write_arg(b"e");
        out.write_arg(self.envelope.as_bytes());
        for (name, ms) in self.timeouts() {
            out.write_arg(name);
            out.write_arg_fmt(ms);
        }
        for (name, text) in self.trace_fields() {
            out.write_arg(name.as_bytes());
            out.write_arg(text.as_bytes());
        }
    }

    fn num_of_args(&self) -> usize {
        4 + 2 * self.timeouts().count() + 2 * self.trace_fields().count()
    }
}
