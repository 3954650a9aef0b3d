//! What must exist now, and how the workflow is doing: a function of the ends recorded so far and of nothing else, so it
//! does not matter who asks, how often, or in which order the ends came in.

use super::{Callback, Kind, WorkflowState};
use crate::job::State;

/// How a job of a workflow ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It succeeded.
    Completed,
    /// It failed for good, or is nowhere to be found.
    Discarded,
    /// Somebody called it off.
    Cancelled,
}

impl End {
    /// The end that a job's state is, if it is one.
    #[must_use]
    pub fn of(state: State) -> Option<Self> {
        match state {
            State::Completed => Some(Self::Completed),
            State::Discarded => Some(Self::Discarded),
            State::Cancelled => Some(Self::Cancelled),
            _ => None,
        }
    }

    /// The job's state.
    #[must_use]
    pub fn state(self) -> State {
        match self {
            Self::Completed => State::Completed,
            Self::Discarded => State::Discarded,
            Self::Cancelled => State::Cancelled,
        }
    }
}

/// What is known of a workflow.
#[derive(Debug, Clone)]
pub struct Progress {
    /// What kind it is.
    pub kind: Kind,
    /// How its members ended; none for those that did not.
    pub members: Vec<Option<End>>,
    /// Its callbacks and how they ended, by [`Callback::offset`].
    pub callbacks: [Option<Option<End>>; 3],
}

/// What follows from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The members before this one must exist.
    pub members: usize,
    /// These callbacks must exist.
    pub callbacks: Vec<Callback>,
    /// How the workflow is doing.
    pub state: WorkflowState,
}

impl Progress {
    /// The progress of a workflow that has just begun.
    #[must_use]
    pub fn new(kind: Kind, members: usize, callbacks: &[Callback]) -> Self {
        let mut progress = Self { kind, members: vec![None; members], callbacks: [None; 3] };
        for callback in callbacks {
            progress.callbacks[callback.offset()] = Some(None);
        }
        progress
    }

    /// Notes how the job at an index ended; what was noted first stays.
    pub fn note(&mut self, index: usize, end: End) {
        let slot = match index.checked_sub(self.members.len()) {
            None => self.members.get_mut(index),
            Some(offset) => self.callbacks.get_mut(offset).and_then(Option::as_mut),
        };
        if let Some(slot) = slot {
            slot.get_or_insert(end);
        }
    }

    /// How the job at an index ended, if it did.
    #[must_use]
    pub fn end(&self, index: usize) -> Option<End> {
        match index.checked_sub(self.members.len()) {
            None => self.members[index],
            Some(offset) => self.callbacks.get(offset).copied().flatten().flatten(),
        }
    }

    /// What must exist and how the workflow is doing, unless somebody called it off.
    #[must_use]
    pub fn plan(&self) -> Plan {
        if self.kind == Kind::Chain {
            return self.plan_chain();
        }
        let (all, succeeded) = (self.members.len(), |end: Option<End>| end == Some(End::Completed));
        if self.members.iter().any(Option::is_none) {
            return Plan { members: all, callbacks: Vec::new(), state: WorkflowState::Running };
        }
        let well = self.members.iter().copied().all(succeeded);
        let (mut due, mut state) = (Vec::new(), if well { WorkflowState::Completed } else { WorkflowState::Failed });
        for callback in Callback::ALL {
            let applies = match callback {
                Callback::Complete => true,
                Callback::Success => well,
                Callback::Failure => !well,
            };
            if let Some(end) = self.callbacks[callback.offset()].filter(|_| applies) {
                due.push(callback);
                state = match (state, end) {
                    (_, None) | (WorkflowState::Running, _) => WorkflowState::Running,
                    (state, Some(End::Completed)) => state,
                    _ => WorkflowState::Failed,
                };
            }
        }
        Plan { members: all, callbacks: due, state }
    }

