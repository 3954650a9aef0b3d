//! Parses the rules file. All problems are reported at once, each with its line.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use common::config_file::{self, ConfigFileError, ConfigReader};
use delivery::command::{Command, CommandSpec, StandardOutput};
use serde::Deserialize;
use toml::Spanned;

use super::{Rule, RuleAction, Rules, pattern};
use crate::{
    handlers::{
        Handlers,
        http::{HttpRule, HttpSettings},
    },
    rules::pattern::JobTypePattern,
};

/// Maximum number of rules: every job is compared with them in turn.
const MAX_RULES: usize = 1000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RulesFile {
    #[serde(default, rename = "rule")]
    rules: Vec<Spanned<RuleSpec>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleSpec {
    #[serde(rename = "type")]
    pattern: Spanned<String>,
    handler: Option<Spanned<String>>,
    http: Option<Spanned<HttpRuleSpec>>,
    command: Option<Spanned<CommandSpec>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HttpRuleSpec {
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

impl Rules {
    /// Loads a file. An unchanged rule stays the same object and so retains the state of its endpoint.
    ///
    /// # Errors
    /// The file cannot be read, or something in it is invalid.
    pub(crate) fn load(path: &Path, handlers: &Handlers, before: &Self) -> Result<Self, ConfigFileError> {
        config_file::load(path, "rules", |reader, written| Self::read(reader, written, handlers, before))
    }

    fn read(reader: &mut ConfigReader<'_>, written: RulesFile, handlers: &Handlers, before: &Self) -> Self {
        if let Some(rule) = written.rules.get(MAX_RULES) {
            reader.add_problem(rule.span().start, format!("there can be at most {MAX_RULES} rules"));
        }
        let mut rules = RuleReader { reader, handlers, previous: before };
        Self(written.rules.into_iter().filter_map(|rule| rules.read_rule(rule)).collect())
    }
}

/// Parses one rule after another.
struct RuleReader<'a, 'text> {
    reader: &'a mut ConfigReader<'text>,
    handlers: &'a Handlers,
    previous: &'a Rules,
}

impl RuleReader<'_, '_> {
    fn read_rule(&mut self, rule: Spanned<RuleSpec>) -> Option<Rule> {
        let at = rule.span().start;
        let rule = rule.into_inner();
        let pattern = JobTypePattern::parse(rule.pattern.get_ref());
        if pattern.is_none() {
            self.reader.add_problem(rule.pattern.span().start, format!("type must be {}", pattern::ALLOWED));
        }
        let action = match (rule.handler, rule.http, rule.command) {
            (Some(name), None, None) => {
                if !self.handlers.contains(name.get_ref()) {
                    self.reader.add_problem(
                        name.span().start,
                        format!("there is no handler {:?} in this worker", name.get_ref()),
                    );
                }
                Some(RuleAction::Handler(name.into_inner()))
            }
            (None, Some(http), None) => self.read_http(http, rule.pattern.get_ref()),
            (None, None, Some(command)) => self.read_command(command),
            _ => {
                self.reader.add_problem(at, "a rule must have exactly one of handler, http and command");
                None
            }
        };
        Some(Rule { line: self.reader.line(at), pattern: pattern?, action: action? })
    }

    fn read_http(&mut self, written: Spanned<HttpRuleSpec>, pattern: &str) -> Option<RuleAction> {
        let at = written.span().start;
        let http = written.into_inner();
        let headers = http.headers.into_iter().map(|(name, value)| (name, self.resolve_env(&value))).collect();
        let settings = HttpSettings {
            url: http.url.into_inner(),
            secrets: http.secrets.iter().map(|secret| self.resolve_env(secret)).collect(),
            headers,
            timeout_ms: self.reader.number("timeout_ms", http.timeout_ms, 30_000, 1, 3_600_000),
            connect_timeout_ms: self.reader.number("connect_timeout_ms", http.connect_timeout_ms, 5000, 1, 60_000),
            callback_timeout_ms: self.reader.number(
                "callback_timeout_ms",
                http.callback_timeout_ms,
                3_600_000,
                1000,
                604_800_000,
            ),
            allow_private: http.allow_private,
            concurrency: self.reader.number("concurrency", http.concurrency, 50, 1, 10_000),
            breaker_failures: self.reader.number("breaker_failures", http.breaker_failures, 10, 1, 1000),
            breaker_open_ms: self.reader.number("breaker_open_ms", http.breaker_open_ms, 30_000, 100, 3_600_000),
            answer_limit_bytes: self.reader.number("answer_limit_bytes", http.answer_limit_bytes, 1 << 20, 1, 16 << 20),
        };
        let same = self.previous.0.iter().find_map(|rule| match &rule.action {
            RuleAction::Http(rule, _) if *rule.settings() == settings => Some(rule.clone()),
            _ => None,
        });
        let rule = same.map_or_else(|| HttpRule::new(settings).map(Arc::new), Ok);
        rule.map(|rule| RuleAction::Http(rule, pattern.into()))
            .map_err(|problem| self.reader.add_problem(at, problem))
            .ok()
    }

    fn read_command(&mut self, written: Spanned<CommandSpec>) -> Option<RuleAction> {
        let at = written.span().start;
        let settings = written.into_inner().read(self.reader);
        let same = self.previous.0.iter().find_map(|rule| match &rule.action {
            RuleAction::Command(command) if *command.settings() == settings => Some(command.clone()),
            _ => None,
        });
        let command = same.map_or_else(|| Command::new(settings, StandardOutput::Result).map(Arc::new), Ok);
        command.map(RuleAction::Command).map_err(|problem| self.reader.add_problem(at, problem)).ok()
    }

    /// A text, or the value of an environment variable: `env:NAME` keeps secrets out of the file.
    fn resolve_env(&mut self, value: &Spanned<String>) -> String {
        let Some(name) = value.get_ref().strip_prefix("env:") else { return value.get_ref().clone() };
        std::env::var(name).unwrap_or_else(|_| {
            self.reader.add_problem(value.span().start, format!("the variable {name} is not set"));
            String::new()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handlers() -> Handlers {
        let mut handlers = Handlers::default();
        for name in ["test.noop", "test.echo"] {
            handlers.add_typed(name, |_, _: serde::de::IgnoredAny| async { Ok(()) });
        }
        handlers
    }

    fn parse(text: &str) -> Result<Rules, Vec<config_file::ConfigProblem>> {
        let read =
            |reader: &mut ConfigReader<'_>, written| Rules::read(reader, written, &handlers(), &Rules::default());
        config_file::parse(text, read)
    }

    fn problems(text: &str) -> Vec<String> {
        let problems = parse(text).err().unwrap_or_default();
        problems.iter().map(|problem| format!("{}: {}", problem.line, problem.message)).collect()
    }

    #[test]
    fn the_first_rule_that_matches_counts_and_without_one_the_handler_of_that_name() {
        let rules = parse(
            "[[rule]]\ntype = \"a.b\"\nhandler = \"test.noop\"\n\n[[rule]]\ntype = \"a.*\"\nhandler = \"test.echo\"\n",
        )
        .expect("rules");
        let name = |job_type: &str| match rules.action_for(&job_type.parse().expect("a type")) {
            RuleAction::Handler(name) => name,
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
            ("[[rule]]\ntype = \"a\"\n[rule.command]\nprogram = \"true\"\nname = \"a\"\n", 5),
        ] {
            let found = problems(text);
            assert!(found.len() == 1 && found[0].starts_with(&format!("{line}: ")), "{text}: {found:?}");
        }
        let many = "[[rule]]\ntype = \"a\"\nhandler = \"test.noop\"\n".repeat(MAX_RULES + 1);
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
