//! Takes the newest candidates of all sources: the sources that have a candidate stand in a heap by the time of their next.

use std::{cmp::Reverse, collections::BinaryHeap};

use redis::aio::ConnectionLike;

use super::source::{SearchCandidate, Source};
use crate::{StoreResult, jobs::Jobs};
use common::time::Millis;

pub(super) struct MergedSources {
    /// In their order.
    list: Vec<Source>,
    /// The time of the next candidate, and the number of the source: of the same time, the first source comes first.
    heap: BinaryHeap<(Millis, Reverse<usize>)>,
}

impl MergedSources {
    /// Merges sources that stand in their order.
    pub(super) fn new(list: Vec<Source>) -> Self {
        let entry = |(number, source): (usize, &Source)| source.next_at().map(|at| (at, Reverse(number)));
        let heap = list.iter().enumerate().filter_map(entry).collect();
        Self { list, heap }
    }

    pub(super) fn list(&self) -> &[Source] {
        &self.list
    }

    /// Takes the newest candidate, unless all are older than that, with the number of its source.
    pub(super) async fn take_newest(
        &mut self,
        oldest: Millis,
        jobs: &Jobs,
        connection: &mut (impl ConnectionLike + Send),
    ) -> StoreResult<Option<(usize, SearchCandidate)>> {
        loop {
            let Some((_, Reverse(number))) = self.heap.pop().filter(|(at, _)| *at >= oldest) else { return Ok(None) };
            let source = &mut self.list[number];
            let taken = source.take();
            if source.buffer.is_empty() {
                jobs.read_more(source, connection).await?;
            }
            self.heap.extend(source.next_at().map(|at| (at, Reverse(number))));
            // An entry of the index of completed jobs may have none that can be read
            if let Some(candidate) = taken {
                return Ok(Some((number, candidate)));
            }
        }
    }
}
