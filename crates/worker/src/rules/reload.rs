//! The rules in force: SIGHUP has the file read again, and one that cannot be used changes nothing.

use std::{path::Path, sync::Arc};

use common::{
    config_file::FileError,
    reloadable::{self, InForce, ReadAgain},
};
use tokio_util::sync::CancellationToken;

use super::{Dispatch, Rules};
use crate::handlers::Handlers;

/// Reads the rules of a file; without one there are none.
pub(crate) fn load(path: Option<&Path>, handlers: &Handlers) -> Result<InForce<Rules>, FileError> {
    InForce::load(path, |path| Rules::load(path, handlers, &Rules::default()))
}

/// Hears SIGHUP until `stop` is cancelled.
pub(crate) fn on_signal(dispatch: Arc<Dispatch>, stop: CancellationToken) -> impl Future<Output = ()> {
    reloadable::on_hang_up(stop, move || {
        let Dispatch { handlers, rules } = &*dispatch;
        match rules.read_again(|path, before| Rules::load(path, handlers, before)) {
            ReadAgain::Changed(rules) => tracing::info!(rules = rules.0.len(), "rules read again"),
            ReadAgain::Unusable(error) => tracing::error!(%error, "the rules stay as they were"),
            ReadAgain::NoFile => tracing::info!("there is no file of rules to read again"),
        }
    })
}
