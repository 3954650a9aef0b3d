//! A page of metrics, read again: for those who send it on in another form. So one place decides what is shown.

/// A metric of a page.
#[derive(Debug, PartialEq)]
pub(crate) struct Family<'a> {
    pub(crate) name: &'a str,
    pub(crate) help: &'a str,
    /// `counter`, `gauge` or `histogram`.
    pub(crate) kind: &'a str,
    pub(crate) samples: Vec<FamilySample<'a>>,
}

/// A line of a metric.
#[derive(Debug, PartialEq)]
pub(crate) struct FamilySample<'a> {
    /// The name of the metric, for a histogram with `_bucket`, `_sum` or `_count`.
    pub(crate) name: &'a str,
    pub(crate) labels: Vec<(&'a str, String)>,
    pub(crate) value: f64,
}

/// The metrics of a page that this process rendered.
pub(crate) fn families(page: &str) -> Vec<Family<'_>> {
    let mut families: Vec<Family<'_>> = Vec::new();
    let mut help = "";
    for line in page.lines() {
        if let Some(about) = line.strip_prefix("# HELP ") {
            help = about.split_once(' ').map_or("", |(_, help)| help);
        } else if let Some(about) = line.strip_prefix("# TYPE ") {
            let (name, kind) = about.split_once(' ').unwrap_or((about, ""));
            families.push(Family { name, help: std::mem::take(&mut help), kind, samples: Vec::new() });
        } else if let (Some(sample), Some(family)) = (parse(line), families.last_mut()) {
            family.samples.push(sample);
        }
    }
    families
}

/// A line such as `name{label="value"} 1.5`.
fn parse(line: &str) -> Option<FamilySample<'_>> {
    let (name, mut rest) = line.split_at(line.find(['{', ' '])?);
    let mut labels = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, after) = rest.trim_start_matches(',').split_once("=\"")?;
            let (value, after) = unquoted(after)?;
            labels.push((label, value));
            rest = after;
        }
        rest = &rest[1..];
    }
    Some(FamilySample { name, labels, value: rest.trim().parse().ok()? })
}

/// The text before the next quote, without escapes, and what follows the quote.
fn unquoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[index + 1..])),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                escaped => value.push(escaped),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read_as_it_was_rendered() {
        let page = "# HELP galley_a_total Of what\n# TYPE galley_a_total counter\ngalley_a_total{queue=\"a\\\"b\\\\,}\",x=\"\\n\"} 7\n\n\
                    # TYPE galley_b gauge\ngalley_b -1.5\ngalley_b{a=\"\"} NaN\n\n";
        let read = families(page);
        let labels = vec![("queue", "a\"b\\,}".to_owned()), ("x", "\n".to_owned())];
        assert_eq!((read[0].name, read[0].help, read[0].kind), ("galley_a_total", "Of what", "counter"));
        assert_eq!(read[0].samples, [FamilySample { name: "galley_a_total", labels, value: 7.0 }]);
        assert_eq!((read[1].name, read[1].help, read[1].kind), ("galley_b", "", "gauge"));
        assert_eq!(read[1].samples[0].value.to_bits(), (-1.5_f64).to_bits());
        assert!(read[1].samples[1].value.is_nan() && read[1].samples[1].labels == [("a", String::new())]);
        assert_eq!(families("galley_a 1\n# TYPE galley_a gauge\ngalley_a{a=\"1 2\nnothing\n")[0].samples, []);
    }
}
