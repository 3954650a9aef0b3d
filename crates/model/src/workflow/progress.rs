//! Which jobs must exist now, and the state of the workflow. It is a function of the recorded outcomes alone, so the
//! caller, repetition and the order of the outcomes do not matter.

use super::{BatchCallback, WorkflowKind, WorkflowState};
use crate::job::JobState;

/// How a job of a workflow ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TerminalState {
    /// It succeeded.
    Completed,
    /// It failed for good, or does not exist.
    Discarded,
    /// It was cancelled.
    Cancelled,
}

impl TerminalState {
    /// The outcome that a terminal state stands for.
    #[must_use]
    pub fn from_state(state: JobState) -> Option<Self> {
        match state {
            JobState::Completed => Some(Self::Completed),
            JobState::Discarded => Some(Self::Discarded),
            JobState::Cancelled => Some(Self::Cancelled),
            _ => None,
        }
    }

    /// The job's state.
    #[must_use]
    pub fn job_state(self) -> JobState {
        match self {
            Self::Completed => JobState::Completed,
            Self::Discarded => JobState::Discarded,
            Self::Cancelled => JobState::Cancelled,
        }
    }
}

/// The recorded outcomes of a workflow.
#[derive(Debug, Clone)]
pub struct WorkflowProgress {
    /// What kind it is.
    pub kind: WorkflowKind,
    /// The outcome of each member; none for those that are not finished.
    pub members: Vec<Option<TerminalState>>,
    /// Its callbacks and their outcomes, by [`BatchCallback::offset`].
    pub callbacks: [Option<Option<TerminalState>>; 3],
}

/// What follows from the outcomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkflowPlan {
    /// The members before this one must exist.
    pub members: usize,
    /// These callbacks must exist.
    pub callbacks: Vec<BatchCallback>,
    /// The state of the workflow.
    pub state: WorkflowState,
}

impl WorkflowProgress {
    /// The progress of a new workflow.
    #[must_use]
    pub fn new(kind: WorkflowKind, members: usize, callbacks: &[BatchCallback]) -> Self {
        let mut progress = Self { kind, members: vec![None; members], callbacks: [None; 3] };
        for callback in callbacks {
            progress.callbacks[callback.offset()] = Some(None);
        }
        progress
    }

    /// Records the outcome of the job at an index. The first outcome stays.
    pub fn record_end(&mut self, index: usize, end: TerminalState) {
        let slot = match index.checked_sub(self.members.len()) {
            None => self.members.get_mut(index),
            Some(offset) => self.callbacks.get_mut(offset).and_then(Option::as_mut),
        };
        if let Some(slot) = slot {
            slot.get_or_insert(end);
        }
    }

    /// The outcome of the job at an index, if it is finished.
    #[must_use]
    pub fn terminal_state(&self, index: usize) -> Option<TerminalState> {
        match index.checked_sub(self.members.len()) {
            None => self.members[index],
            Some(offset) => self.callbacks.get(offset).copied().flatten().flatten(),
        }
    }

    /// Which jobs must exist, and the state, unless the workflow was cancelled.
    #[must_use]
    pub fn plan(&self) -> WorkflowPlan {
        if self.kind == WorkflowKind::Chain {
            return self.plan_chain();
        }
        let (all, succeeded) = (self.members.len(), |end: Option<TerminalState>| end == Some(TerminalState::Completed));
        if self.members.iter().any(Option::is_none) {
            return WorkflowPlan { members: all, callbacks: Vec::new(), state: WorkflowState::Running };
        }
        let well = self.members.iter().copied().all(succeeded);
        let (mut due, mut state) = (Vec::new(), if well { WorkflowState::Completed } else { WorkflowState::Failed });
        for callback in BatchCallback::ALL {
            let applies = match callback {
                BatchCallback::Complete => true,
                BatchCallback::Success => well,
                BatchCallback::Failure => !well,
            };
            if let Some(end) = self.callbacks[callback.offset()].filter(|_| applies) {
                due.push(callback);
                state = match (state, end) {
                    (_, None) | (WorkflowState::Running, _) => WorkflowState::Running,
                    (state, Some(TerminalState::Completed)) => state,
                    _ => WorkflowState::Failed,
                };
            }
        }
        WorkflowPlan { members: all, callbacks: due, state }
    }

    fn plan_chain(&self) -> WorkflowPlan {
        let done = self.members.iter().take_while(|end| **end == Some(TerminalState::Completed)).count();
        let (members, state) = match self.members.get(done) {
            None => (done, WorkflowState::Completed),
            Some(None) => (done + 1, WorkflowState::Running),
            Some(Some(_)) => (done + 1, WorkflowState::Failed),
        };
        WorkflowPlan { members, callbacks: Vec::new(), state }
    }
}

impl WorkflowPlan {
    /// The indexes of all jobs that must exist, in start order.
    pub fn indexes(&self, members: usize) -> impl Iterator<Item = usize> {
        let callbacks: Vec<usize> = self.callbacks.iter().map(|callback| members + callback.offset()).collect();
        (0..self.members).chain(callbacks)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, sample::select};

    use super::*;

    const TERMINAL_STATES: [TerminalState; 3] =
        [TerminalState::Completed, TerminalState::Discarded, TerminalState::Cancelled];