    fn plan_chain(&self) -> Plan {
        let done = self.members.iter().take_while(|end| **end == Some(End::Completed)).count();
        let (members, state) = match self.members.get(done) {
            None => (done, WorkflowState::Completed),
            Some(None) => (done + 1, WorkflowState::Running),
            Some(Some(_)) => (done + 1, WorkflowState::Failed),
        };
        Plan { members, callbacks: Vec::new(), state }
    }
}

impl Plan {
    /// The indexes of all jobs that must exist, in the order in which they are started.
    pub fn indexes(&self, members: usize) -> impl Iterator<Item = usize> {
        let callbacks: Vec<usize> = self.callbacks.iter().map(|callback| members + callback.offset()).collect();
        (0..self.members).chain(callbacks)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, sample::select};

    use super::*;

    const ENDS: [End; 3] = [End::Completed, End::Discarded, End::Cancelled];

    /// A workflow, how each of its jobs will end, and a source of order.
    fn a_run() -> impl Strategy<Value = (Progress, Vec<End>, Vec<usize>)> {
        let kind = select(Kind::ALL.to_vec());
        let sizes = (kind, 1..8_usize, proptest::sample::subsequence(Callback::ALL.to_vec(), 0..=3));
        sizes.prop_flat_map(|(kind, members, callbacks)| {
            let callbacks = if kind == Kind::Batch { callbacks } else { Vec::new() };
            let ends = proptest::collection::vec(
                prop_oneof![3 => Just(End::Completed), 1 => select(ENDS.to_vec())],
                members + 3,
            );
            let order = proptest::collection::vec(any::<usize>(), 0..120);
            (Just(Progress::new(kind, members, &callbacks)), ends, order)
        })
    }

    /// Lets jobs that exist end, in the order given and then in turn, some of them several times, until all is over.
    /// Gives the jobs in the order in which they were started.
    fn play(progress: &mut Progress, ends: &[End], order: &[usize]) -> (Vec<usize>, WorkflowState) {
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
            let open: Vec<usize> = started.iter().copied().filter(|index| progress.end(*index).is_none()).collect();
            match (order.get(turn), open.first()) {
                (Some(pick), _) => progress.note(started[pick % started.len()], ends[started[pick % started.len()]]),
                (None, Some(index)) => progress.note(*index, ends[*index]),
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
                progress.note(index % total, ends[index % total]);
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
        let mut progress = Progress::new(Kind::Chain, 3, &[]);
        assert_eq!(progress.plan(), Plan { members: 1, callbacks: vec![], state: WorkflowState::Running });
        progress.note(0, End::Completed);
        assert_eq!(progress.plan().members, 2);
        progress.note(1, End::Cancelled);
        assert_eq!(progress.plan(), Plan { members: 2, callbacks: vec![], state: WorkflowState::Failed });
    }

    #[test]
    fn a_batch_calls_back_as_its_members_ended_and_is_over_with_its_callbacks() {
        for (end, callbacks) in [
            (End::Completed, vec![Callback::Complete, Callback::Success]),
            (End::Discarded, vec![Callback::Complete, Callback::Failure]),
            (End::Cancelled, vec![Callback::Complete, Callback::Failure]),
        ] {
            let mut progress = Progress::new(Kind::Batch, 2, &Callback::ALL);
            progress.note(0, End::Completed);
            assert_eq!(progress.plan().callbacks, []);
            progress.note(1, end);
            assert_eq!(progress.plan().callbacks, callbacks);
            assert_eq!(progress.plan().state, WorkflowState::Running);
            for callback in &callbacks {
                progress.note(2 + callback.offset(), End::Completed);
            }
            let well = end == End::Completed;
            assert_eq!(progress.plan().state, if well { WorkflowState::Completed } else { WorkflowState::Failed });
        }
        let mut progress = Progress::new(Kind::Batch, 1, &[Callback::Success]);
        progress.note(0, End::Completed);
        progress.note(2, End::Discarded);
        assert_eq!(progress.plan().state, WorkflowState::Failed, "a callback that fails fails the batch");
    }
}
