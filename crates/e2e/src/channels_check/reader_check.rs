//! What a run means. A pure function of what was published, what the history has and what each reader heard: the history
//! says what there is to hear and in which order.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fmt::{self, Display},
    ops::RangeInclusive,
    str::FromStr,
};

use anyhow::Context;

/// Findings about one reader of one channel that are spelled out; the rest is counted.
const MAX_FINDINGS: usize = 10;

/// The position of a message in its channel, as far as a client knows: positions grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CheckedPosition {
    /// First part.
    pub epoch: u64,
    /// Second part.
    pub sequence: u64,
}

impl FromStr for CheckedPosition {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (epoch, sequence) = text.split_once('-').context("a position is <epoch>-<sequence>")?;
        Ok(Self { epoch: epoch.parse()?, sequence: sequence.parse()? })
    }
}

impl Display for CheckedPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.sequence)
    }
}

/// What makes a message one of its kind: each publisher numbers what it publishes, in all channels together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MessageTag {
    /// Who published it.
    pub publisher: u32,
    /// The number that it gave it.
    pub number: u64,
}

impl Display for MessageTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "publisher {} number {}", self.publisher, self.number)
    }
}

/// What became of publishing a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckedPublishOutcome {
    /// 201 with this position.
    Acknowledged(CheckedPosition),
    /// A 5xx or no answer: it may have been published.
    Unknown,
}

/// What a reader of a channel was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckedEvent {
    /// A message.
    Message(CheckedPosition, MessageTag),
    /// What is behind `from`, and before `to` if that is known, is missing.
    Gap {
        /// The last position before the missing ones.
        from: CheckedPosition,
        /// The first one behind them.
        to: Option<CheckedPosition>,
    },
}

/// The messages of a channel, oldest first.
pub type CheckedHistory = Vec<(CheckedPosition, MessageTag)>;

/// Compares a channel's history with what was published. What is wrong, one line each.
#[must_use]
pub fn check_history(
    channel: &str,
    history: &[(CheckedPosition, MessageTag)],
    published: &[(MessageTag, CheckedPublishOutcome)],
) -> Vec<String> {
    let mut findings = Vec::new();
    let mut kept: HashMap<MessageTag, CheckedPosition> = HashMap::with_capacity(history.len());
    for (position, mark) in history {
        if let Some(first) = kept.insert(*mark, *position) {
            findings.push(format!("{channel}: {mark} was published once and is kept at {first} and at {position}"));
        }
    }
    for pair in history.windows(2) {
        if pair[0].0 >= pair[1].0 {
            findings.push(format!("{channel}: the history has {} before {}", pair[0].0, pair[1].0));
        }
    }
    // A publisher waits for each answer, so what is acknowledged to it has to be in its order
    let mut latest: HashMap<u32, (CheckedPosition, MessageTag)> = HashMap::new();
    for (mark, answer) in published {
        let CheckedPublishOutcome::Acknowledged(position) = answer else { continue };
        match kept.get(mark) {
            Some(kept) if kept == position => {}
            Some(kept) => {
                findings.push(format!("{channel}: {mark} was acknowledged at {position} and is kept at {kept}"));
            }
            None => findings.push(format!("{channel}: {mark} was acknowledged at {position} and is not kept")),
        }
        match latest.insert(mark.publisher, (*position, *mark)) {
            Some((before, earlier)) if before >= *position => {
                findings.push(format!("{channel}: {mark} at {position} was published after {earlier} at {before}"));
            }
            _ => {}
        }
    }
    let known: HashSet<MessageTag> = published.iter().map(|(mark, _)| *mark).collect();
    let strangers = history.iter().filter(|(_, mark)| !known.contains(mark));
    findings
        .extend(strangers.map(|(position, mark)| format!("{channel}: nobody published {mark}, kept at {position}")));
    findings
}

/// What came of one reader of one channel.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ReaderVerdict {
    /// Messages that it got.
    pub received: u64,
    /// Messages that it did not get but that a gap covers.
    pub in_gaps: u64,
    /// What is wrong, one line each.
    pub findings: Vec<String>,
}

/// Compares what a reader heard of a channel, from its beginning, with the channel's history.
#[must_use]
pub fn check_reader(history: &[(CheckedPosition, MessageTag)], heard: &[CheckedEvent]) -> ReaderVerdict {
    let mut listener = ReaderReplay::new(history);
    for heard in heard {
        match *heard {
            CheckedEvent::Message(position, mark) => listener.receive(position, mark),
            CheckedEvent::Gap { from, to } => listener.gaps.push((from, to)),
        }
    }
    listener.skip_to(history.len());
    listener.finish()
}

