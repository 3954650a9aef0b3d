//! Lists and searches jobs in whatever state they are.
//!
//! A queue has its jobs in several places: streams, sorted sets, an index of those that ended. Each place is a source of
//! candidates, newest first, and a search merges the sources of all queues by time, one group of states after the other:
//! running jobs, then those that wait for a time or an activation, then those that wait for a worker, then ended ones.
//! Places, states and queues choose the sources; for all other conditions a search reads the candidates, in slices that
//! Redis answers in a moment, and it stops after a number of them.
//!
//! | file | what it does |
//! |---|---|
//! | `source` | a place that has candidates |
//! | `sources` | finds the places, and how many jobs they have |
//! | `heads` | reads the first candidates of all sources at once |
//! | `candidates` | reads the next candidates of a source |
//! | `merge` | takes the newest candidates of all sources |
//! | `records` | reads the jobs that candidates stand for |
//! | `cursor` | where a search continues |

mod candidates;
mod cursor;
mod heads;
mod merge;
mod records;
mod source;
mod sources;

use std::collections::HashSet;

pub use self::cursor::SearchCursor;
use self::{
    merge::MergedSources,
    records::ReadJob,
    source::{After, Found, SearchCandidate, Source, SourceGroup},
    sources::SearchedQueues,
};
use super::{Jobs, LocatedJob};
use crate::{StoreResult, connection::pool::PooledConnection};
use common::{
    id::{JobId, queue_tag},
    name::QueueName,
    time::Millis,
};
use model::job::{JobFilter, JobState};

/// Candidates that one search reads.
pub const MAX_EXAMINED: usize = 20_000;
/// Candidates whose ids alone tell that they do not match, in one search: those are not read.
const MAX_PASSED_OVER: usize = 200_000;
/// Approximate bytes of the jobs that one search reads.
const MAX_EXAMINED_BYTES: usize = 32 << 20;
/// A page that is this large gets no more jobs.
const SOFT_MAX_PAGE_BYTES: usize = 8 << 20;
/// Jobs that are read at once: at first, when each may be as large as a request body, and at most.
const FIRST_SLICE: usize = 20;
const MAX_SLICE: usize = 500;
/// About how many bytes of jobs to read at once.
const SLICE_BYTES: usize = 1 << 20;
/// How far the clocks of Redis and of a worker may be apart.
const MAX_CLOCK_DIFFERENCE_MS: Millis = 60_000;
/// How long after the end of a job its result may be recorded: workers keep results while Redis is away.
const MAX_RECORDING_MS: Millis = 3_600_000;
/// Commands in one round trip: Redis answers them in about a millisecond.
const PIPELINE_SIZE: usize = 500;

/// A job that a search found.
#[derive(Debug, Clone)]
pub struct FoundJob {
    /// Its id.
    pub id: JobId,
    /// Its queue.
    pub queue: QueueName,
    /// Its state.
    pub state: JobState,
    /// Since when it is there: when it ended, is due, or came to its queue.
    pub at: Millis,
    /// The JSON of the whole job, without results of the jobs before it in its workflow.
    pub json: String,
}

/// What a search found.
#[derive(Debug, Default)]
pub struct SearchPage {
    /// The jobs, newest first in each group of states.
    pub jobs: Vec<FoundJob>,
    /// Where the next page starts, if there may be one.
    pub cursor: Option<SearchCursor>,
    /// False if the search stopped before the page was full, because it had examined as many jobs as one search may.
    pub complete: bool,
    /// How many jobs it examined.
    pub examined: usize,
}

