//! Which rule or handler runs a job: the first rule of the file that matches its type, otherwise the handler with that
//! name.
//!
//! | file | what it does |
//! |---|---|
//! | `file` | parses the file; every problem has its line |
//! | `pattern` | matches job types |
//! | `reload` | the current rules, replaced on SIGHUP |
//! | `describe` | describes a rule in words |

mod describe;
mod file;
mod pattern;
mod reload;

use std::sync::Arc;

use common::{name::JobType, reloadable::Reloadable};
use delivery::command::Command;

pub(crate) use describe::check;
use pattern::JobTypePattern;
pub(crate) use reload::{load, reload_on_sighup};

use crate::handlers::{Context, HandlerResult, Handlers, command, http::HttpRule};

/// The rules of a file, in its order.
#[derive(Default)]
pub(crate) struct Rules(Vec<Rule>);

struct Rule {
    /// The rule's first line in the file, from 1.
    line: usize,
    pattern: JobTypePattern,
    action: RuleAction,
}

/// How a rule runs a job.
#[derive(Clone)]
enum RuleAction {
    /// Runs the handler in Rust with that name.
    Handler(String),
    /// Sends the job to an endpoint. With the pattern of the rule, under which its attempts are logged.
    Http(Arc<HttpRule>, Arc<str>),
    /// Runs a program.
    Command(Arc<Command>),
}

impl Rules {
    fn first_match(&self, job_type: &JobType) -> Option<&Rule> {
        self.0.iter().find(|rule| rule.pattern.matches(job_type.as_str()))
    }

    /// How jobs of a type run: by the first matching rule, otherwise by the handler with that name.
    fn action_for(&self, job_type: &JobType) -> RuleAction {
        self.first_match(job_type).map_or_else(|| RuleAction::Handler(job_type.to_string()), |rule| rule.action.clone())
    }
}

/// Runs jobs by the current rules.
pub(crate) struct Dispatcher {
    pub(crate) handlers: Handlers,
    pub(crate) rules: Reloadable<Rules>,
}

impl Dispatcher {
    /// Runs a job. It finishes under the rules that it started with, even if they are replaced.
    pub(crate) async fn run(&self, context: Context) -> HandlerResult {
        match self.rules.current().action_for(context.job_type()) {
            RuleAction::Handler(name) => self.handlers.run(&name, context).await,
            // Boxed, because all attempts would be as large as the largest of these otherwise
            RuleAction::Http(rule, pattern) => Box::pin(rule.run(&context, &pattern)).await,
            RuleAction::Command(command) => Box::pin(command::run(&command, &context)).await,
        }
    }
}
