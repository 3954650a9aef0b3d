//! A stream of Server-Sent Events, split into events.

use std::time::Duration;

/// One event.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) name: String,
    pub(crate) data: String,
}

/// Splits what arrives into events.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    rest: Vec<u8>,
    name: Option<String>,
    data: Option<String>,
    /// The id with which a client that saw the last event continues.
    pub(crate) last_id: Option<String>,
    /// How long to wait before the next connection, if the gateway said so.
    pub(crate) retry: Option<Duration>,
}

impl Parser {
    /// For the connection after one that was lost.
    pub(crate) fn resume(last_id: Option<String>, retry: Option<Duration>) -> Self {
        Self { last_id, retry, ..Self::default() }
    }

    /// Galley ends its lines with a line feed.
    pub(crate) fn feed(&mut self, piece: &[u8]) -> Vec<(Frame, Option<String>)> {
        self.rest.extend_from_slice(piece);
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else { return Vec::new() };
        let rest = self.rest.split_off(end + 1);
        let lines = std::mem::replace(&mut self.rest, rest);
        let lines = String::from_utf8_lossy(&lines);
        lines.split_terminator('\n').filter_map(|line| self.take(line.trim_end_matches('\r'))).collect()
    }

    fn take(&mut self, line: &str) -> Option<(Frame, Option<String>)> {
        if line.is_empty() {
            let name = self.name.take().unwrap_or_else(|| "message".to_owned());
            return self.data.take().map(|data| (Frame { name, data }, self.last_id.clone()));
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => self.name = Some(value.to_owned()),
            "id" => self.last_id = Some(value.to_owned()),
            "retry" => self.retry = value.parse().ok().map(Duration::from_millis).or(self.retry),
            "data" => match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_owned()),
            },
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_however_they_are_cut() {
        let text =
            ": hello\nretry: 250\nevent: begin\nid: 1-0\ndata\n\ndata: {\"a\":\ndata: \"é\"}\nid: 1-1\n\nid: 1-2\n";
        let expected = [("begin", "", "1-0"), ("message", "{\"a\":\n\"é\"}", "1-1")];
        for size in [1, 2, 3, 7, text.len()] {
            let mut parser = Parser::default();
            let frames: Vec<_> = text.as_bytes().chunks(size).flat_map(|piece| parser.feed(piece)).collect();
            let seen: Vec<(&str, &str, &str)> = frames
                .iter()
                .map(|(frame, id)| (frame.name.as_str(), frame.data.as_str(), id.as_deref().unwrap_or_default()))
                .collect();
            assert_eq!(seen, expected, "in pieces of {size}");
            assert_eq!(parser.retry, Some(Duration::from_millis(250)));
        }
    }
}
