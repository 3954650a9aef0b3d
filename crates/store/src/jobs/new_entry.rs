//! The stream entry of a new, ordinary job.

use std::borrow::Cow;

use common::id::new_salt;
use model::job::NewJob;
use redis::{RedisWrite, ToRedisArgs};

use crate::sealing::Sealer;

/// The fields of a new, ordinary job, with the salt of its future id. They are written into the command as they are.
#[derive(Debug)]
pub(crate) struct NewEntry<'a> {
    pub(crate) salt: u32,
    pub(crate) job: &'a NewJob,
    /// As it is stored.
    pub(crate) envelope: Cow<'a, str>,
    pub(crate) traceparent: Option<&'a str>,
}

impl<'a> NewEntry<'a> {
    pub(crate) fn new(sealer: &Sealer, job: &'a NewJob, traceparent: Option<&'a str>) -> Self {
        let (salt, plain) = (new_salt(), job.envelope.as_str());
        let envelope = if sealer.is_on() {
            sealer.seal(&["e", job.queue.as_str(), &format!("{salt:x}")], plain)
        } else {
            Cow::Borrowed(plain)
        };
        Self { salt, job, envelope, traceparent }
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
        if let Some(text) = self.traceparent {
            out.write_arg(b"c");
            out.write_arg(text.as_bytes());
        }
    }

    fn num_of_args(&self) -> usize {
        4 + 2 * self.timeouts().count() + if self.traceparent.is_some() { 2 } else { 0 }
    }
}
