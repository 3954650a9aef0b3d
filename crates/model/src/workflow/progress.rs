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

/// The members whose results a job gets, in that order: those before a step of a chain, those that a step of a DAG depends
/// on (`depends_on`), all of them for a callback.
#[must_use]
pub fn parents_of(kind: WorkflowKind, members: usize, depends_on: &[usize], index: usize) -> Vec<usize> {
    match kind {
        WorkflowKind::Chain => (0..index).collect(),
        WorkflowKind::Dag => depends_on.to_vec(),
        WorkflowKind::Batch if index >= members => (0..members).collect(),
        WorkflowKind::Group | WorkflowKind::Batch => Vec::new(),
    }
}

/// The recorded outcomes of a workflow.
#[derive(Debug, Clone)]
pub struct WorkflowProgress {
    /// What kind it is.
    pub kind: WorkflowKind,
    /// The outcome of each member; none for those that are not finished.
    pub members: Vec<Option<TerminalState>>,
    /// Of each member of a DAG, those that it depends on: all of them come before it. Empty for the other kinds.
    pub depends_on: Vec<Vec<usize>>,
    /// Its callbacks and their outcomes, by [`BatchCallback::offset`].
    pub callbacks: [Option<Option<TerminalState>>; 3],
}

/// What follows from the outcomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkflowPlan {
    /// These members must exist, in the order of their indexes.
    pub members: Vec<usize>,
    /// These callbacks must exist.
    pub callbacks: Vec<BatchCallback>,
    /// The state of the workflow.
    pub state: WorkflowState,
}

impl WorkflowProgress {
    /// The progress of a new workflow.
    #[must_use]
    pub fn new(kind: WorkflowKind, members: usize, callbacks: &[BatchCallback]) -> Self {
        let mut progress = Self { kind, members: vec![None; members], depends_on: Vec::new(), callbacks: [None; 3] };
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
        match self.kind {
            WorkflowKind::Chain => self.plan_chain(),
            WorkflowKind::Group | WorkflowKind::Batch => self.plan_group(),
            WorkflowKind::Dag => self.plan_dag(),
        }
    }

    fn plan_group(&self) -> WorkflowPlan {
        let all = (0..self.members.len()).collect();
        let succeeded = |end: Option<TerminalState>| end == Some(TerminalState::Completed);
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
        WorkflowPlan { members: (0..members).collect(), callbacks: Vec::new(), state }
    }

    /// A member that does not succeed holds back those that depend on it, and no others.
    fn plan_dag(&self) -> WorkflowPlan {
        let mut succeeded = vec![false; self.members.len()];
        let (mut members, mut is_running) = (Vec::new(), false);
        for (index, end) in self.members.iter().enumerate() {
            let depends_on = self.depends_on.get(index).map_or(&[][..], Vec::as_slice);
            if depends_on.iter().all(|before| succeeded.get(*before) == Some(&true)) {
                members.push(index);
                succeeded[index] = *end == Some(TerminalState::Completed);
                is_running |= end.is_none();
            }
        }
        let state = match (is_running, succeeded.iter().all(|succeeded| *succeeded)) {
            (true, _) => WorkflowState::Running,
            (false, true) => WorkflowState::Completed,
            (false, false) => WorkflowState::Failed,
        };
        WorkflowPlan { members, callbacks: Vec::new(), state }
    }
}

impl WorkflowPlan {
    /// The indexes of all jobs that must exist, in start order.
    pub fn indexes(&self, members: usize) -> impl Iterator<Item = usize> {
        let callbacks = self.callbacks.iter().map(move |callback| members + callback.offset());
        self.members.iter().copied().chain(callbacks)
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
            let picks = proptest::collection::vec(proptest::bits::u8::ANY, members);
            let progress = picks.prop_map(move |picks| {
                let mut progress = WorkflowProgress::new(kind, members, &callbacks);
                if kind == WorkflowKind::Dag {
                    let before =
                        |(index, pick): (usize, &u8)| (0..index).filter(|bit| pick & (1 << bit) != 0).collect();
                    progress.depends_on = picks.iter().enumerate().map(before).collect();
                }
                progress
            });
            (progress, ends, order)
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
                prop_assert!(before.members.iter().all(|member| now.members.contains(member)));
                prop_assert!(before.callbacks.iter().all(|callback| now.callbacks.contains(callback)));
                prop_assert!(before.state == WorkflowState::Running || before == now, "{:?} {:?}", before, now);
                before = now;
            }
        }
    }

    #[test]
    fn a_chain_stops_at_the_first_step_that_does_not_succeed() {
        let mut progress = WorkflowProgress::new(WorkflowKind::Chain, 3, &[]);
        assert_eq!(
            progress.plan(),
            WorkflowPlan { members: vec![0], callbacks: vec![], state: WorkflowState::Running }
        );
        progress.record_end(0, TerminalState::Completed);
        assert_eq!(progress.plan().members, [0, 1]);
        progress.record_end(1, TerminalState::Cancelled);
        assert_eq!(
            progress.plan(),
            WorkflowPlan { members: vec![0, 1], callbacks: vec![], state: WorkflowState::Failed }
        );
    }

    #[test]
    fn a_dag_starts_what_everything_before_has_succeeded_and_goes_on_beside_what_failed() {
        // 0 and 1 first; 2 after both, 3 after 1, 4 after 3
        let mut progress = WorkflowProgress::new(WorkflowKind::Dag, 5, &[]);
        progress.depends_on = vec![vec![], vec![], vec![0, 1], vec![1], vec![3]];
        assert_eq!(progress.plan().members, [0, 1]);
        progress.record_end(0, TerminalState::Discarded);
        assert_eq!(progress.plan().members, [0, 1]);
        progress.record_end(1, TerminalState::Completed);
        assert_eq!(progress.plan().members, [0, 1, 3]);
        progress.record_end(3, TerminalState::Completed);
        assert_eq!((progress.plan().members, progress.plan().state), (vec![0, 1, 3, 4], WorkflowState::Running));
        progress.record_end(4, TerminalState::Completed);
        assert_eq!(progress.plan().state, WorkflowState::Failed, "2 was never started");
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
