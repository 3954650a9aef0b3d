//! `galley completions` and `galley man`: from the same declarations as the help.

use std::path::PathBuf;

use clap::{Args, Command, ValueEnum};
use clap_complete::Shell;

use crate::{failure::CliResult, terminal::Terminal};

#[derive(Debug, Clone, Copy, ValueEnum)]
enum CompletionShell {
    Bash,
    Zsh,
    Fish,
}

#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    shell: CompletionShell,
}

#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// Write a page for each command into this folder. Else the page of galley is printed.
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
}

impl CompletionsArgs {
    pub(crate) fn run(self, mut command: Command, terminal: Terminal) -> CliResult {
        let shell = match self.shell {
            CompletionShell::Bash => Shell::Bash,
            CompletionShell::Zsh => Shell::Zsh,
            CompletionShell::Fish => Shell::Fish,
        };
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut command, "galley", &mut script);
        terminal.line(String::from_utf8_lossy(&script).trim_end())
    }
}

impl ManArgs {
    pub(crate) fn run(self, command: Command, terminal: Terminal) -> CliResult {
        if let Some(folder) = self.folder {
            std::fs::create_dir_all(&folder)?;
            return Ok(clap_mangen::generate_to(command, folder)?);
        }
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page)?;
        terminal.line(String::from_utf8_lossy(&page).trim_end())
    }
}
