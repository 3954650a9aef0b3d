//! The claim loop of the simulation: permits first, then jobs of the queues that may have some, then a wait.

use std::{sync::Arc, time::Duration};

use common::name::Priority;
use store::jobs::ClaimAvailability;
use tokio::time::Instant;

use super::{Flaw, World, queues};
use crate::{
    queue_selector::QueueSelector,
    queue_states::{ChangedQueues, QueueStates},
    slots::Permit,
};

/// Longest wait for jobs: half a lease.
const MAX_BLOCK: Duration = Duration::from_secs(3);
/// Maximum number of jobs in one claim.
const MAX_BATCH: usize = 4;

/// Claims until the worker stops.
pub(super) async fn run(world: &Arc<World>) {
    let names = queues();
    let mut states = QueueStates::new(&names, now());
    let mut selector = QueueSelector::new(&names, &std::collections::BTreeMap::new());
    let mut must_recover = true;
    while !world.stop.is_cancelled() {
        if std::mem::take(&mut must_recover) && !recover(world, &mut states).await {
            must_recover = true;
            if world.flaw != Flaw::Spins {
                pause(world).await;
            }
            continue;
        }
        if !claim_once(world, &mut states, &mut selector).await {
            must_recover = true;
        }
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

async fn pause(world: &World) {
    tokio::select! {
        biased;
        () = world.stop.cancelled() => {}
        () = tokio::time::sleep(Duration::from_millis(300)) => {}
    }
}

/// Asks for the jobs of claims whose answers were lost; false if the store is away.
async fn recover(world: &Arc<World>, states: &mut QueueStates) -> bool {
    for queue in queues() {
        let is_new = |entry| !world.in_flight.contains(&queue, Priority::default(), entry);
        let Some(jobs) = world.call(|store| store.claimed(&queue)).await else { return false };
        for job in jobs.into_iter().filter(|job| is_new(job.entry)) {
            let (stream, entry) = (job.stream(), job.entry);
            world.start(job, None);
            if world.flaw != Flaw::RecoversSilently {
                world.in_flight.renew_now(&stream, entry);
            }
        }
        states.get_mut(&queue).set_open(vec![Priority::default()]);
    }
    true
}

/// One round of the loop; false after an error.
async fn claim_once(world: &Arc<World>, states: &mut QueueStates, selector: &mut QueueSelector) -> bool {
    let first = tokio::select! {
        biased;
        () = world.stop.cancelled() => return true,
        permit = world.slots.acquire_any() => permit,
    };
    let mut permits = Vec::from_iter(first);
    while permits.len() < MAX_BATCH
        && let Some(permit) = world.slots.try_acquire()
    {
        permits.push(permit);
    }
    states.note_changed(&world.wakeup.take());
    // The streams of a queue that changed are read again
    for queue in queues() {
        if states.get_mut(&queue).priorities.is_empty() {
            states.get_mut(&queue).set_open(vec![Priority::default()]);
        }
    }
    states.ask_due(now());
    let mut found = false;
    for queue in selector.next_order() {
        if permits.is_empty() {
            break;
        }
        if !states.get_mut(&queue).may_have_jobs() {
            continue;
        }
        let mut bound = world.slots.bind_to_queue(&queue, &mut permits, MAX_BATCH);
        if bound.is_empty() {
            continue;
        }
        let max = bound.len() + usize::from(world.flaw == Flaw::NoPermits);
        let Some(jobs) = world.call(|store| store.claim(&queue, max)).await else { return false };
        states.get_mut(&queue).asked(ClaimAvailability::Unlimited, jobs.len() == max, now());
        found |= !jobs.is_empty();
        for job in jobs {
            world.start(job, bound.pop());
        }
        permits.extend(bound.into_iter().map(Permit::into_any_queue));
    }
    if !found {
        // One permit stays here: a blocking read may bring a job
        permits.truncate(1);
        wait(world, states).await;
    }
    true
}

/// Waits until a job arrives, a wakeup comes or it is time to ask again.
async fn wait(world: &World, states: &mut QueueStates) {
    let plan = states.wait_plan(|queue| world.slots.has_capacity(queue), now());
    let longest = plan.max_wait.map_or(MAX_BLOCK, |wait| wait.min(MAX_BLOCK)).max(Duration::from_millis(1));
    tokio::select! {
        biased;
        () = world.stop.cancelled() => {}
        () = world.wakeup.woken() => {}
        () = world.arrived.notified(), if !plan.streams.is_empty() => {
            let arrived = plan.streams.into_iter().map(|(queue, _)| queue).collect();
            states.note_changed(&ChangedQueues::Only(arrived));
        }
        () = tokio::time::sleep(longest) => {}
    }
}
