//! Asking before something that cannot be undone.

use std::io::{self, BufRead, IsTerminal, Write};

use clap::Args;

use crate::failure::{CliError, CliResult};

/// The option of commands that ask.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Confirmation {
    /// Do it without asking.
    #[arg(long, short = 'y')]
    pub(crate) yes: bool,
}

impl Confirmation {
    /// Asks, with what it is about. An error if the answer is not yes.
    pub(crate) fn ask(self, question: &str) -> CliResult {
        if self.yes {
            return Ok(());
        }
        if !io::stdin().is_terminal() {
            return Err(CliError::usage(format!("{question} There is no terminal to ask at: say --yes")));
        }
        eprint!("{question} [y/N] ");
        io::stderr().flush()?;
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer)?;
        match answer.trim().to_lowercase().as_str() {
            "y" | "yes" => Ok(()),
            _ => Err(CliError::failed("nothing was done")),
        }
    }
}
