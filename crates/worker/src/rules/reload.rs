//! The current rules. SIGHUP reads the file again; an invalid file changes nothing.

use std::{path::Path, sync::Arc};

use common::{
    config_file::ConfigFileError,
    reloadable::{self, ReloadOutcome, Reloadable},
};
use tokio_util::sync::CancellationToken;

use super::{Dispatcher, Rules};
use crate::handlers::Handlers;

/// Loads the rules file; no path means no rules.
pub(crate) fn load(path: Option<&Path>, handlers: &Handlers) -> Result<Reloadable<Rules>, ConfigFileError> {
    Reloadable::load(path, |path| Rules::load(path, handlers, &Rules::default()))
}

/// Reloads the rules on each SIGHUP until `stop` is cancelled.
pub(crate) fn reload_on_sighup(dispatch: Arc<Dispatcher>, stop: CancellationToken) -> impl Future<Output = ()> {
    reloadable::on_sighup(stop, move || {
        let Dispatcher { handlers, rules } = &*dispatch;
        match rules.reload(|path, before| Rules::load(path, handlers, before)) {
            ReloadOutcome::Reloaded(rules) => {
                tracing::info!(event = "rules.reloaded", rules = rules.0.len(), "rules read again");
            }
            ReloadOutcome::Invalid(error) => {
                tracing::error!(event = "rules.reload_failed", %error, "the rules stay as they were");
            }
            ReloadOutcome::NoFile => tracing::info!(event = "rules.no_file", "there is no file of rules to read again"),
        }
    })
}
