//! The rules in force: SIGHUP has the file read again, and one that cannot be used changes nothing.

use std::{path::Path, sync::Arc};

use common::{
    config_file::ConfigFileError,
    reloadable::{self, ReloadOutcome, Reloadable},
};
use tokio_util::sync::CancellationToken;

use super::{Dispatcher, Rules};
use crate::handlers::Handlers;

/// Reads the rules of a file; without one there are none.
pub(crate) fn load(path: Option<&Path>, handlers: &Handlers) -> Result<Reloadable<Rules>, ConfigFileError> {
    Reloadable::load(path, |path| Rules::load(path, handlers, &Rules::default()))
}

/// Hears SIGHUP until `stop` is cancelled.
pub(crate) fn reload_on_sighup(dispatch: Arc<Dispatcher>, stop: CancellationToken) -> impl Future<Output = ()> {
    reloadable::on_sighup(stop, move || {
        let Dispatcher { handlers, rules } = &*dispatch;
        match rules.reload(|path, before| Rules::load(path, handlers, before)) {
            ReloadOutcome::Reloaded(rules) => tracing::info!(rules = rules.0.len(), "rules read again"),
            ReloadOutcome::Invalid(error) => tracing::error!(%error, "the rules stay as they were"),
            ReloadOutcome::NoFile => tracing::info!("there is no file of rules to read again"),
        }
    })
}