/// Goes through a history as a reader went.
struct ReaderReplay<'a> {
    history: &'a [(CheckedPosition, MessageTag)],
    was_received: Vec<bool>,
    /// The first of the history that has not come yet.
    expected: usize,
    missing: BTreeSet<usize>,
    /// What it was told since the last message.
    gaps: Vec<(CheckedPosition, Option<CheckedPosition>)>,
    verdict: ReaderVerdict,
}

impl<'a> ReaderReplay<'a> {
    fn new(history: &'a [(CheckedPosition, MessageTag)]) -> Self {
        let was_received = vec![false; history.len()];
        Self {
            history,
            was_received,
            expected: 0,
            missing: BTreeSet::new(),
            gaps: Vec::new(),
            verdict: ReaderVerdict::default(),
        }
    }

    fn receive(&mut self, position: CheckedPosition, mark: MessageTag) {
        let Ok(index) = self.history.binary_search_by_key(&position, |(position, _)| *position) else {
            return self.add_finding(format!("{mark} came at {position}, where the history has nothing"));
        };
        let kept = self.history[index].1;
        if kept != mark {
            self.add_finding(format!("{mark} came at {position}, where the history has {kept}"));
        }
        if std::mem::replace(&mut self.was_received[index], true) {
            return self.add_finding(format!("{mark} at {position} came twice"));
        }
        self.verdict.received += 1;
        if index < self.expected {
            self.missing.remove(&index);
            let before = self.history[self.expected - 1].0;
            return self.add_finding(format!("{mark} at {position} came after {before}"));
        }
        self.skip_to(index);
        self.expected = index + 1;
    }

    /// Whatever lies between was not sent, or is in a gap.
    fn skip_to(&mut self, index: usize) {
        let gaps = std::mem::take(&mut self.gaps);
        for skipped in self.expected..index {
            let position = self.history[skipped].0;
            if gaps.iter().any(|(from, to)| *from < position && to.is_none_or(|to| position < to)) {
                self.verdict.in_gaps += 1;
            } else {
                self.missing.insert(skipped);
            }
        }
    }

    fn add_finding(&mut self, finding: String) {
        self.verdict.findings.push(finding);
    }

    fn finish(mut self) -> ReaderVerdict {
        for range in consecutive_ranges(&self.missing) {
            let ((first, mark), (last, _)) = (self.history[*range.start()], self.history[*range.end()]);
            let count = range.end() - range.start() + 1;
            self.add_finding(format!(
                "{count} messages from {first} ({mark}) to {last} did not come, and no gap was told"
            ));
        }
        let more = self.verdict.findings.len().saturating_sub(MAX_FINDINGS);
        if more > 0 {
            self.verdict.findings.truncate(MAX_FINDINGS);
            self.add_finding(format!("and {more} more of this kind"));
        }
        self.verdict
    }
}

