//! The commands in force: SIGHUP has the file read again, and one that cannot be used changes nothing.

use std::{path::Path, sync::Arc};

use common::{
    config_file::FileError,
    reloadable::{self, InForce, ReadAgain},
};
use delivery::command::Commands;
use tokio_util::sync::CancellationToken;

/// Reads the commands of a file; without one there are none.
pub(crate) fn load(path: Option<&Path>) -> Result<InForce<Commands>, FileError> {
    InForce::load(path, Commands::load)
}

/// Hears SIGHUP, from this call on, until `stop` is cancelled.
pub(crate) fn on_signal(commands: Arc<InForce<Commands>>, stop: CancellationToken) -> impl Future<Output = ()> {
    reloadable::on_hang_up(stop, move || match commands.read_again(|path, _| Commands::load(path)) {
        ReadAgain::Changed(commands) => tracing::info!(commands = commands.len(), "commands read again"),
        ReadAgain::Unusable(error) => tracing::error!(%error, "the commands stay as they were"),
        ReadAgain::NoFile => tracing::info!("there is no file of commands to read again"),
    })
}
