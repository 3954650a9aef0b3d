//! The media types of answers.

/// Everything under `/ojs`.
pub(crate) const OJS_JSON: &str = "application/openjobspec+json";

/// Errors everywhere else: problem details of RFC 9457.
pub(crate) const PROBLEM_JSON: &str = "application/problem+json";
