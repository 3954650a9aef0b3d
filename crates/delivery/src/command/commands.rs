//! The commands file: a subscription names a command, and only the operator's file says which program that is.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    path::Path,
    sync::Arc,
    time::Duration,
};

use serde::Deserialize;
use toml::Spanned;

use super::{Command, CommandSpec, StandardOutput};
use common::{
    config_file::{ConfigFileError, ConfigReader},
    name::CommandName,
};

/// Maximum number of commands in a file.
const MAX_COMMANDS: usize = 1000;

/// The commands of a file, by name. Standard output of their programs is discarded.
#[derive(Debug, Default)]
pub struct Commands(BTreeMap<CommandName, Arc<Command>>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CommandsFile {
    #[serde(default, rename = "command")]
    commands: Vec<Spanned<CommandSpec>>,
}

impl Commands {
    /// Loads a file.
    ///
    /// # Errors
    /// The file cannot be read, or something in it is invalid: every problem with its line.
    pub fn load(path: &Path) -> Result<Self, ConfigFileError> {
        common::config_file::load(path, "commands", Self::read)
    }

    /// The command with that name.
    #[must_use]
    pub fn get(&self, name: &CommandName) -> Option<Arc<Command>> {
        self.0.get(name).cloned()
    }

    /// The longest time from a stop to the end of a run of any of them.
    #[must_use]
    pub fn max_stop_duration(&self) -> Duration {
        self.0.values().map(|command| command.max_stop_duration()).max().unwrap_or_default()
    }

    /// The number of commands.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn read(reader: &mut ConfigReader<'_>, written: CommandsFile) -> Self {
        if let Some(command) = written.commands.get(MAX_COMMANDS) {
            reader.add_problem(command.span().start, format!("there can be at most {MAX_COMMANDS} commands"));
        }
        let mut lines = BTreeMap::new();
        let mut commands = BTreeMap::new();
        for command in written.commands {
            let at = command.span().start;
            let mut command = command.into_inner();
            let name = read_name(reader, at, command.name.take(), &mut lines);
            if let Some(limit) = &command.output_limit_bytes {
                let what = "output_limit_bytes is for jobs: what the program of a subscription writes is discarded";
                reader.add_problem(limit.span().start, what);
            }
            let settings = command.read(reader);
            match (name, Command::new(settings, StandardOutput::Discarded)) {
                (Some(name), Ok(command)) => drop(commands.insert(name, Arc::new(command))),
                (None, Ok(_)) => {}
                (_, Err(problem)) => reader.add_problem(at, problem),
            }
        }
        Self(commands)
    }
}

/// The name of the command that starts at a byte; none if it has none or another command has the same name.
fn read_name(
    reader: &mut ConfigReader<'_>,
    at: usize,
    written: Option<Spanned<String>>,
    lines: &mut BTreeMap<CommandName, usize>,
) -> Option<CommandName> {
    let Some(written) = written else {
        reader.add_problem(at, "a command must have a name");
        return None;
    };
    let at = written.span().start;
    let name =
        written.get_ref().parse::<CommandName>().map_err(|error| reader.add_problem(at, error.to_string())).ok()?;
    match lines.entry(name.clone()) {
        Entry::Vacant(free) => {
            free.insert(reader.line(at));
            Some(name)
        }
        Entry::Occupied(other) => {
            reader.add_problem(at, format!("there is a command named {name} on line {} already", other.get()));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn parse(text: &str) -> Result<Commands, Vec<String>> {
        let shown = |problem: &common::config_file::ConfigProblem| format!("{}: {}", problem.line, problem.message);
        common::config_file::parse(text, Commands::read).map_err(|problems| problems.iter().map(shown).collect())
    }

    #[test]
    fn commands_are_found_by_their_names() {
        let commands = parse(
            "[[command]]\nname = \"resize-images\"\nprogram = \"/usr/local/bin/resize\"\nargs = [\"--fast\"]\n\
             timeout_ms = 10000\n\n[[command]]\nname = \"0.b\"\nprogram = \"true\"\n",
        )
        .expect("commands");
        let get = |name: &str| commands.get(&name.parse().expect("a name"));
        let resize = get("resize-images").expect("the first");
        assert_eq!(
            (resize.settings().program.as_str(), resize.timeout()),
            ("/usr/local/bin/resize", Duration::from_secs(10))
        );
        assert_eq!(resize.settings().args, ["--fast"]);
        assert_eq!(get("0.b").expect("the second").timeout(), Duration::from_hours(1));
        assert!(get("resize").is_none());
        assert_eq!(commands.len(), 2);
        assert!(parse("").expect("none").is_empty());
    }

    #[test]
    fn every_problem_is_said_at_once_with_its_line() {
        let text = r#"
[[command]]
name = "Resize"
program = "true"

[[command]]
program = "true"

[[command]]
name = "a"
program = "true"
timeout_ms = 0
cpu_limit_ms = 999

[[command]]
name = "a"
program = ""

[[command]]
name = "b"
program = "true"
output_limit_bytes = 10
not_retryable_exit_codes = [75]
"#;
        let found = parse(text).expect_err("problems");
        let expected = [
            (3, "command must match ^[a-z0-9][a-z0-9.-]*$ and have 1 to 128 characters, got \"Resize\""),
            (6, "a command must have a name"),
            (12, "timeout_ms must be 1 to 604800000, got 0"),
            (13, "cpu_limit_ms must be 1000 to 604800000, got 999"),
            (16, "there is a command named a on line 10 already"),
            (15, "program: a path or a name is required"),
            (22, "output_limit_bytes is for jobs"),
            (19, "not_retryable_exit_codes: from 1 to 255 and not 75"),
        ];
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for ((line, what), found) in expected.into_iter().zip(&found) {
            assert!(found.starts_with(&format!("{line}: {what}")), "{line}: {what} and not {found}");
        }
    }

    #[test]
    fn what_is_no_command_is_refused_where_it_stands() {
        for (text, line) in [
            ("[[command]]\nname = \"a\"\nprogram = \"true\"\nshell = true\n", 4),
            ("[[command]]\nname = \"a\"\n", 1),
            ("[[command]]\nname = 5\nprogram = \"true\"\n", 2),
            ("\n[[rule]]\n", 2),
            ("[[command]\n", 1),
        ] {
            let found = parse(text).expect_err(text);
            assert!(found.len() == 1 && found[0].starts_with(&format!("{line}: ")), "{text}: {found:?}");
        }
        let many = |count: usize| {
            let named = |n: usize| format!("[[command]]\nname = \"n{n}\"\nprogram = \"true\"\n");
            (0..count).map(named).collect::<Vec<_>>().concat()
        };
        assert_eq!(parse(&many(MAX_COMMANDS)).expect("as many as there can be").len(), 1000);
        assert_eq!(parse(&many(MAX_COMMANDS + 1)).expect_err("one more"), ["3001: there can be at most 1000 commands"]);
    }

    #[test]
    fn the_commands_in_the_document_can_be_used() {
        let document = include_str!("../../../../docs/commands.md");
        let (_, rest) = document.split_once("```toml\n").expect("an example");
        let commands = parse(rest.split("```").next().expect("its end")).expect("commands");
        assert!(!commands.is_empty());
    }
}
