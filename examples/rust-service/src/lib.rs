//! What the three programs know of each other.

use serde::{Deserialize, Serialize};

/// Compiles the programs of the quick start.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/quick-start.md")]
pub struct QuickStart;

/// The type of the jobs, and their queue.
pub const REPORT_BUILD: &str = "report.build";
/// The queue of the reports.
pub const QUEUE: &str = "reports";
/// The channel that says which reports are built.
pub const CHANNEL: &str = "reports";

/// What a report is built from: the argument of its job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Order {
    /// Its title.
    pub title: String,
    /// How many pages it has.
    pub pages: u32,
}

/// The result of its job.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// Its title.
    pub title: String,
    /// The text of each page.
    pub pages: Vec<String>,
}

/// The message about a report that is built.
#[derive(Debug, Serialize, Deserialize)]
pub struct Built {
    /// The id of its job.
    pub id: String,
    /// Its title.
    pub title: String,
}
