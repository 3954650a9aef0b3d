//! The dashboard: pages for people. The server renders them from templates in `templates/`; one script makes what can move
//! move, and every page works without it.
//!
//! | file | what it does |
//! |---|---|
//! | `page` | what every page has: language, theme, navigation, rights |
//! | `formats` | how numbers, times and long texts are written |
//! | `plain` | values as text |
//! | `texts` | every text, in each language |
//! | `session` | cookies, and forms that only a page of ours can send |
//! | `assets` | style sheet, script, icon |
//! | `access` | login, logout, language and theme, pages about errors |
//! | `overview` | how all is |
//! | `queues`, `workers`, `cron`, `dead_letters`, `keys_page`, `audit_page` | one page each |
//! | `jobs`, `job`, `job_sheet` | search and many jobs at once; one job; what its page shows |
//! | `log_level` | what all processes log, on the page of workers |
//! | `maintenance`, `check` | switches maintenance mode on and off; checks stored data |
//! | `attempts`, `push_rules` | attempts to deliver; rules that send jobs to endpoints |
//! | `json_text` | JSON as text |
//! | `try_it` | enqueues any job |
//! | `workflows`, `channels`, `subscriptions` | lists, and a page for each |
//! | `cron_words` | schedules in plain words |
//! | `live` | what moves |

mod access;
mod assets;
mod attempts;
mod audit_page;
mod channels;
mod check;
mod cron;
mod cron_words;
mod dead_letters;
mod formats;
mod job;
mod job_sheet;
mod job_waits;
mod jobs;
mod json_text;
mod keys_page;
pub(crate) mod live;
mod log_level;
mod maintenance;
mod overview;
mod page;
mod plain;
mod push_rules;
mod queues;
pub(crate) mod session;
mod shown_value;
mod subscriptions;
mod texts;
mod try_it;
mod workers;
mod workflows;

use crate::error::ApiError;

pub(crate) use access::{error_page, log_in, log_out, login_page, set_preferences};
pub(crate) use assets::show as asset;
pub(crate) use audit_page::page as audit_page;
pub(crate) use channels::{page as channels_page, publish as channel_publish, show as channel_page};
pub(crate) use check::{page as check_page, repair as check_repair};
pub(crate) use cron::{act as cron_act, page as cron_page};
pub(crate) use dead_letters::{act as dead_letter_act, page as dead_letters_page};
pub(crate) use job::{act as job_act, page as job_page, raw as raw_job};
pub(crate) use jobs::{act as jobs_act, page as jobs_page};
pub(crate) use keys_page::{act as key_act, make as make_key, page as keys_page};
pub(crate) use log_level::act as log_level_act;
pub(crate) use maintenance::act as maintenance_act;
pub(crate) use overview::page as overview_page;
pub(crate) use push_rules::{act as push_rule_act, page as push_rules_page, show as push_rule_page};
pub(crate) use queues::{act as queue_act, page as queues_page, show as queue_page};
pub(crate) use subscriptions::{act as subscription_act, page as subscriptions_page, show as subscription_page};
pub(crate) use try_it::{enqueue as try_enqueue, page as try_page};
pub(crate) use workers::{act as worker_act, page as workers_page};
pub(crate) use workflows::{act as workflow_act, page as workflows_page, show as workflow_page};

/// Whether a path is one of the dashboard's.
pub(crate) fn is_page(path: &str) -> bool {
    path == "/" || path == "/ui" || path.starts_with("/ui/")
}

/// An action that a page does not have.
fn unknown_action(action: &str) -> ApiError {
    ApiError::not_found(format_args!("action {}", common::name::quoted(action)))
}