    /// A workflow, how each of its jobs will end, and a source of order.
    fn a_run() -> impl Strategy<Value = (WorkflowProgress, Vec<TerminalState>, Vec<usize>)> {
        let kind = select(WorkflowKind::ALL.to_vec());
        let sizes = (kind, 1..8_usize, proptest::sample::subsequence(BatchCallback::ALL.to_vec(), 0..=3));
        sizes.prop_flat_map(|(kind, members, callbacks)| {
            let callbacks = if kind == WorkflowKind::Batch { callbacks } else { Vec::new() };
            let ends = proptest::collection::vec(
                prop_oneof![3 => Just(TerminalState::Completed), 1 => select(TERMINAL_STATES.to_vec())],
                members + 3,
            );
            let order = proptest::collection::vec(any::<usize>(), 0..120);
            (Just(WorkflowProgress::new(kind, members, &callbacks)), ends, order)
        })
    }

    /// Lets jobs that exist end, in the order given and then in turn, some of them several times, until all is over.
    /// Gives the jobs in the order in which they were started.
    fn play(progress: &mut WorkflowProgress, ends: &[TerminalState], order: &[usize]) -> (Vec<usize>, WorkflowState) {
        let members = progress.members.len();
        let mut started: Vec<usize> = Vec::new();
        let mut turn = 0;
        loop {
            let plan = progress.plan();
            for index in plan.indexes(members) {
                if !started.contains(&index) {
                    started.push(index);
                }
            }
            assert!(started.iter().all(|index| plan.indexes(members).any(|planned| planned == *index)));
            let open: Vec<usize> =
                started.iter().copied().filter(|index| progress.terminal_state(*index).is_none()).collect();
            match (order.get(turn), open.first()) {
                (Some(pick), _) => {
                    progress.record_end(started[pick % started.len()], ends[started[pick % started.len()]]);
                }
                (None, Some(index)) => progress.record_end(*index, ends[*index]),
                (None, None) => return (started, plan.state),
            }
            turn += 1;
        }
    }

    proptest! {
        #[test]
        fn any_order_and_repetition_of_ends_gives_the_same_outcome((progress, ends, order) in a_run()) {
            let (mut first, mut second) = (progress.clone(), progress);
            let (mut started, state) = play(&mut first, &ends, &order);
            let (mut in_turn, same) = play(&mut second, &ends, &[]);
            prop_assert_eq!(state, same);
            prop_assert_ne!(state, WorkflowState::Running);
            started.sort_unstable();
            in_turn.sort_unstable();
            prop_assert_eq!(started, in_turn);
        }

        #[test]
        fn what_must_exist_only_grows_and_what_is_over_stays_so((mut progress, ends, order) in a_run()) {
            let total = progress.members.len() + 3;
            let mut before = progress.plan();
            // Ends of jobs that were never started too: they must not matter
            for index in order {
                progress.record_end(index % total, ends[index % total]);
                let now = progress.plan();
                prop_assert!(now.members >= before.members);
                prop_assert!(before.callbacks.iter().all(|callback| now.callbacks.contains(callback)));
                prop_assert!(before.state == WorkflowState::Running || before == now, "{:?} {:?}", before, now);
                before = now;
            }
        }
    }

    #[test]
    fn a_chain_stops_at_the_first_step_that_does_not_succeed() {
        let mut progress = WorkflowProgress::new(WorkflowKind::Chain, 3, &[]);
        assert_eq!(progress.plan(), WorkflowPlan { members: 1, callbacks: vec![], state: WorkflowState::Running });
        progress.record_end(0, TerminalState::Completed);
        assert_eq!(progress.plan().members, 2);
        progress.record_end(1, TerminalState::Cancelled);
        assert_eq!(progress.plan(), WorkflowPlan { members: 2, callbacks: vec![], state: WorkflowState::Failed });
    }

    #[test]
    fn a_batch_calls_back_as_its_members_ended_and_is_over_with_its_callbacks() {
        for (end, callbacks) in [
            (TerminalState::Completed, vec![BatchCallback::Complete, BatchCallback::Success]),
            (TerminalState::Discarded, vec![BatchCallback::Complete, BatchCallback::Failure]),
            (TerminalState::Cancelled, vec![BatchCallback::Complete, BatchCallback::Failure]),
        ] {
            let mut progress = WorkflowProgress::new(WorkflowKind::Batch, 2, &BatchCallback::ALL);
            progress.record_end(0, TerminalState::Completed);
            assert_eq!(progress.plan().callbacks, []);
            progress.record_end(1, end);
            assert_eq!(progress.plan().callbacks, callbacks);
            assert_eq!(progress.plan().state, WorkflowState::Running);
            for callback in &callbacks {
                progress.record_end(2 + callback.offset(), TerminalState::Completed);
            }
            let well = end == TerminalState::Completed;
            assert_eq!(progress.plan().state, if well { WorkflowState::Completed } else { WorkflowState::Failed });
        }
        let mut progress = WorkflowProgress::new(WorkflowKind::Batch, 1, &[BatchCallback::Success]);
        progress.record_end(0, TerminalState::Completed);
        progress.record_end(2, TerminalState::Discarded);
        assert_eq!(progress.plan().state, WorkflowState::Failed, "a callback that fails fails the batch");
    }
}