/// Numbers that follow one another, together.
fn consecutive_ranges(numbers: &BTreeSet<usize>) -> Vec<RangeInclusive<usize>> {
    let mut ranges: Vec<RangeInclusive<usize>> = Vec::new();
    for number in numbers.iter().copied() {
        match ranges.last_mut() {
            Some(range) if range.end() + 1 == number => *range = *range.start()..=number,
            _ => ranges.push(number..=number),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(sequence: u64) -> CheckedPosition {
        CheckedPosition { epoch: 5, sequence }
    }

    fn mark(number: u64) -> MessageTag {
        MessageTag { publisher: 1, number }
    }

    /// Numbers 0 to 9 at positions 5-0 to 5-9.
    fn history() -> CheckedHistory {
        (0..10).map(|number| (at(number), mark(number))).collect()
    }

    fn heard(numbers: impl IntoIterator<Item = u64>) -> Vec<CheckedEvent> {
        numbers.into_iter().map(|number| CheckedEvent::Message(at(number), mark(number))).collect()
    }

    fn finding(heard: &[CheckedEvent]) -> String {
        let judged = check_reader(&history(), heard);
        assert_eq!(judged.findings.len(), 1, "{judged:?}");
        judged.findings.into_iter().next().unwrap_or_default()
    }

    #[test]
    fn everything_once_and_in_order_is_right() {
        assert_eq!(check_reader(&history(), &heard(0..10)), ReaderVerdict { received: 10, ..ReaderVerdict::default() });
    }

    #[test]
    fn a_duplicate_is_found() {
        for twice in [vec![0, 1, 1], vec![0, 1, 0], vec![0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 4]] {
            let rest = twice.iter().max().map_or(0, |most| most + 1)..10;
            let text = finding(&heard(twice.clone().into_iter().chain(rest)));
            assert!(text.contains("came twice"), "{twice:?}: {text}");
        }
    }

    #[test]
    fn a_swap_is_found_and_is_no_loss() {
        assert_eq!(finding(&heard([0, 2, 1, 3, 4, 5, 6, 7, 8, 9])), "publisher 1 number 1 at 5-1 came after 5-2");
    }

    #[test]
    fn a_hole_is_found_wherever_it_is() {
        for (numbers, said) in [
            ([0, 1, 2, 3, 4, 5, 8, 9].to_vec(), "2 messages from 5-6 (publisher 1 number 6) to 5-7 did not come"),
            ((1..10).collect(), "1 messages from 5-0"),
            ((0..9).collect(), "1 messages from 5-9"),
            (vec![], "10 messages from 5-0 (publisher 1 number 0) to 5-9"),
        ] {
            let text = finding(&heard(numbers.iter().copied()));
            assert!(text.starts_with(said), "{numbers:?}: {text}");
        }
    }

    #[test]
    fn a_hole_that_a_gap_covers_is_accepted_and_no_other() {
        let with_gap = |from, to: Option<u64>| {
            let mut all = heard(0..4);
            all.push(CheckedEvent::Gap { from: at(from), to: to.map(at) });
            all.extend(heard(7..10));
            check_reader(&history(), &all)
        };
        for (from, to) in [(3, Some(7)), (3, None), (2, Some(9))] {
            let judged = with_gap(from, to);
            assert_eq!(judged, ReaderVerdict { received: 7, in_gaps: 3, findings: vec![] }, "{from} to {to:?}");
        }
        for (from, to, lost) in [(4, Some(7), "5-4 "), (3, Some(6), "5-6 "), (7, None, "5-4 ")] {
            let judged = with_gap(from, to);
            assert!(judged.findings.len() == 1 && judged.findings[0].contains(lost), "{from} to {to:?}: {judged:?}");
        }
        let mut early = vec![CheckedEvent::Gap { from: at(3), to: None }];
        early.extend(heard([0, 1, 2, 3, 7, 8, 9]));
        assert_eq!(check_reader(&history(), &early).findings.len(), 1, "told before the messages in front of it");
    }

    #[test]
    fn what_is_not_in_the_history_or_is_something_else_is_found() {
        let mut phantom = heard(0..10);
        phantom.insert(4, CheckedEvent::Message(CheckedPosition { epoch: 4, sequence: 7 }, mark(77)));
        assert!(finding(&phantom).contains("where the history has nothing"));
        let mut other = heard(0..10);
        other[3] = CheckedEvent::Message(at(3), mark(4));
        assert!(finding(&other).contains("where the history has publisher 1 number 3"));
    }

    #[test]
    fn a_history_keeps_what_was_acknowledged_once_in_order_and_nothing_else() {
        let acknowledged: Vec<_> =
            (0..10).map(|number| (mark(number), CheckedPublishOutcome::Acknowledged(at(number)))).collect();
        let judge = |history: &[(CheckedPosition, MessageTag)], published: &[(MessageTag, CheckedPublishOutcome)]| {
            check_history("c", history, published)
        };
        assert_eq!(judge(&history(), &acknowledged), Vec::<String>::new());
        let mut published = acknowledged.clone();
        published[4].1 = CheckedPublishOutcome::Unknown;
        let mut without = history();
        without.remove(4);
        assert_eq!(judge(&history(), &published), Vec::<String>::new(), "unknown and there");
        assert_eq!(judge(&without, &published), Vec::<String>::new(), "unknown and not there");
        assert_eq!(judge(&without, &acknowledged), ["c: publisher 1 number 4 was acknowledged at 5-4 and is not kept"]);
        assert_eq!(judge(&history(), &acknowledged[..9]), ["c: nobody published publisher 1 number 9, kept at 5-9"]);
        let mut twice = history();
        twice.push((at(10), mark(3)));
        assert!(judge(&twice, &acknowledged)[0].contains("is kept at 5-3 and at 5-10"));
        let mut swapped = acknowledged.clone();
        swapped.swap(6, 7);
        assert_eq!(judge(&history(), &swapped).len(), 1, "acknowledged in another order than kept");
    }

    #[test]
    fn positions_are_read_as_they_are_shown() {
        let position: CheckedPosition = "1763845000000-12".parse().expect("a position");
        assert_eq!((position.to_string().as_str(), position.epoch), ("1763845000000-12", 1_763_845_000_000));
        assert!("12".parse::<CheckedPosition>().is_err() && "a-1".parse::<CheckedPosition>().is_err());
    }
}
