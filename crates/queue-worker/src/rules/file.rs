//! Reading the file of rules. Everything that is wrong with it is said at once, each with its line.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Deserialize;
use toml::Spanned;

use super::{Action, Rule, Rules, pattern};
use crate::{
    handlers::{
        Handlers,
        command::{CommandRule, CommandSettings},
        http::{HttpRule, HttpSettings},
    },
    rules::pattern::Pattern,
};

/// Largest file.
const MOST_BYTES: u64 = 1 << 20;
/// Rules in it: each job looks through them.
const MOST_RULES: usize = 1000;

/// Rules that cannot be used: a line for each problem.
#[derive(Debug)]
pub(crate) struct RulesError {
    path: String,
    problems: Vec<Problem>,
}

#[derive(Debug, PartialEq, Eq)]
struct Problem {
    line: usize,
    what: String,
}

impl std::error::Error for RulesError {}

impl fmt::Display for RulesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, Problem { line, what }) in self.problems.iter().enumerate() {
            let separator = if number == 0 { "" } else { "\n" };
            match line {
                0 => write!(f, "{separator}{}: {what}", self.path)?,
                line => write!(f, "{separator}{}:{line}: {what}", self.path)?,
            }
        }
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default, rename = "rule")]
    rules: Vec<Spanned<WrittenRule>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenRule {
    #[serde(rename = "type")]
    pattern: Spanned<String>,
    handler: Option<Spanned<String>>,
    http: Option<Spanned<WrittenHttp>>,
    command: Option<Spanned<WrittenCommand>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenHttp {
    url: Spanned<String>,
    #[serde(default)]
    secrets: Vec<Spanned<String>>,
    #[serde(default)]
    headers: BTreeMap<String, Spanned<String>>,
    timeout_ms: Option<Spanned<u64>>,
    connect_timeout_ms: Option<Spanned<u64>>,
    callback_timeout_ms: Option<Spanned<u64>>,
    #[serde(default)]
    allow_private: bool,
    concurrency: Option<Spanned<u64>>,
    breaker_failures: Option<Spanned<u64>>,
    breaker_open_ms: Option<Spanned<u64>>,
    answer_limit_bytes: Option<Spanned<u64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenCommand {
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
    output_limit_bytes: Option<Spanned<u64>>,
    memory_limit_bytes: Option<Spanned<u64>>,
    cpu_limit_ms: Option<Spanned<u64>>,
    #[serde(default)]
    not_retryable_exit_codes: Vec<Spanned<u8>>,
}

impl Rules {
    /// Reads a file. Rules that are the same as before stay what they are, with the state of their endpoints.
    ///
    /// # Errors
    /// The file cannot be read, or something in it cannot be used.
    pub(crate) fn load(path: &Path, handlers: &Handlers, before: &Self) -> Result<Self, RulesError> {
        let shown = path.display().to_string();
        let unreadable = |what: String| RulesError {
            path: shown.clone(),
            problems: vec![Problem { line: 0, what: format!("the rules cannot be read: {what}") }],
        };
        let mut text = String::new();
        let file = File::open(path).map_err(|error| unreadable(error.to_string()))?;
        file.take(MOST_BYTES + 1).read_to_string(&mut text).map_err(|error| unreadable(error.to_string()))?;
        if text.len() as u64 > MOST_BYTES {
            return Err(unreadable(format!("the file has more than {MOST_BYTES} bytes")));
        }
        Self::parse(&text, handlers, before).map_err(|problems| RulesError { path: shown, problems })
    }

    fn parse(text: &str, handlers: &Handlers, before: &Self) -> Result<Self, Vec<Problem>> {
        let mut reader = Reader { text, problems: Vec::new() };
        let written: Written = match toml::from_str(text) {
            Ok(written) => written,
            Err(error) => {
                let at = error.span().map_or(0, |span| span.start);
                reader.refuse(at, error.message());
                return Err(reader.problems);
            }
        };
        if let Some(rule) = written.rules.get(MOST_RULES) {
            reader.refuse(rule.span().start, format!("there can be at most {MOST_RULES} rules"));
        }
        let rules = written.rules.into_iter().filter_map(|rule| reader.rule(rule, handlers, before)).collect();
        if reader.problems.is_empty() { Ok(Self(rules)) } else { Err(reader.problems) }
    }
}

struct Reader<'a> {
    text: &'a str,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn line(&self, at: usize) -> usize {
        self.text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
    }

    fn refuse(&mut self, at: usize, what: impl Into<String>) {
        let line = self.line(at);
        self.problems.push(Problem { line, what: what.into() });
    }

    fn rule(&mut self, rule: Spanned<WrittenRule>, handlers: &Handlers, before: &Rules) -> Option<Rule> {
        let at = rule.span().start;
        let rule = rule.into_inner();
        let pattern = Pattern::parse(rule.pattern.get_ref());
        if pattern.is_none() {
            self.refuse(rule.pattern.span().start, format!("type must be {}", pattern::ALLOWED));
        }
        let action = match (rule.handler, rule.http, rule.command) {
            (Some(name), None, None) => {
                if !handlers.contains(name.get_ref()) {
                    self.refuse(name.span().start, format!("there is no handler {:?} in this worker", name.get_ref()));
                }
                Some(Action::Handler(name.into_inner()))
            }
            (None, Some(http), None) => self.http(http, before),
            (None, None, Some(command)) => self.command(command, before),
            _ => {
                self.refuse(at, "a rule must have exactly one of handler, http and command");
                None
            }
        };
        Some(Rule { line: self.line(at), pattern: pattern?, action: action? })
    }

    fn http(&mut self, written: Spanned<WrittenHttp>, before: &Rules) -> Option<Action> {
        let at = written.span().start;
        let http = written.into_inner();
        let headers = http.headers.into_iter().map(|(name, value)| (name, self.resolved(&value))).collect();
        let settings = HttpSettings {
            url: http.url.into_inner(),
            secrets: http.secrets.iter().map(|secret| self.resolved(secret)).collect(),
            headers,
            timeout_ms: self.number("timeout_ms", http.timeout_ms, 30_000, 1, 3_600_000),
            connect_timeout_ms: self.number("connect_timeout_ms", http.connect_timeout_ms, 5000, 1, 60_000),
            callback_timeout_ms: self.number(
                "callback_timeout_ms",
                http.callback_timeout_ms,
                3_600_000,
                1000,
                604_800_000,
            ),
            allow_private: http.allow_private,
            concurrency: self.number("concurrency", http.concurrency, 50, 1, 10_000),
            breaker_failures: self.number("breaker_failures", http.breaker_failures, 10, 1, 1000),
            breaker_open_ms: self.number("breaker_open_ms", http.breaker_open_ms, 30_000, 100, 3_600_000),
            answer_limit_bytes: self.number("answer_limit_bytes", http.answer_limit_bytes, 1 << 20, 1, 16 << 20),
        };
        let same = before.0.iter().find_map(|rule| match &rule.action {
            Action::Http(rule) if *rule.settings() == settings => Some(rule.clone()),
            _ => None,
        });
        let rule = same.map_or_else(|| HttpRule::new(settings).map(Arc::new), Ok);
        rule.map(Action::Http).map_err(|problem| self.refuse(at, problem)).ok()
    }

    fn command(&mut self, written: Spanned<WrittenCommand>, before: &Rules) -> Option<Action> {
        let at = written.span().start;
        let command = written.into_inner();
        let settings = CommandSettings {
            program: command.program.into_inner(),
            args: command.args,
            env: command.env,
            pass_env: command.pass_env,
            directory: command.directory,
            timeout_ms: self.number("timeout_ms", command.timeout_ms, 3_600_000, 1, 604_800_000),
            stop_grace_ms: self.number("stop_grace_ms", command.stop_grace_ms, 5000, 0, 600_000),
            output_limit_bytes: self.number("output_limit_bytes", command.output_limit_bytes, 1 << 20, 1, 64 << 20),
            memory_limit_bytes: self.limit("memory_limit_bytes", command.memory_limit_bytes, 1 << 20, 1 << 50),
            cpu_limit_ms: self.limit("cpu_limit_ms", command.cpu_limit_ms, 1000, 604_800_000),
            not_retryable_exit_codes: command.not_retryable_exit_codes.into_iter().map(Spanned::into_inner).collect(),
        };
        let same = before.0.iter().find_map(|rule| match &rule.action {
            Action::Command(rule) if *rule.settings() == settings => Some(rule.clone()),
            _ => None,
        });
        let rule = same.map_or_else(|| CommandRule::new(settings).map(Arc::new), Ok);
        rule.map(Action::Command).map_err(|problem| self.refuse(at, problem)).ok()
    }

    /// A text, or what the variable has that it names: `env:NAME` keeps secrets out of the file.
    fn resolved(&mut self, value: &Spanned<String>) -> String {
        let Some(name) = value.get_ref().strip_prefix("env:") else { return value.get_ref().clone() };
        std::env::var(name).unwrap_or_else(|_| {
            self.refuse(value.span().start, format!("the variable {name} is not set"));
            String::new()
        })
    }

    fn number(&mut self, name: &str, given: Option<Spanned<u64>>, default: u64, least: u64, most: u64) -> u64 {
        self.limit(name, given, least, most).unwrap_or(default)
    }

    fn limit(&mut self, name: &str, given: Option<Spanned<u64>>, least: u64, most: u64) -> Option<u64> {
        let given = given?;
        let number = *given.get_ref();
        if !(least..=most).contains(&number) {
            self.refuse(given.span().start, format!("{name} must be {least} to {most}, got {number}"));
        }
        Some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Rules, Vec<Problem>> {
        Rules::parse(text, &Handlers::built_in(), &Rules::default())
    }

    fn problems(text: &str) -> Vec<String> {
        let problems = parse(text).err().unwrap_or_default();
        problems.iter().map(|problem| format!("{}: {}", problem.line, problem.what)).collect()
    }

    #[test]
    fn the_first_rule_that_matches_counts_and_without_one_the_handler_of_that_name() {
        let rules = parse(
            "[[rule]]\ntype = \"a.b\"\nhandler = \"test.noop\"\n\n[[rule]]\ntype = \"a.*\"\nhandler = \"test.echo\"\n",
        )
        .expect("rules");
        let name = |job_type: &str| match rules.action_for(&job_type.parse().expect("a type")) {
            Action::Handler(name) => name,
            _ => panic!("a handler"),
        };
        assert_eq!([name("a.b"), name("a.c"), name("other")], ["test.noop", "test.echo", "other"]);
        assert_eq!(rules.0.iter().map(|rule| rule.line).collect::<Vec<_>>(), [1, 5]);
    }

    #[test]
    fn every_problem_is_said_at_once_with_its_line() {
        let text = r#"
[[rule]]
type = "Email"
handler = "no.such"

[[rule]]
type = "a"

[[rule]]
type = "b"
http = { url = "http://example.com/", timeout_ms = 0, secrets = ["env:GALLEY_NO_SUCH_VARIABLE"] }

[[rule]]
type = "c"
[rule.command]
program = "true"
stop_grace_ms = 600001
"#;
        let found = problems(text);
        for (line, what) in [
            (3, "type must be a job type"),
            (4, r#"there is no handler "no.such""#),
            (6, "exactly one of handler, http and command"),
            (11, "timeout_ms must be 1 to 3600000, got 0"),
            (11, "the variable GALLEY_NO_SUCH_VARIABLE is not set"),
            (17, "stop_grace_ms must be 0 to 600000, got 600001"),
        ] {
            let is_there =
                found.iter().any(|problem| problem.starts_with(&format!("{line}: ")) && problem.contains(what));
            assert!(is_there, "{line}: {what} in {found:#?}");
        }
    }

    #[test]
    fn what_is_no_rule_is_refused_where_it_stands() {
        for (text, line) in [
            ("[[rule]]\ntype = \"a\"\nhandler = \"test.noop\"\ncolour = 1\n", 4),
            ("[[rule]]\ntype = 5\n", 2),
            ("[[rules]]\n", 1),
            ("[[rule]\n", 1),
            ("[[rule]]\ntype = \"a\"\nhttp = { url = \"http://a/\", timeout_ms = -1 }\n", 3),
        ] {
            let found = problems(text);
            assert!(found.len() == 1 && found[0].starts_with(&format!("{line}: ")), "{text}: {found:?}");
        }
        let many = "[[rule]]\ntype = \"a\"\nhandler = \"test.noop\"\n".repeat(MOST_RULES + 1);
        assert!(problems(&many)[0].contains("at most 1000 rules"));
    }

    #[test]
    fn the_rules_in_the_document_can_be_used_and_its_tables_are_the_bounds() {
        let document = include_str!("../../../../docs/handlers.md");
        let (_, rest) = document.split_once("```toml\n").expect("an example");
        let rules = parse(rest.split("```").next().expect("its end")).expect("rules");
        assert_eq!(rules.0.len(), 3);
        for (table, rest) in [("http", "url = \"http://example.com/\""), ("command", "program = \"true\"")] {
            let (_, below) = document.split_once(&format!("### `{table}`")).expect(table);
            for line in below.lines().skip(2).take_while(|line| !line.is_empty()) {
                let cells: Vec<&str> = line.split('|').map(str::trim).collect();
                let [_, key, _, allowed, ..] = cells.as_slice() else { panic!("{line}") };
                let Some((least, most)) = allowed.split_once(" to ") else { continue };
                let (Ok(least), Ok(most)) = (least.parse::<u64>(), most.parse::<u64>()) else { continue };
                let key = key.trim_matches('`');
                let with = |value: u64| {
                    problems(&format!("[[rule]]\ntype = \"a\"\n[rule.{table}]\n{rest}\n{key} = {value}\n"))
                };
                assert!(with(least).is_empty() && with(most).is_empty(), "{table}.{key} {:?}", with(most));
                assert!(!with(most + 1).is_empty(), "{table}.{key}");
                assert!(least == 0 || !with(least - 1).is_empty(), "{table}.{key}");
            }
        }
    }

    #[test]
    fn an_empty_file_has_no_rules() {
        assert!(parse("").expect("no rules").0.is_empty());
    }
}
