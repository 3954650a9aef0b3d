//! `docs/reference/cli.md`: every command and option, from the declarations of the command line. A test compares it with the
//! file.

use clap::{Arg, ArgAction, Command, CommandFactory};

use crate::command_line::GalleyCli;

const HEAD: &str = "\
# Reference of the command line

<!-- Generated from crates/cli/src. To write it again: UPDATE_DOCS=1 cargo test -p cli reference -->

[Command line](../cli.md) shows how to use it. An argument in brackets can be left out; one with dots can be repeated.

## Everywhere

Every command has these options.
";

/// The page.
fn reference() -> String {
    let mut command = GalleyCli::command();
    command.build();
    let mut page = HEAD.to_owned();
    page += &options(command.get_arguments().filter(|argument| argument.is_global_set()));
    for group in command.get_subcommands().filter(|group| group.get_name() != "help") {
        page.push_str(&["\n## `galley ", group.get_name(), "`\n\n", about(group).as_str(), "\n"].concat());
        page += &options(own_arguments(group));
        for action in group.get_subcommands().filter(|action| action.get_name() != "help") {
            let name = format!("galley {} {}", group.get_name(), action.get_name());
            page.push_str(&["\n### `", name.as_str(), "`\n\n", about(action).as_str(), "\n"].concat());
            page += &options(own_arguments(action));
        }
    }
    page
}

fn about(command: &Command) -> String {
    let about = command.get_long_about().or_else(|| command.get_about());
    plain(&about.map(ToString::to_string).unwrap_or_default())
}

fn own_arguments(command: &Command) -> impl Iterator<Item = &Arg> {
    let is_own = |argument: &&Arg| !argument.is_global_set() && !argument.is_hide_set();
    command.get_arguments().filter(is_own).filter(|argument| !["help", "version"].contains(&argument.get_id().as_str()))
}

/// A table of arguments and options; nothing if there are none.
fn options<'a>(arguments: impl Iterator<Item = &'a Arg>) -> String {
    let rows: Vec<String> = arguments
        .map(|argument| {
            let help = argument.get_long_help().or_else(|| argument.get_help());
            let help = plain(&help.map(ToString::to_string).unwrap_or_default());
            let default = match argument.get_default_values() {
                [value] if argument.get_action().takes_values() => format!(" Default: `{}`.", value.display()),
                _ => String::new(),
            };
            let values: Vec<String> =
                argument.get_possible_values().iter().map(|value| format!("`{}`", value.get_name())).collect();
            let values = match values.as_slice() {
                [] => String::new(),
                _ if !argument.get_action().takes_values() => String::new(),
                values => format!(" One of {}.", values.join(", ")),
            };
            format!("| `{}` | {help}{values}{default} |\n", spelled(argument))
        })
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    format!("\n| option | meaning |\n|---|---|\n{}", rows.concat())
}

fn spelled(argument: &Arg) -> String {
    let names = argument.get_value_names().unwrap_or_default();
    let value = names.first().map_or_else(|| argument.get_id().to_string().to_uppercase(), ToString::to_string);
    let dots = if matches!(argument.get_action(), ArgAction::Append) { "..." } else { "" };
    match (argument.get_long(), argument.get_short()) {
        (None, _) if argument.is_required_set() => format!("{value}{dots}"),
        (None, _) => format!("[{value}]{dots}"),
        (Some(long), short) => {
            let short = short.map(|short| format!("-{short}, ")).unwrap_or_default();
            let value = if argument.get_action().takes_values() { format!(" {value}") } else { String::new() };
            format!("{short}--{long}{value}{dots}")
        }
    }
}

/// Text for a table cell: on one line, without what Markdown would read.
fn plain(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    // Code between backticks is as it is
    let parts = text.replace('|', "\\|");
    let parts = parts.split('`').enumerate().map(|(index, part)| match index % 2 {
        0 => part.replace('*', "\\*").replace('<', "&lt;"),
        _ => part.to_owned(),
    });
    let text = parts.collect::<Vec<_>>().join("`");
    if text.is_empty() || text.ends_with(['.', ':', '?', '!']) { text } else { text + "." }
}

#[cfg(test)]
mod tests {
    use std::{env, fs, path::Path};

    use super::*;

    #[test]
    fn the_reference_is_what_the_command_line_declares() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/cli.md");
        let text = reference();
        if env::var_os("UPDATE_DOCS").is_some() {
            fs::write(&file, &text).expect("the file can be written");
        }
        let present = fs::read_to_string(&file).unwrap_or_default();
        assert!(present == text, "out of date; to write it again: UPDATE_DOCS=1 cargo test -p cli reference");
    }
}
