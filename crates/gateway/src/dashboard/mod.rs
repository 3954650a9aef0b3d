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
//! | `queues`, `workers`, `cron`, `dead_letters` | one page each |
//! | `cron_words` | schedules in plain words |
//! | `live` | what moves |

mod access;
mod assets;
mod cron;
mod cron_words;
mod dead_letters;
mod formats;
pub(crate) mod live;
mod overview;
mod page;
mod plain;
mod queues;
pub(crate) mod session;
mod texts;
mod workers;

use crate::error::ApiError;

pub(crate) use access::{error_page, log_in, log_out, login_page, set_preferences};
pub(crate) use assets::show as asset;
pub(crate) use cron::{act as cron_act, page as cron_page};
pub(crate) use dead_letters::{act as dead_letter_act, page as dead_letters_page};
pub(crate) use overview::page as overview_page;
pub(crate) use queues::{act as queue_act, page as queues_page};
pub(crate) use workers::{act as worker_act, page as workers_page};

/// Whether a path is one of the dashboard's.
pub(crate) fn is_page(path: &str) -> bool {
    path == "/" || path == "/ui" || path.starts_with("/ui/")
}

/// An action that a page does not have.
fn unknown_action(action: &str) -> ApiError {
    ApiError::not_found(format_args!("action {}", common::name::quoted(action)))
}
