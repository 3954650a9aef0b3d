//! Tables and lists of details that fit the terminal.
//!
//! On a terminal the widest columns are cut first, with an ellipsis. Elsewhere nothing is cut: programs read it.

use common::text::printable;
use serde_json::Value;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::{
    failure::CliResult,
    terminal::{Color, Terminal},
};

const GAP: &str = "  ";
/// No column is cut to less.
const MIN_COLUMN: usize = 6;

/// A table. The first column holds the ids or names, which are all that `--quiet` prints.
pub(crate) struct TextTable {
    head: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl TextTable {
    pub(crate) fn new(head: &[&'static str]) -> Self {
        Self { head: head.to_vec(), rows: Vec::new() }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.head.len());
        self.rows.push(cells.into());
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(crate) fn print(&self, terminal: Terminal) -> CliResult {
        if terminal.quiet {
            return self.rows.iter().try_for_each(|row| terminal.line(&row[0]));
        }
        self.lines(terminal).iter().try_for_each(|line| terminal.line(line))
    }

    fn lines(&self, terminal: Terminal) -> Vec<String> {
        let mut widths: Vec<usize> = self.head.iter().map(|title| title.width()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.width());
            }
        }
        if let Some(columns) = terminal.width {
            shrink(&mut widths, columns);
        }
        let is_number = |column: usize| {
            let mut cells = self.rows.iter().map(|row| row[column].as_str());
            cells.all(|cell| cell == "-" || cell.bytes().all(|b| b.is_ascii_digit() || b == b'.'))
        };
        let is_number: Vec<bool> = (0..self.head.len()).map(is_number).collect();
        let head = self.head.iter().map(|title| (title.to_uppercase(), Some(Color::Faint))).collect();
        let mut lines = vec![join(terminal, head, &widths, &is_number)];
        for row in &self.rows {
            let cells = self
                .head
                .iter()
                .zip(row)
                .map(|(title, cell)| (cell.clone(), (*title == "state").then(|| Color::of_state(cell)).flatten()));
            lines.push(join(terminal, cells.collect(), &widths, &is_number));
        }
        lines
    }
}

/// Takes columns away from the widest until the row fits.
fn shrink(widths: &mut [usize], columns: usize) {
    let gaps = GAP.len() * widths.len().saturating_sub(1);
    loop {
        let total = widths.iter().sum::<usize>() + gaps;
        let Some(widest) = widths.iter_mut().max_by_key(|width| **width) else { return };
        if total <= columns || *widest <= MIN_COLUMN {
            return;
        }
        *widest -= 1;
    }
}

fn join(terminal: Terminal, cells: Vec<(String, Option<Color>)>, widths: &[usize], is_number: &[bool]) -> String {
    let last = cells.len().saturating_sub(1);
    let mut line = String::new();
    for (index, (text, color)) in cells.into_iter().enumerate() {
        let text = cut(&text, widths[index]);
        let padding = " ".repeat(widths[index].saturating_sub(text.width()));
        let painted = terminal.paint(&text, color);
        match (is_number[index], index == last) {
            (true, _) => line += &(padding + &painted),
            (false, true) => line += &painted,
            (false, false) => line += &(painted + &padding),
        }
        line += if index == last { "" } else { GAP };
    }
    line.trim_end().to_owned()
}

/// The beginning of a text, as much as that number of columns takes.
pub(crate) fn cut(text: &str, columns: usize) -> String {
    if text.width() <= columns {
        return text.to_owned();
    }
    let mut shown = String::new();
    let mut width = 0;
    for character in text.chars() {
        width += character.width().unwrap_or(0);
        if width + 1 > columns {
            break;
        }
        shown.push(character);
    }
    shown + "…"
}

/// Names and values, one a line.
#[derive(Default)]
pub(crate) struct Details(Vec<(String, String)>);

impl Details {
    /// A line, unless there is nothing to say.
    pub(crate) fn add(&mut self, name: &str, value: &Value) -> &mut Self {
        match value {
            Value::Null => self,
            Value::Array(items) if items.is_empty() => self,
            Value::Object(members) if members.is_empty() => self,
            value => self.text(name, shown(value)),
        }
    }

    /// Those members of an object.
    pub(crate) fn members(&mut self, object: &Value, names: &[&str]) -> &mut Self {
        for name in names {
            self.add(&name.replace('_', " "), &object[*name]);
        }
        self
    }

    pub(crate) fn text(&mut self, name: &str, value: impl Into<String>) -> &mut Self {
        self.0.push((name.to_owned(), value.into()));
        self
    }

    pub(crate) fn print(&self, terminal: Terminal) -> CliResult {
        let width = self.0.iter().map(|(name, _)| name.width()).max().unwrap_or(0);
        for (name, value) in &self.0 {
            let color = (name == "state").then(|| Color::of_state(value)).flatten();
            let padding = " ".repeat(width - name.width());
            let name = terminal.paint(name, Some(Color::Faint));
            terminal.line(&format!("{name}{padding}{GAP}{}", terminal.paint(value, color)))?;
        }
        Ok(())
    }
}

/// A value for people: text without quotes, other JSON as it is, with nothing hidden in it.
pub(crate) fn shown(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => printable(text.as_bytes()),
        other => printable(other.to_string().as_bytes()),
    }
}

/// A member of an object for people.
pub(crate) fn member(object: &Value, name: &str) -> String {
    shown(&object[name])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn terminal(width: Option<usize>) -> Terminal {
        Terminal::of_width(width)
    }

    #[test]
    fn a_table_fits_the_terminal_and_is_whole_elsewhere() {
        let mut table = TextTable::new(&["id", "type", "count"]);
        table.row(["a".to_owned(), "饭".repeat(40), "7".to_owned()]);
        table.row(["bb".to_owned(), "x".to_owned(), "12".to_owned()]);
        for line in table.lines(terminal(Some(30))) {
            assert!(line.width() <= 30, "{line}");
        }
        let lines = table.lines(terminal(None));
        assert!(lines[1].contains(&"饭".repeat(40)));
        assert!(lines[2].ends_with("   12"), "numbers stand to the right: {}", lines[2]);
    }

    #[test]
    fn hostile_text_is_escaped_and_wide_text_is_cut_between_characters() {
        assert_eq!(shown(&json!("a\u{1b}[2J\u{9b}31m\u{202e}b\n")), "a\\u{1b}[2J\\u{9b}31m\\u{202e}b\\n");
        assert_eq!(shown(&json!({ "a": "\u{9b}x" })), "{\"a\":\"\\u{9b}x\"}");
        assert_eq!(cut("饭饭饭", 5), "饭饭…");
        assert_eq!(cut("饭饭饭", 4), "饭…");
    }
}
