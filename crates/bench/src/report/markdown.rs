//! Results as tables for people, and the parts of documents that show the newest ones.

use std::{
    collections::BTreeMap,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use serde_json::Value;

/// The documents, and the rows that each shows; the first shows few.
const README: &str = "README.md";
const PAGE: &str = "docs/performance.md";
const BEGIN: &str = "<!-- bench publish: begin -->";
const END: &str = "<!-- bench publish: end -->";
/// What README shows, in this order.
const README_SCENARIOS: [&str; 6] = ["processing", "care", "enqueue", "latency", "backlog", "memory"];

/// All of a results file.
pub(crate) fn to_markdown(results: &Value) -> String {
    let mut text = format!("# Results of {}\n\n{}\n", string(&results["date"]), machine_line(results));
    for scenario in results["scenarios"].as_array().into_iter().flatten() {
        let _ = write!(text, "\n## {}\n\n", string(&scenario["scenario"]));
        for note in scenario["notes"].as_array().into_iter().flatten() {
            let _ = writeln!(text, "- {}", string(note));
        }
        text.push('\n');
        text.push_str(&table(scenario, |_| true));
        for plot in scenario["plots"].as_array().into_iter().flatten() {
            let _ = writeln!(text, "\n![{0}]({0})", string(plot));
        }
        for failure in scenario["failures"].as_array().into_iter().flatten() {
            let _ = writeln!(text, "\nFAILED: {}", string(failure));
        }
    }
    text
}

fn machine_line(results: &Value) -> String {
    let machine = &results["machine"];
    format!(
        "{} cores ({}), {} MiB, load {} before, {}, durability {}, {}.",
        machine["cores"],
        string(&machine["model"]),
        machine["memory_mib"],
        machine["load_before"],
        string(&machine["redis"]),
        string(&machine["durability"]),
        string(&machine["versions"]),
    )
}

fn table(scenario: &Value, shows: impl Fn(&Value) -> bool) -> String {
    let mut text = String::from("| what | figure | goal |\n|---|---|---|\n");
    for figure in scenario["figures"].as_array().into_iter().flatten().filter(|figure| shows(figure)) {
        let value = figure["value"].as_f64().unwrap_or(f64::NAN);
        let (goal, unit) = (string(&figure["goal"]), string(&figure["unit"]));
        let met = match is_met(value, &goal) {
            Some(true) => format!("{goal}: met"),
            Some(false) => format!("{goal}: missed"),
            None => String::new(),
        };
        let number = format!("{} {unit}", readable(value)).trim_end().to_owned();
        let _ = writeln!(text, "| {} | {number} | {met} |", string(&figure["what"]).replace('|', "/"));
    }
    text
}

/// Whether a goal such as `>= 0.7` holds; none without a goal.
pub(super) fn is_met(value: f64, goal: &str) -> Option<bool> {
    let (sign, bound) = goal.split_once(' ')?;
    let bound: f64 = bound.parse().ok()?;
    Some(if sign == ">=" { value >= bound } else { value <= bound })
}

/// 45,700 or 0.72
fn readable(value: f64) -> String {
    if !value.is_finite() {
        return "none".to_owned();
    }
    if value.abs() < 100.0 {
        return format!("{}", (value * 100.0).round() / 100.0);
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn string(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Writes the newest results into the documents: of each scenario the newest that there is. Only what is between two
/// marks changes.
pub(crate) fn publish(folder: &Path) -> anyhow::Result<()> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)?.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    files.sort_unstable();
    let mut newest: BTreeMap<String, (PathBuf, Value, Value)> = BTreeMap::new();
    for path in files {
        let results: Value = serde_json::from_slice(&fs::read(&path)?).with_context(|| path.display().to_string())?;
        // Older formats have no versions
        if results["machine"]["versions"].is_null() {
            continue;
        }
        for scenario in results["scenarios"].as_array().into_iter().flatten() {
            newest.insert(string(&scenario["scenario"]), (path.clone(), results.clone(), scenario.clone()));
        }
    }
    ensure!(!newest.is_empty(), "no results in {}", folder.display());
    let readme = README_SCENARIOS.into_iter().filter_map(|name| newest.get_key_value(name));
    replace_block(README, &block(readme, folder, true))?;
    replace_block(PAGE, &block(newest.iter(), &Path::new("..").join(folder), false))
}

fn block<'a>(
    scenarios: impl Iterator<Item = (&'a String, &'a (PathBuf, Value, Value))>,
    folder: &Path,
    is_short: bool,
) -> String {
    let (mut text, mut machine) = (String::new(), String::new());
    for (name, (path, results, scenario)) in scenarios {
        let file = path.file_name().unwrap_or_default().to_string_lossy().replace(".json", "");
        let line = machine_line(results);
        if machine != line {
            let date = string(&results["date"]);
            let _ = writeln!(text, "\n{}, {line} `deploy/dev/bench.sh`\n", date.split('T').next().unwrap_or_default());
            machine = line;
        }
        if is_short {
            let _ = writeln!(text, "\n{}", table(scenario, |figure| figure["goal"].is_string()).trim_end());
        } else {
            let _ = writeln!(text, "\n### `{name}` ({file})\n");
            for note in scenario["notes"].as_array().into_iter().flatten() {
                let _ = writeln!(text, "- {}", string(note));
            }
            text.push('\n');
            text.push_str(&table(scenario, |_| true));
        }
        for plot in scenario["plots"].as_array().into_iter().flatten().map(string) {
            let _ = writeln!(text, "\n![{plot}]({})", folder.join(&plot).display());
        }
    }
    text.trim().to_owned()
}

fn replace_block(document: &str, block: &str) -> anyhow::Result<()> {
    let text = fs::read_to_string(document).with_context(|| document.to_owned())?;
    let (before, rest) = text.split_once(BEGIN).with_context(|| format!("{document} has no {BEGIN}"))?;
    let (_, after) = rest.split_once(END).with_context(|| format!("{document} has no {END}"))?;
    fs::write(document, format!("{before}{BEGIN}\n\n{block}\n\n{END}{after}"))?;
    println!("{document}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_a_bound() {
        for (value, goal, expected) in [
            (0.7, ">= 0.7", Some(true)),
            (0.69, ">= 0.7", Some(false)),
            (231.0, "<= 230", Some(false)),
            (3.0, "<= 3", Some(true)),
            (1.0, "", None),
        ] {
            assert_eq!(is_met(value, goal), expected, "{value} {goal}");
        }
    }

    #[test]
    fn numbers_are_readable() {
        for (value, expected) in
            [(0.719, "0.72"), (45_700.2, "45,700"), (1_000_000.0, "1,000,000"), (230.0, "230"), (f64::NAN, "none")]
        {
            assert_eq!(readable(value), expected);
        }
    }
}
