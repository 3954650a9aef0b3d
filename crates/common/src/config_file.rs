//! TOML files of rules and commands. An error lists every problem of a file at once, each with its line.
//!
//! A file that is not TOML has one problem. The code that reads the values collects the problems of the values.

use std::{fmt, fs::File, io::Read, path::Path};

use serde::de::DeserializeOwned;
use toml::Spanned;

/// Largest file.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// A file that cannot be used. Its text has a line for each problem.
#[derive(Debug)]
pub struct ConfigFileError {
    path: String,
    problems: Vec<ConfigProblem>,
}

/// One problem of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigProblem {
    /// The line, from 1; 0 for the file as a whole.
    pub line: usize,
    /// The problem, for people.
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

/// Reads a file of `what`, such as "rules". `read` checks the values and converts them.
///
/// # Errors
/// The file cannot be read, or a value in it cannot be used.
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

/// Reads the text of a file.
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

/// The text that is read, and its problems so far.
pub struct ConfigReader<'a> {
    text: &'a str,
    problems: Vec<ConfigProblem>,
}

impl ConfigReader<'_> {
    /// The line that contains a byte, from 1.
    #[must_use]
    pub fn line(&self, at: usize) -> usize {
        self.text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
    }

    /// Records a problem with the value that begins at a byte.
    pub fn add_problem(&mut self, at: usize, what: impl Into<String>) {
        let line = self.line(at);
        self.problems.push(ConfigProblem { line, message: what.into() });
    }

    /// A number within its bounds; `default` if none is given.
    pub fn number(&mut self, name: &str, given: Option<Spanned<u64>>, default: u64, min: u64, max: u64) -> u64 {
        self.optional_number(name, given, min, max).unwrap_or(default)
    }

    /// A number within its bounds, if one is given.
    pub fn optional_number(&mut self, name: &str, given: Option<Spanned<u64>>, min: u64, max: u64) -> Option<u64> {
        let given = given?;
        let number = *given.get_ref();
        if !(min..=max).contains(&number) {
            self.add_problem(given.span().start, format!("{name} must be {min} to {max}, got {number}"));
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
        slots: Option<Spanned<u64>>,
        limit: Option<Spanned<u64>>,
    }

    fn sample(reader: &mut ConfigReader<'_>, written: SampleConfig) -> (u64, Option<u64>) {
        (reader.number("slots", written.slots, 2, 1, 9), reader.optional_number("limit", written.limit, 1, 3))
    }

    #[test]
    fn what_is_not_said_has_its_default_and_every_problem_has_its_line() {
        assert_eq!(parse("", sample), Ok((2, None)));
        assert_eq!(parse("slots = 9\nlimit = 1", sample), Ok((9, Some(1))));
        let problem = |line, what: &str| ConfigProblem { line, message: what.to_owned() };
        let both = vec![problem(2, "slots must be 1 to 9, got 10"), problem(1, "limit must be 1 to 3, got 0")];
        assert_eq!(parse("limit = 0\nslots = 10", sample), Err(both));
        let broken = parse("slots = 1\nlimit = ", sample).expect_err("not TOML");
        assert_eq!((broken.len(), broken[0].line), (1, 2));
    }

    #[test]
    fn a_file_that_is_missing_too_large_or_no_text_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("sample.toml");
        let load = || super::load(&path, "sample", sample).map_err(|error| error.to_string());
        let shown = path.display();
        let error = load().expect_err("no file");
        assert!(error.starts_with(&format!("{shown}: the sample cannot be read: ")), "{error}");
        fs::write(&path, "#".repeat(1 << 20)).expect("a file");
        assert_eq!(load(), Ok((2, None)));
        fs::write(&path, "#".repeat((1 << 20) + 1)).expect("a file");
        assert_eq!(load(), Err(format!("{shown}: the sample cannot be read: the file has more than 1048576 bytes")));
        fs::write(&path, [0xff]).expect("a file");
        assert!(load().is_err());
        fs::write(&path, "limit = 4\nslots = 0").expect("a file");
        let both = format!("{shown}:2: slots must be 1 to 9, got 0\n{shown}:1: limit must be 1 to 3, got 4");
        assert_eq!(load(), Err(both));
    }
}
