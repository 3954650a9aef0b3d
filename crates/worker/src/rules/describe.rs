//! Describes the rules in words, for `queue-worker check`.

use std::fmt::Write;

use common::name::JobType;

use super::{RuleAction, Rules};
use crate::handlers::{Handlers, command};

impl RuleAction {
    fn describe(&self) -> String {
        match self {
            Self::Handler(name) => format!("runs the handler {name}"),
            Self::Http(rule, _) => rule.describe(),
            Self::Command(command) => command::describe(command.settings()),
        }
    }
}

/// Describes how jobs of these types run, or what every rule does if there are no types. False if nothing handles a
/// type.
pub(crate) fn check(rules: &Rules, handlers: &Handlers, types: &[JobType]) -> (String, bool) {
    let mut text = String::new();
    if types.is_empty() {
        for rule in &rules.0 {
            let _ = writeln!(text, "{} (line {}): {}", rule.pattern.as_str(), rule.line, rule.action.describe());
        }
        let _ = writeln!(text, "any other type: runs the handler of that name, if there is one");
    }
    let mut all_are_run = true;
    for job_type in types {
        let by = match rules.first_match(job_type) {
            Some(rule) => format!("rule {} (line {}) {}", rule.pattern.as_str(), rule.line, rule.action.describe()),
            None if handlers.contains(job_type.as_str()) => "no rule: runs the handler of that name".to_owned(),
            None => {
                all_are_run = false;
                "no rule and no handler: fails with handler_not_found".to_owned()
            }
        };
        let _ = writeln!(text, "{job_type}: {by}");
    }
    (text, all_are_run)
}
