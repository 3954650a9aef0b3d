//! Warnings about top-level members of a job that nothing acts on. The specification asks to keep them, so they are not
//! refused; but a misspelt option must not be ignored silently.

use common::{known_names::nearest, name::quoted};
use serde_json::value::RawValue;

use super::{envelope::SYSTEM_MANAGED, options::OPTION_NAMES};

/// The most warnings of one job.
const MAX_WARNINGS: usize = 20;
/// Members of the specification that a job may have and Galley only keeps; and those that every job has.
const KEPT: [&str; 4] = ["specversion", "schema", "id", "meta"];

/// The warnings of one job.
#[derive(Default)]
pub(super) struct MemberWarnings {
    warnings: Vec<String>,
    left_out: usize,
}

impl MemberWarnings {
    /// Looks at a member that is neither an option nor what a job consists of.
    pub(super) fn add(&mut self, name: &str, value: &RawValue) {
        let text = if KEPT.contains(&name) {
            return;
        } else if SYSTEM_MANAGED.contains(&name) {
            // A view that is sent back may have such a member without a value
            if value.get() == "null" {
                return;
            }
            managed_member_warning(name)
        } else {
            let known: Vec<&str> = OPTION_NAMES.iter().chain(&["options", "args", "type", "meta"]).copied().collect();
            let meant = nearest(name, &known).map_or(":".to_owned(), |meant| format!(", did you mean {meant:?}?"));
            format!("unknown member {}{meant} it is kept with the job and changes nothing", quoted(name))
        };
        if self.warnings.len() < MAX_WARNINGS {
            self.warnings.push(text);
        } else {
            self.left_out += 1;
        }
    }

    pub(super) fn finish(mut self) -> Vec<String> {
        if self.left_out > 0 {
            self.warnings.push(format!("and {} members more", self.left_out));
        }
        self.warnings
    }
}

/// The warning about a member that clients may send back as they saw it, and cannot set.
#[must_use]
pub fn managed_member_warning(name: &str) -> String {
    format!("member {} is managed by galley and was ignored", quoted(name))
}
