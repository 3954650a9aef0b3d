//! The commands in force: SIGHUP has the file read again, and one that cannot be used changes nothing.

use std::{path::Path, sync::Arc};

use common::{
    config_file::ConfigFileError,
    reloadable::{self, ReloadOutcome, Reloadable},
};
use delivery::command::Commands;
use tokio_util::sync::CancellationToken;

/// Reads the commands of a file; without one there are none.
pub(crate) fn load(path: Option<&Path>) -> Result<Reloadable<Commands>, ConfigFileError> {
    Reloadable::load(path, Commands::load)
}

/// Hears SIGHUP, from this call on, until `stop` is cancelled.
pub(crate) fn reload_on_sighup(
    commands: Arc<Reloadable<Commands>>,
    stop: CancellationToken,
) -> impl Future<Output = ()> {
    reloadable::on_sighup(stop, move || match commands.reload(|path, _| Commands::load(path)) {
        ReloadOutcome::Reloaded(commands) => tracing::info!(commands = commands.len(), "commands read again"),
        ReloadOutcome::Invalid(error) => tracing::error!(%error, "the commands stay as they were"),
        ReloadOutcome::NoFile => tracing::info!("there is no file of commands to read again"),
    })
}
