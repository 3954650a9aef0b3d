//! The checkpoint of a job as its handler knows it: the state of the handler, and the results of its steps. It is the state alone
//! until there is a step, and then `{"galley:steps": {name: result}, "state": ...}`. The clients for other languages write the
//! same.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use store::jobs::WaitRequest;
use tokio::sync::Semaphore;

/// The checkpoint as this attempt knows it.
pub(super) struct SavedState {
    /// One save at a time: each has everything that the one before had.
    pub(super) saving: Semaphore,
    saved: Mutex<Saved>,
    running_steps: Mutex<HashSet<String>>,
    /// What the job waits for: its attempt must end.
    pub(super) wait: Mutex<Option<WaitRequest>>,
}

#[derive(Clone, Default)]
pub(super) struct Saved {
    pub(super) sequence: u64,
    pub(super) members: SavedMembers,
}

#[derive(Clone, Default, Serialize, Deserialize)]
pub(super) struct SavedMembers {
    #[serde(rename = "galley:steps")]
    pub(super) steps: BTreeMap<String, Box<RawValue>>,
    pub(super) state: Option<Box<RawValue>>,
}

impl SavedState {
    pub(super) fn new(saved: Saved) -> Self {
        Self {
            saving: Semaphore::new(1),
            saved: Mutex::new(saved),
            running_steps: Mutex::default(),
            wait: Mutex::default(),
        }
    }

    /// What is saved now.
    pub(super) fn saved(&self) -> MutexGuard<'_, Saved> {
        lock(&self.saved)
    }

    /// Takes the name of a step; none if a step of that name runs.
    pub(super) fn start_step<'a>(&'a self, name: &'a str) -> Option<RunningStep<'a>> {
        lock(&self.running_steps).insert(name.to_owned()).then_some(RunningStep { saved: self, name })
    }
}

impl Saved {
    pub(super) fn parse(sequence: u64, json: &str) -> Self {
        // serde would also accept an array as the struct
        let members = Some(json).filter(|json| json.starts_with('{')).and_then(|json| serde_json::from_str(json).ok());
        let plain = || SavedMembers { steps: BTreeMap::new(), state: serde_json::from_str(json).ok() };
        let members = members.unwrap_or_else(plain);
        Self { sequence, members }
    }

    pub(super) fn to_json(&self) -> serde_json::Result<String> {
        if self.members.steps.is_empty() {
            return Ok(self.members.state.as_ref().map_or("null", |state| state.get()).to_owned());
        }
        serde_json::to_string(&self.members)
    }
}

/// A step that runs: its name is taken until it is dropped.
pub(super) struct RunningStep<'a> {
    saved: &'a SavedState,
    name: &'a str,
}

impl Drop for RunningStep<'_> {
    fn drop(&mut self) {
        lock(&self.saved.running_steps).remove(self.name);
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use serde_json::value::to_raw_value;

    use super::*;

    #[test]
    fn a_state_is_saved_as_it_is_until_there_is_a_step() {
        for state in ["null", "7", r#"{"cursor":"a","state":1}"#, "[{},2]"] {
            let saved = Saved::parse(1, state);
            assert_eq!(saved.to_json().expect("JSON"), state);
            assert!(saved.members.steps.is_empty());
        }
        let mut saved = Saved::parse(1, r#"{"cursor":"a"}"#);
        saved.members.steps.insert("charge".to_owned(), to_raw_value(&"ch_1").expect("JSON"));
        let json = saved.to_json().expect("JSON");
        assert_eq!(json, r#"{"galley:steps":{"charge":"ch_1"},"state":{"cursor":"a"}}"#);
        let again = Saved::parse(2, &json);
        assert_eq!((again.to_json().expect("JSON"), again.members.steps.len()), (json, 1));
    }
}
