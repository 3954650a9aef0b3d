//! Files that describe things in TOML: rules, commands. Everything that is wrong with one is said at once, each with its line.
//!
//! A file that does not parse at all has one problem; what is wrong with its values is gathered by whoever reads them.

use std::{fmt, fs::File, io::Read, path::Path};

use serde::de::DeserializeOwned;
use toml::Spanned;

/// Largest file.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// A file that cannot be used: a line for each problem.
#[derive(Debug)]
pub struct ConfigFileError {
    path: String,
    problems: Vec<ConfigProblem>,
}

/// Something that is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigProblem {
    /// Where, from 1; 0 for the file as a whole.
    pub line: usize,
    /// What, for people.
    pub message: String,
}

impl std::error::Error for ConfigFileError {}

impl fmt::Display for ConfigFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, ConfigProblem { line, message: what }) in self.problems.iter().enumerate() {
            let separator = if number == 0 { "" } else { "\n" };
            match line {
                0 => write!(f, "{separator}{}: {what}", self.path)?,
                line => write!(f, "{separator}{}:{line}: {what}", self.path)?,
            }
        }
        Ok(())
    }
}

/// Reads a file of `what` ("rules"): `read` makes of what is written there what is meant, and refuses what cannot be.
///
/// # Errors
/// The file cannot be read, or something in it cannot be used.
pub fn load<W: DeserializeOwned, T>(
    path: &Path,
    what: &str,
    read: impl FnOnce(&mut ConfigReader<'_>, W) -> T,
) -> Result<T, ConfigFileError> {
    let path_shown = || path.display().to_string();
    let unreadable = |why: String| {
        let what = format!("the {what} cannot be read: {why}");
        ConfigFileError { path: path_shown(), problems: vec![ConfigProblem { line: 0, message: what }] }
    };
    let mut text = String::new();
    let file = File::open(path).map_err(|error| unreadable(error.to_string()))?;
    file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(|error| unreadable(error.to_string()))?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(unreadable(format!("the file has more than {MAX_FILE_BYTES} bytes")));
    }
    parse(&text, read).map_err(|problems| ConfigFileError { path: path_shown(), problems })
}

/// The same with the text of a file.
///
/// # Errors
/// Every problem of the text.
pub fn parse<W: DeserializeOwned, T>(
    text: &str,
    read: impl FnOnce(&mut ConfigReader<'_>, W) -> T,
) -> Result<T, Vec<ConfigProblem>> {
    let mut reader = ConfigReader { text, problems: Vec::new() };
    let written: W = match toml::from_str(text) {
        Ok(written) => written,
        Err(error) => {
            let at = error.span().map_or(0, |span| span.start);
            reader.add_problem(at, error.message());
            return Err(reader.problems);
        }
    };
    let meant = read(&mut reader, written);
    if reader.problems.is_empty() { Ok(meant) } else { Err(reader.problems) }
}

/// A text that is being read, and what is wrong with it so far.
pub struct ConfigReader<'a> {
    text: &'a str,
    problems: Vec<ConfigProblem>,
}

impl ConfigReader<'_> {
    /// The line of a byte, from 1.
    #[must_use]
    pub fn line(&self, at: usize) -> usize {
        self.text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
    }

    /// Notes a problem with what begins at a byte.
    pub fn add_problem(&mut self, at: usize, what: impl Into<String>) {
        let line = self.line(at);
        self.problems.push(ConfigProblem { line, message: what.into() });
    }

    /// A number within its bounds; `default` if none is given.
    pub fn number(&mut self, name: &str, given: Option<Spanned<u64>>, default: u64, least: u64, most: u64) -> u64 {
        self.optional_number(name, given, least, most).unwrap_or(default)
    }

    /// The same without a default.
    pub fn optional_number(&mut self, name: &str, given: Option<Spanned<u64>>, least: u64, most: u64) -> Option<u64> {
        let given = given?;
        let number = *given.get_ref();
        if !(least..=most).contains(&number) {
            self.add_problem(given.span().start, format!("{name} must be {least} to {most}, got {number}"));
        }
        Some(number)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct SampleConfig {
        ovens: Option<Spanned<u64>>,
        chefs: Option<Spanned<u64>>,
    }

    fn kitchen(reader: &mut ConfigReader<'_>, written: SampleConfig) -> (u64, Option<u64>) {
        (reader.number("ovens", written.ovens, 2, 1, 9), reader.optional_number("chefs", written.chefs, 1, 3))
    }

    #[test]
    fn what_is_not_said_has_its_default_and_every_problem_has_its_line() {
        assert_eq!(parse("", kitchen), Ok((2, None)));
        assert_eq!(parse("ovens = 9\nchefs = 1", kitchen), Ok((9, Some(1))));
        let problem = |line, what: &str| ConfigProblem { line, message: what.to_owned() };
        let both = vec![problem(2, "ovens must be 1 to 9, got 10"), problem(1, "chefs must be 1 to 3, got 0")];
        assert_eq!(parse("chefs = 0\novens = 10", kitchen), Err(both));
        let broken = parse("ovens = 1\nchefs = ", kitchen).expect_err("not TOML");
        assert_eq!((broken.len(), broken[0].line), (1, 2));
    }

    #[test]
    fn a_file_that_is_missing_too_large_or_no_text_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("kitchen.toml");
        let load = || super::load(&path, "kitchen", kitchen).map_err(|error| error.to_string());
        let shown = path.display();
        let error = load().expect_err("no file");
        assert!(error.starts_with(&format!("{shown}: the kitchen cannot be read: ")), "{error}");
        fs::write(&path, "#".repeat(1 << 20)).expect("a file");
        assert_eq!(load(), Ok((2, None)));
        fs::write(&path, "#".repeat((1 << 20) + 1)).expect("a file");
        assert_eq!(load(), Err(format!("{shown}: the kitchen cannot be read: the file has more than 1048576 bytes")));
        fs::write(&path, [0xff]).expect("a file");
        assert!(load().is_err());
        fs::write(&path, "chefs = 4\novens = 0").expect("a file");
        let both = format!("{shown}:2: ovens must be 1 to 9, got 0\n{shown}:1: chefs must be 1 to 3, got 4");
        assert_eq!(load(), Err(both));
    }
}
