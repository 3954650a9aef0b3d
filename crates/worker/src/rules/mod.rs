//! Which jobs are run how: the rules of a file, the first that matches a job's type counts, then the handlers in Rust.
//!
//! | file | what it does |
//! |---|---|
//! | `file` | reads the file; every problem has its line |
//! | `pattern` | which types a rule is for |
//! | `reload` | the rules in force, which a signal replaces |
//! | `describe` | what a rule does, in words |

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
    /// Where it begins in the file, from 1.
    line: usize,
    pattern: JobTypePattern,
    action: RuleAction,
}

/// What a rule does with a job.
#[derive(Clone)]
enum RuleAction {
    /// Runs the handler in Rust of that name.
    Handler(String),
    /// Sends it to an endpoint.
    Http(Arc<HttpRule>),
    /// Gives it to a program.
    Command(Arc<Command>),
}

impl Rules {
    fn first_match(&self, job_type: &JobType) -> Option<&Rule> {
        self.0.iter().find(|rule| rule.pattern.matches(job_type.as_str()))
    }

    /// What is to be done with jobs of a type; without a rule that is the handler of that name, if there is one.
    fn action_for(&self, job_type: &JobType) -> RuleAction {
        self.first_match(job_type).map_or_else(|| RuleAction::Handler(job_type.to_string()), |rule| rule.action.clone())
    }
}

/// How jobs are run in this process.
pub(crate) struct Dispatcher {
    pub(crate) handlers: Handlers,
    pub(crate) rules: Reloadable<Rules>,
}

impl Dispatcher {
    /// Runs a job. Rules that are replaced meanwhile are not felt by it.
    pub(crate) async fn run(&self, context: Context) -> HandlerResult {
        match self.rules.current().action_for(context.job_type()) {
            RuleAction::Handler(name) => self.handlers.run(&name, context).await,
            RuleAction::Http(rule) => rule.run(&context).await,
            RuleAction::Command(command) => command::run(&command, &context).await,
        }
    }
}