impl Jobs {
    /// Jobs that match a filter, at most `limit` and about eight mebibytes: running ones, then scheduled, retryable and
    /// pending ones, then available ones, then ended ones; newest first in each group.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn search(
        &self,
        filter: &JobFilter,
        cursor: Option<&SearchCursor>,
        limit: usize,
    ) -> StoreResult<SearchPage> {
        self.run_search(filter, cursor, limit, true).await
    }

    /// The same, but without the jobs' JSON, and so without a limit of bytes: for actions on many jobs.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn search_ids(
        &self,
        filter: &JobFilter,
        cursor: Option<&SearchCursor>,
        limit: usize,
    ) -> StoreResult<SearchPage> {
        self.run_search(filter, cursor, limit, false).await
    }

    /// The newest jobs of each group of states, at most `limit` and about eight mebibytes of each. The cursor tells only that
    /// there are more of a group.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn search_groups(&self, filter: &JobFilter, limit: usize) -> StoreResult<SearchPage> {
        if let Some(found) = self.search_by_id(filter, None).await? {
            return Ok(found);
        }
        let mut connection = self.store.redis.pooled_connection().await?;
        let queues = SearchedQueues::read(self.searched_queues(filter).await?, &mut connection).await?;
        let mut all = SearchPage { complete: true, ..SearchPage::default() };
        for group in SourceGroup::ALL.into_iter().filter(|group| group.has_state_of(filter)) {
            let mut search = Search::new(self, filter, limit, connection);
            let is_over = search.search_group(group, &queues, None).await?;
            connection = search.connection;
            all.jobs.append(&mut search.page.jobs);
            all.examined += search.page.examined;
            all.complete &= search.page.complete;
            all.cursor = all.cursor.or(search.page.cursor.filter(|_| !is_over));
        }
        Ok(all)
    }

    async fn run_search(
        &self,
        filter: &JobFilter,
        cursor: Option<&SearchCursor>,
        limit: usize,
        keeps_json: bool,
    ) -> StoreResult<SearchPage> {
        if let Some(found) = self.search_by_id(filter, cursor).await? {
            return Ok(found);
        }
        let mut connection = self.store.redis.pooled_connection().await?;
        let queues = SearchedQueues::read(self.searched_queues(filter).await?, &mut connection).await?;
        let mut search = Search { keeps_json, ..Search::new(self, filter, limit, connection) };
        for group in SourceGroup::ALL {
            let is_before = cursor.is_some_and(|cursor| group < cursor.group);
            if is_before || !group.has_state_of(filter) {
                continue;
            }
            let from = cursor.filter(|cursor| cursor.group == group);
            if !search.search_group(group, &queues, from).await? {
                return Ok(search.page);
            }
        }
        search.page.cursor = None;
        Ok(search.page)
    }

    /// How many jobs there are in each state of a filter that only names states and queues.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn count_plain(&self, filter: &JobFilter) -> StoreResult<u64> {
        let mut connection = self.store.redis.pooled_connection().await?;
        let queues = SearchedQueues::read(self.searched_queues(filter).await?, &mut connection).await?;
        let mut total = 0;
        for group in SourceGroup::ALL.into_iter().filter(|group| group.has_state_of(filter)) {
            total += self.count_in(&queues.sources(group, filter), filter, &mut connection).await?;
        }
        Ok(total)
    }

    /// The queues that a filter is about, by name.
    async fn searched_queues(&self, filter: &JobFilter) -> StoreResult<Vec<QueueName>> {
        let mut queues = match &filter.queue {
            Some(queue) => self.read_partitions(queue).await?,
            None => self.list_partitions().await?,
        };
        queues.retain(|queue| filter.access.as_ref().is_none_or(|access| access.has_queue(queue)));
        queues.sort_unstable();
        Ok(queues)
    }

    /// A search that names one job needs no list. A word that is an id may stand in an error too, but only if there is no
    /// such job.
    async fn search_by_id(&self, filter: &JobFilter, cursor: Option<&SearchCursor>) -> StoreResult<Option<SearchPage>> {
        let word = match &filter.words[..] {
            [word] if cursor.is_none() => word.parse().ok(),
            _ => None,
        };
        let Some(id) = filter.id.or(word) else { return Ok(None) };
        let located = self.locate_with_queue(id).await?;
        if located.is_none() && filter.id.is_none() {
            return Ok(None);
        }
        let mut page = SearchPage { complete: true, examined: 1, ..SearchPage::default() };
        let Some((located, queue)) = located else { return Ok(Some(page)) };
        let is_seen = filter.access.as_ref().is_none_or(|access| access.has_queue(&queue));
        let (state, json) = (located.state(), located.to_json());
        if is_seen && filter.matches(&json) && self.is_on_list(filter, id, &queue).await? {
            let at = created_at(&located, id);
            page.jobs.push(FoundJob { id, queue, state, at, json });
        }
        Ok(Some(page))
    }

    async fn is_on_list(&self, filter: &JobFilter, id: JobId, queue: &QueueName) -> StoreResult<bool> {
        if !filter.is_dead_letter {
            return Ok(true);
        }
        let list = crate::keys::QueueKeys::new(queue).dead_letters();
        let mut command = redis::cmd("ZSCORE");
        command.arg(list).arg(id.to_string());
        let score: Option<f64> = command.query_async(&mut self.store.redis.clone()).await?;
        Ok(score.is_some())
    }
}

fn created_at(located: &LocatedJob, id: JobId) -> Millis {
    match located {
        LocatedJob::InRecord { job, .. } | LocatedJob::InStream { job, .. } => job.created_at(),
        LocatedJob::Finished(_) => i64::try_from(id.milliseconds()).unwrap_or_default(),
    }
}

/// The time of the oldest candidate that can match: jobs come to a place after they were created, and to the list of ended
/// ones when they end. Those that wait for a time stand at that time, which is later still.
fn oldest_candidate(filter: &JobFilter) -> Millis {
    let since = filter.created_since.max(filter.ended_since);
    since.map_or(Millis::MIN, |since| since.saturating_sub(MAX_CLOCK_DIFFERENCE_MS))
}

/// A search under way. It may read much, so it uses a separate connection.
struct Search<'a> {
    jobs: &'a Jobs,
    filter: &'a JobFilter,
    limit: usize,
    keeps_json: bool,
    connection: PooledConnection,
    page: SearchPage,
    /// Bytes of the examined jobs, and of those that match.
    bytes: (usize, usize),
    /// Jobs that move meanwhile come once.
    seen: HashSet<JobId>,
    /// Candidates that were not read, because their ids tell that they were created too late.
    passed_over: usize,
}

