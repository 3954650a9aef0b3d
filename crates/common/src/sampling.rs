//! Which traces are recorded: by the parent's decision, by a ratio of trace ids, or all or none.

use std::str::FromStr;

use crate::trace_context::SpanReference;

/// Which traces are recorded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Whether the parent's decision counts, where there is a parent.
    pub follows_parent: bool,
    /// The part of the other traces that is recorded, from 0 to 1.
    pub ratio: f64,
}

/// A sampler that has no name, or a ratio that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a sampler must be {SAMPLERS}")]
pub struct SamplerError;

/// What a sampler can be.
pub const SAMPLERS: &str = "always_on, always_off, parentbased_always_on, parentbased_always_off, or traceidratio/0.1 or \
    parentbased_traceidratio/0.1 with a ratio from 0 to 1";

impl Default for Sampling {
    fn default() -> Self {
        Self { follows_parent: true, ratio: 0.1 }
    }
}

impl FromStr for Sampling {
    type Err = SamplerError;

    /// Parses the names of OpenTelemetry, with the ratio after a slash. Without one it is 1.
    fn from_str(text: &str) -> Result<Self, SamplerError> {
        let (name, ratio) = text.split_once('/').map_or((text, None), |(name, ratio)| (name, Some(ratio)));
        let (follows_parent, sampler) = match name.strip_prefix("parentbased_") {
            Some(sampler) => (true, sampler),
            None => (false, name),
        };
        let ratio = match (sampler, ratio) {
            ("always_on", None) => 1.0,
            ("always_off", None) => 0.0,
            ("traceidratio", ratio) => ratio.map_or(Ok(1.0), |ratio| ratio.parse().map_err(|_| SamplerError))?,
            _ => return Err(SamplerError),
        };
        if (0.0..=1.0).contains(&ratio) { Ok(Self { follows_parent, ratio }) } else { Err(SamplerError) }
    }
}

impl Sampling {
    /// Whether a new trace is recorded. Every process decides the same for one trace.
    pub(crate) fn samples_root(self, trace_id: u128) -> bool {
        // As OpenTelemetry does: 63 random bits of the id below the bound
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let bound = (self.ratio.clamp(0.0, 1.0) * (1_u64 << 63) as f64) as u64;
        #[allow(clippy::cast_possible_truncation)]
        let random = trace_id as u64 >> 1;
        random < bound
    }

    /// Whether a part of a trace is recorded.
    pub(crate) fn samples_child(self, parent: SpanReference) -> bool {
        if self.follows_parent { parent.is_sampled() } else { self.samples_root(parent.trace_id) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samplers_have_the_names_of_opentelemetry() {
        for (text, follows_parent, ratio) in [
            ("always_on", false, 1.0),
            ("parentbased_always_off", true, 0.0),
            ("traceidratio", false, 1.0),
            ("parentbased_traceidratio/0.25", true, 0.25),
        ] {
            assert_eq!(text.parse(), Ok(Sampling { follows_parent, ratio }), "{text}");
        }
        for bad in ["", "sometimes", "always_on/0.5", "traceidratio/2", "traceidratio/x", "traceidratio/NaN"] {
            assert_eq!(bad.parse::<Sampling>(), Err(SamplerError), "{bad}");
        }
    }

    #[test]
    fn a_ratio_is_about_trace_ids_and_a_parent_decides_first() {
        let sampling = |ratio, follows_parent| Sampling { follows_parent, ratio };
        let sampled = SpanReference { trace_id: u128::MAX, span_id: 1, flags: 1 };
        assert!(sampling(1.0, true).samples_root(u128::MAX) && sampling(1.0, true).samples_root(0));
        assert!(!sampling(0.0, true).samples_root(0));
        assert!(sampling(0.5, true).samples_root(u128::from(u64::MAX / 2)));
        assert!(!sampling(0.5, true).samples_root(u128::from(u64::MAX / 2 + 2)));
        assert!(sampling(0.0, true).samples_child(sampled) && !sampling(0.5, false).samples_child(sampled));
        assert!(!sampling(1.0, true).samples_child(SpanReference { flags: 0, ..sampled }));
        let kept = (0..10_000).filter(|_| sampling(0.1, true).samples_root(rand::random())).count();
        assert!((800..1200).contains(&kept), "{kept}");
    }
}
