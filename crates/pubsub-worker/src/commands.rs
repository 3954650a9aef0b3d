//! The current commands. SIGHUP reads the file again; an invalid file changes nothing.

use std::{path::Path, sync::Arc};

use common::{
    config_file::ConfigFileError,
    reloadable::{self, ReloadOutcome, Reloadable},
};
use delivery::command::Commands;
use tokio_util::sync::CancellationToken;

/// Loads the commands file; no path means no commands.
pub(crate) fn load(path: Option<&Path>) -> Result<Reloadable<Commands>, ConfigFileError> {
    Reloadable::load(path, Commands::load)
}

/// Handles SIGHUP, from this call until `stop` is cancelled.
pub(crate) fn reload_on_sighup(
    commands: Arc<Reloadable<Commands>>,
    stop: CancellationToken,
) -> impl Future<Output = ()> {
    reloadable::on_sighup(stop, move || match commands.reload(|path, _| Commands::load(path)) {
        ReloadOutcome::Reloaded(commands) => {
            tracing::info!(event = "commands.reloaded", commands = commands.len(), "commands read again");
        }
        ReloadOutcome::Invalid(error) => {
            tracing::error!(event = "commands.reload_failed", %error, "the commands stay as they were");
        }
        ReloadOutcome::NoFile => {
            tracing::info!(event = "commands.no_file", "there is no file of commands to read again");
        }
    })
}
