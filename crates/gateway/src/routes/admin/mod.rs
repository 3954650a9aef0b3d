//! The admin API of the Open Job Spec, for dashboards, command lines and operators.
//!
//! | file | what |
//! |---|---|
//! | `page` | pages, and how they are shown |
//! | `filter` | which jobs a request is about |
//! | `queues`, `queue_config` | queues: list, pause, purge; look up, limits |
//! | `jobs`, `job_detail` | jobs: list, search, look up |
//! | `job_actions` | one job: retry, cancel, delete, change |
//! | `bulk` | many jobs by a filter |
//! | `dead_letters` | the same for dead letters |
//! | `workers` | workers: list, look up, quiet, deregister |
//! | `system` | maintenance mode; the settings in effect |

pub(super) mod bulk;
pub(super) mod dead_letters;
mod filter;
pub(super) mod job_actions;
mod job_detail;
pub(super) mod jobs;
mod page;
pub(super) mod queue_config;
pub(super) mod queues;
pub(super) mod system;
pub(super) mod workers;

use super::{ApiResult, ojs_response};
