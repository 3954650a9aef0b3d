//! What went wrong with dead letters: how many have which type of error.

use std::collections::HashMap;

use serde::Deserialize;

use super::{DeadLetterStats, DiscardedFilter, DiscardedList, Jobs};
use crate::StoreResult;

/// Dead letters that are looked at, of all queues together.
const MAX_EXAMINED: usize = 2000;
/// Queues that are looked into: those with the most dead letters.
const MAX_QUEUES: usize = 100;
/// Types that are told apart: the most frequent ones.
const MAX_TYPES: usize = 100;
/// The type of an error without one, as the Open Job Spec has it.
const UNKNOWN: &str = "Unknown";

/// How many dead letters have which type of error.
#[derive(Debug, Default)]
pub struct DeadLetterErrors {
    /// The types with their numbers, the most frequent first.
    pub by_type: Vec<(String, u64)>,
    /// How many dead letters were looked at: the newest of each queue.
    pub examined: u64,
    /// Whether those are all, and `by_type` has all their types.
    pub complete: bool,
}

#[derive(Deserialize)]
struct LetterWithError {
    #[serde(default)]
    error: Option<LetterError>,
}

#[derive(Deserialize)]
struct LetterError {
    #[serde(rename = "type", default)]
    error_type: String,
}

impl Jobs {
    /// Counts the newest dead letters of the queues of some statistics by the type of their last error.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn dead_letter_errors(&self, stats: &DeadLetterStats) -> StoreResult<DeadLetterErrors> {
        let mut queues: Vec<_> = stats.by_queue.iter().collect();
        queues.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        queues.truncate(MAX_QUEUES);
        let (mut counts, mut left) = (HashMap::<String, u64>::new(), MAX_EXAMINED);
        // What a queue with few leaves over is for those with more
        for (place, (queue, _)) in queues.iter().rev().enumerate() {
            let share = left.div_ceil(queues.len() - place);
            let filter = DiscardedFilter { queue: Some((*queue).clone()), ..DiscardedFilter::default() };
            let page = self.list_discarded(DiscardedList::DeadLetters, &filter, None, share).await?;
            left = left.saturating_sub(page.jobs.len());
            for (_, json) in page.jobs {
                let letter: Option<LetterWithError> = serde_json::from_str(&json).ok();
                let error_type = letter.and_then(|letter| letter.error).map(|error| error.error_type);
                let error_type = error_type.filter(|name| !name.is_empty()).unwrap_or_else(|| UNKNOWN.to_owned());
                *counts.entry(error_type).or_default() += 1;
            }
        }
        let examined = counts.values().sum();
        let mut by_type: Vec<(String, u64)> = counts.into_iter().collect();
        by_type.sort_by(|(a, count_of_a), (b, count_of_b)| count_of_b.cmp(count_of_a).then_with(|| a.cmp(b)));
        let complete = examined >= stats.by_queue.values().sum::<u64>() && by_type.len() <= MAX_TYPES;
        by_type.truncate(MAX_TYPES);
        Ok(DeadLetterErrors { by_type, examined, complete })
    }
}
