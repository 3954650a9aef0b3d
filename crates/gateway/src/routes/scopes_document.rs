//! `docs/reference/scopes.md`: the table of routes for people. A test of this file writes it, and one of the black-box
//! tests walks its cells.

use std::{env, fmt::Write, fs, path::Path};

use model::access::Scope;

use super::table::{Need, RouteRule, Subject, rules};

const HEAD: &str = "\
# Scopes of routes

<!-- Generated from crates/gateway/src/routes/mod.rs. To write it again: UPDATE_DOCS=1 cargo test -p gateway scopes -->

What each route needs once keys are demanded ([security](../security.md)). `yes` in a column of a scope: a key with that
scope alone may use the route; `with the other`: it needs both scopes of the row. `GET` counts for HEAD too. The last column says how the queues, channels and namespace of a
key limit it: a name outside is refused with 403 `name_not_allowed`, and what is looked up by its id and lies outside is
not found.
";

fn document() -> String {
    let names = Scope::ALL.map(|scope| format!("`{scope}`")).join(" | ");
    let mut text = format!("{HEAD}\n| route | no key | {names} | limited to |\n|---|---|");
    text.push_str(&"---|".repeat(Scope::ALL.len() + 1));
    text.push('\n');
    for rule in rules() {
        let cells = Scope::ALL.map(|scope| cell(rule, scope)).join(" | ");
        let _ = writeln!(
            text,
            "| `{} {}` | {} | {cells} | {} |",
            rule.method,
            rule.path,
            without_key(rule),
            limited_to(rule.subject)
        );
    }
    text
}

fn cell(rule: &RouteRule, scope: Scope) -> &'static str {
    let is_enough = match rule.need {
        Need::Nothing | Need::Optional | Need::AnyKey => true,
        Need::Has(needed) => needed == scope,
        Need::Both(one, other) if one == scope || other == scope => return "with the other",
        Need::Both(..) => false,
        Need::Metrics | Need::Health => scope == Scope::AdminRead,
    };
    if is_enough { "yes" } else { "no" }
}

fn without_key(rule: &RouteRule) -> &'static str {
    match rule.need {
        Need::Nothing | Need::Optional => "yes",
        Need::AnyKey | Need::Has(_) | Need::Both(..) => "no",
        Need::Metrics => "if `auth.open_metrics`",
        Need::Health => "if `auth.open_health`",
    }
}

fn limited_to(subject: Subject) -> &'static str {
    match subject {
        Subject::Nothing => "",
        Subject::Queue => "its queues",
        Subject::Channel => "its channels",
        Subject::Job => "jobs of its queues",
        Subject::Workflow => "workflows whose jobs are all of its queues",
        Subject::Cron => "entries in its namespace with jobs of its queues",
        Subject::Subscription => "subscriptions in its namespace with its channels and queues",
        Subject::Named => "the queues and channels that the request names",
        Subject::List => "shows only its own",
        Subject::Everything => "keys without queues, channels and namespace",
        Subject::Key => "keys that may do no more",
    }
}

#[test]
fn the_page_of_scopes_is_what_the_table_of_routes_says() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/scopes.md");
    if env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&file, document()).expect("the file can be written");
    }
    let present = fs::read_to_string(&file).unwrap_or_default();
    assert!(
        present == document(),
        "docs/reference/scopes.md is out of date; to write it again: UPDATE_DOCS=1 cargo test -p gateway scopes"
    );
}