impl<'a> Search<'a> {
    fn new(jobs: &'a Jobs, filter: &'a JobFilter, limit: usize, connection: PooledConnection) -> Self {
        let page = SearchPage { complete: true, ..SearchPage::default() };
        let (bytes, seen) = ((0, 0), HashSet::new());
        Self { jobs, filter, limit, keeps_json: true, connection, page, bytes, seen, passed_over: 0 }
    }

    /// Adds the matching jobs of a group; false when the page is full or the search has examined enough.
    async fn search_group(
        &mut self,
        group: SourceGroup,
        queues: &SearchedQueues,
        from: Option<&SearchCursor>,
    ) -> StoreResult<bool> {
        let jobs = self.jobs;
        let mut sources = queues.sources(group, self.filter);
        for source in &mut sources {
            match (from, self.filter.ended_until) {
                (Some(cursor), _) => cursor.place(source),
                // A worker notes the end before Redis does
                (None, Some(until)) if group == SourceGroup::Over => {
                    source.after = After::Until(until.saturating_add(MAX_RECORDING_MS));
                }
                _ => {}
            }
        }
        jobs.read_heads(&mut sources, &mut self.connection).await?;
        let mut sources = MergedSources::new(sources);
        loop {
            let slice = self.next_slice(&mut sources).await?;
            if slice.is_empty() {
                return Ok(true);
            }
            let read = jobs.read_found(sources.list(), &slice, &mut self.connection).await?;
            for (next, read) in slice.into_iter().zip(read) {
                if self.is_full() {
                    return Ok(false);
                }
                let source = &sources.list()[next.source];
                self.page.cursor = Some(SearchCursor::behind(group, source, &next.candidate));
                if next.is_passed_over {
                    self.passed_over += 1;
                } else {
                    self.examine(source, &next.candidate, read);
                }
            }
            if self.has_enough() {
                self.page.complete = false;
                return Ok(false);
            }
        }
    }

    fn is_full(&self) -> bool {
        self.page.jobs.len() >= self.limit || self.bytes.1 >= SOFT_MAX_PAGE_BYTES
    }

    fn has_enough(&self) -> bool {
        let is_bounded = self.page.examined >= MAX_EXAMINED
            || self.bytes.0 >= MAX_EXAMINED_BYTES
            || self.passed_over >= MAX_PASSED_OVER;
        !self.is_full() && is_bounded
    }

    fn examine(&mut self, source: &Source, candidate: &SearchCandidate, read: Option<ReadJob>) {
        self.page.examined += 1;
        let Some(ReadJob { id, state, json }) = read else { return };
        self.bytes.0 += json.len();
        if !source.kind.has(state) || !self.filter.matches(&json) || !self.seen.insert(id) {
            return;
        }
        let json = if self.keeps_json { json } else { String::new() };
        self.bytes.1 += json.len();
        self.page.jobs.push(FoundJob { id, queue: source.queue.clone(), state, at: candidate.at, json });
    }

    /// How many jobs to read at once: about as many as fill the page if as many of them match as so far, and a mebibyte at
    /// most.
    fn slice_size(&self) -> usize {
        let (examined, found) = (self.page.examined, self.page.jobs.len());
        if examined < FIRST_SLICE {
            return FIRST_SLICE;
        }
        let of_bytes = SLICE_BYTES / (self.bytes.0 / examined).max(1);
        let missing = self.limit.saturating_sub(found).saturating_mul(examined);
        let of_page = missing.checked_div(found).unwrap_or(MAX_SLICE);
        of_bytes.min(of_page).clamp(FIRST_SLICE, MAX_SLICE)
    }

    /// The newest candidates of all sources.
    async fn next_slice(&mut self, sources: &mut MergedSources) -> StoreResult<Vec<NextCandidate>> {
        let (size, oldest) = (self.slice_size(), oldest_candidate(self.filter));
        let (mut slice, mut to_read) = (Vec::new(), 0);
        while to_read < size && slice.len() < size + MAX_SLICE {
            // All others are older
            let taken = sources.take_newest(oldest, self.jobs, &mut self.connection).await?;
            let Some((source, candidate)) = taken else { break };
            let is_passed_over = is_created_too_late(self.filter, &sources.list()[source], &candidate);
            to_read += usize::from(!is_passed_over);
            slice.push(NextCandidate { source, candidate, is_passed_over });
        }
        Ok(slice)
    }
}

/// A candidate whose turn it is.
struct NextCandidate {
    /// The number of its source.
    source: usize,
    candidate: SearchCandidate,
    /// Whether it does not match, whatever else is known of it: then it is not read.
    is_passed_over: bool,
}

/// Whether the id tells that a job was created after the time up to which a search looks. Generated ids have the time of
/// their job or, in workflows, an earlier one; an id that a client chose may have any, and another tag.
fn is_created_too_late(filter: &JobFilter, source: &Source, candidate: &SearchCandidate) -> bool {
    let (Some(until), Found::Id(id)) = (filter.created_until, &candidate.found) else { return false };
    let at = i64::try_from(id.milliseconds()).unwrap_or_default();
    at >= until.saturating_add(MAX_CLOCK_DIFFERENCE_MS) && id.queue_tag() == queue_tag(&source.queue)
}
