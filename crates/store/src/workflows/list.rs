//! The workflows that run, in pages.

use std::{fmt, str::FromStr};

use common::{id::WorkflowId, name::NameError};
use futures_util::{StreamExt, TryStreamExt, stream};
use model::{access::Access, workflow::WorkflowView};

use super::{MAX_CONCURRENT_COMMANDS, WorkflowRecord, Workflows, to_view};
use crate::{StoreResult, keys};

/// How many workflows one page examines.
const MAX_EXAMINED: usize = 1000;
/// How many entries of the index are read at a time.
const INDEX_PAGE: usize = 100;

/// A place in the list. A workflow that is checked while somebody pages moves back, so it may be listed twice, and none
/// is left out.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct WorkflowCursor {
    check_at: i64,
    id: WorkflowId,
}

/// Running workflows that are in no other, without their jobs.
#[derive(Debug, Default)]
pub struct RunningWorkflows {
    /// In the order in which they are checked next.
    pub workflows: Vec<WorkflowView>,
    /// Where more may follow.
    pub next: Option<WorkflowCursor>,
}

impl fmt::Display for WorkflowCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.check_at, self.id)
    }
}

impl FromStr for WorkflowCursor {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let parts = text.split_once('.').filter(|(at, _)| at.len() <= 15 && at.bytes().all(|b| b.is_ascii_digit()));
        let cursor = parts.and_then(|(at, id)| Some(Self { check_at: at.parse().ok()?, id: id.parse().ok()? }));
        cursor.ok_or_else(|| NameError::new("after", "be next of the page before", text))
    }
}

impl Workflows {
    /// At most `limit` running workflows behind `after`, for a limited sender those whose jobs are all of its queues.
    ///
    /// # Errors
    /// Redis is unavailable or a workflow is damaged.
    pub async fn running_workflows(
        &self,
        after: Option<WorkflowCursor>,
        limit: usize,
        access: Option<&Access>,
    ) -> StoreResult<RunningWorkflows> {
        let mut page = RunningWorkflows::default();
        let (mut examined, mut offset) = (0, 0);
        loop {
            let (read, mut entries) = self.index_page(after.as_ref(), offset).await?;
            offset += read;
            entries.retain(|entry| after.as_ref().is_none_or(|after| entry > after));
            let records = stream::iter(&entries).map(|entry| self.read_workflow(entry.id));
            let records: Vec<Option<WorkflowRecord>> = records.buffered(MAX_CONCURRENT_COMMANDS).try_collect().await?;
            for (entry, record) in entries.into_iter().zip(records) {
                if page.workflows.len() == limit || examined == MAX_EXAMINED {
                    return Ok(page);
                }
                examined += 1;
                // Nested ones are found through those that they are in
                if let Some(record) = record.filter(|record| record.ended.is_none() && record.step.is_none())
                    && self.is_of(entry.id, access).await?
                {
                    page.workflows.push(to_view(&record, Vec::new()));
                }
                page.next = Some(entry);
            }
            if read < INDEX_PAGE {
                page.next = None;
                return Ok(page);
            }
        }
    }

    /// How many entries were read, and those of them that are ids.
    async fn index_page(
        &self,
        after: Option<&WorkflowCursor>,
        offset: usize,
    ) -> StoreResult<(usize, Vec<WorkflowCursor>)> {
        let mut command = redis::cmd("ZRANGE");
        command.arg(keys::WORKFLOWS).arg(after.map_or("-inf".to_owned(), |after| after.check_at.to_string()));
        command.arg("+inf").arg("BYSCORE").arg("LIMIT").arg(offset).arg(INDEX_PAGE).arg("WITHSCORES");
        let entries: Vec<(String, i64)> = command.query_async(&mut self.jobs.store.redis.clone()).await?;
        let read = entries.len();
        let parsed = entries.into_iter().map(|(id, check_at)| Some(WorkflowCursor { check_at, id: id.parse().ok()? }));
        Ok((read, parsed.flatten().collect()))
    }

    async fn is_of(&self, id: WorkflowId, access: Option<&Access>) -> StoreResult<bool> {
        let Some(access) = access else { return Ok(true) };
        let queues = self.workflow_queues(id).await?;
        Ok(queues.is_some_and(|queues| queues.iter().all(|queue| access.has_queue(queue))))
    }
}
