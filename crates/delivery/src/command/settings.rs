//! The settings of programs in files: the same in queue-worker's rules and pubsub-worker's commands.

use std::{collections::BTreeMap, path::PathBuf};

use serde::Deserialize;
use toml::Spanned;

use common::config_file::ConfigReader;

/// The settings of a program in a file. See `docs/handlers.md` for bounds and defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field is described in docs/handlers.md")]
pub struct CommandSettings {
    pub program: String,
    pub args: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub pass_env: Vec<String>,
    pub directory: Option<PathBuf>,
    pub timeout_ms: u64,
    pub stop_grace_ms: u64,
    pub output_limit_bytes: u64,
    pub memory_limit_bytes: Option<u64>,
    pub cpu_limit_ms: Option<u64>,
    pub not_retryable_exit_codes: Vec<u8>,
}

/// The settings as written, before any check.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandSpec {
    /// The name, in a file of commands.
    pub(super) name: Option<Spanned<String>>,
    program: Spanned<String>,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    pass_env: Vec<String>,
    directory: Option<PathBuf>,
    timeout_ms: Option<Spanned<u64>>,
    stop_grace_ms: Option<Spanned<u64>>,
    pub(super) output_limit_bytes: Option<Spanned<u64>>,
    memory_limit_bytes: Option<Spanned<u64>>,
    cpu_limit_ms: Option<Spanned<u64>>,
    #[serde(default)]
    not_retryable_exit_codes: Vec<Spanned<u8>>,
}

impl CommandSpec {
    /// Reads the settings of a program without a name, within their bounds.
    #[must_use]
    pub fn read(self, reader: &mut ConfigReader<'_>) -> CommandSettings {
        if let Some(name) = self.name {
            reader.add_problem(name.span().start, "a command has a name only in a file of commands");
        }
        CommandSettings {
            program: self.program.into_inner(),
            args: self.args,
            env: self.env,
            pass_env: self.pass_env,
            directory: self.directory,
            timeout_ms: reader.number("timeout_ms", self.timeout_ms, 3_600_000, 1, 604_800_000),
            stop_grace_ms: reader.number("stop_grace_ms", self.stop_grace_ms, 5000, 0, 600_000),
            output_limit_bytes: reader.number("output_limit_bytes", self.output_limit_bytes, 1 << 20, 1, 64 << 20),
            memory_limit_bytes: reader.optional_number("memory_limit_bytes", self.memory_limit_bytes, 1 << 20, 1 << 50),
            cpu_limit_ms: reader.optional_number("cpu_limit_ms", self.cpu_limit_ms, 1000, 604_800_000),
            not_retryable_exit_codes: self.not_retryable_exit_codes.into_iter().map(Spanned::into_inner).collect(),
        }
    }
}
