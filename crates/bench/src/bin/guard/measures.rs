//! Figures beside those that are expected.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, bail};

/// How much a figure may grow.
const TOLERANCE: f64 = 1.1;
/// Less than this says nothing: what clients say to Redis now and then.
const SLACK_COMMANDS: f64 = 0.004;
const SLACK_BYTES: f64 = 8.0;

/// Figures by name.
#[derive(Default)]
pub(crate) struct GuardMeasures(BTreeMap<String, f64>);

impl GuardMeasures {
    pub(crate) fn set(&mut self, name: String, value: f64) {
        println!("{name:<60} {value:>14.3}");
        self.0.insert(name, (value * 1000.0).round() / 1000.0);
    }

    /// Fails when one has grown; writes the file again with `UPDATE=1`.
    pub(crate) fn compare(&self, path: &Path) -> anyhow::Result<()> {
        if std::env::var_os("UPDATE").is_some() {
            fs::write(path, format!("{:#}\n", serde_json::to_value(&self.0)?))?;
            return Ok(());
        }
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let expected: BTreeMap<String, f64> = serde_json::from_str(&text)?;
        let grown = grown(&self.0, &expected);
        if grown.is_empty() {
            println!("no measure has grown by more than a tenth");
            return Ok(());
        }
        bail!("a job takes more than before; if that is meant, run UPDATE=1 make guard\n{}", grown.join("\n"));
    }
}

fn grown(measured: &BTreeMap<String, f64>, expected: &BTreeMap<String, f64>) -> Vec<String> {
    measured
        .iter()
        .filter_map(|(name, value)| match expected.get(name) {
            Some(expected) if *value <= expected * TOLERANCE + slack(name) => None,
            Some(expected) => Some(format!("{name}: {value}, was {expected}")),
            None => Some(format!("{name}: {value}, was not there")),
        })
        .collect()
}

fn slack(name: &str) -> f64 {
    if name.contains("bytes") { SLACK_BYTES } else { SLACK_COMMANDS }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_beyond_a_tenth_and_what_is_new_are_found() {
        let measures = |pairs: &[(&str, f64)]| pairs.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        let expected = measures(&[("a", 100.0), ("b", 100.0), ("c", 100.0), ("gone", 1.0)]);
        let measured = measures(&[("a", 109.0), ("b", 111.0), ("c", 50.0), ("new", 1.0)]);
        assert_eq!(grown(&measured, &expected), ["b: 111, was 100", "new: 1, was not there"]);
    }
}
