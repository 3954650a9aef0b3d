//! Wakes tasks of a server thread from other threads, all together.
//!
//! To wake a task of another thread is a system call, and a message wakes a task for each of its readers. So readers leave a
//! waker that puts them on a list of their thread, and only the first of a list wakes the thread: a task there wakes the
//! others, which needs no system call. It wakes all of them before anything else of the thread has a turn: a request that
//! publishes the next long message waits until all have this one, and need not read it from the history.

use std::{
    cell::RefCell,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Wake, Waker},
};

use tokio::sync::Notify;

thread_local! {
    static RELAY: RefCell<Option<Arc<WakeRelay>>> = const { RefCell::new(None) };
}

/// The tasks of a thread that are to be woken.
#[derive(Default)]
struct WakeRelay {
    pending: Mutex<Vec<Waker>>,
    is_pending: Notify,
}

/// Starts the relay of this thread. Each thread of the server calls it once.
pub(crate) fn start() {
    let relay = Arc::new(WakeRelay::default());
    RELAY.set(Some(relay.clone()));
    actix_web::rt::spawn(async move { relay.run().await });
}

impl WakeRelay {
    async fn run(&self) {
        loop {
            self.is_pending.notified().await;
            let pending = std::mem::take(&mut *self.pending.lock().unwrap_or_else(PoisonError::into_inner));
            pending.into_iter().for_each(Waker::wake);
        }
    }

    fn add(&self, waker: Waker) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.push(waker);
        let is_first = pending.len() == 1;
        drop(pending);
        if is_first {
            self.is_pending.notify_one();
        }
    }
}

/// The waker that a task leaves with what other threads wake it for.
#[derive(Default)]
pub(crate) struct RelayedWaker {
    /// The waker of the task, and what is left.
    known: Option<(Waker, Waker)>,
}

struct RelayedTask {
    relay: Arc<WakeRelay>,
    task: Waker,
}

impl Wake for RelayedTask {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.relay.add(self.task.clone());
    }
}

impl RelayedWaker {
    /// Polls something that another thread wakes. Not for timers: those are of this thread.
    pub(crate) fn poll<T>(&mut self, cx: &Context<'_>, poll: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        let is_known = self.known.as_ref().is_some_and(|(task, _)| task.will_wake(cx.waker()));
        if !is_known {
            let task = cx.waker().clone();
            let left = RELAY.with_borrow(|relay| match relay {
                Some(relay) => Waker::from(Arc::new(RelayedTask { relay: relay.clone(), task: task.clone() })),
                // Not a thread of the server
                None => task.clone(),
            });
            self.known = Some((task, left));
        }
        let left = self.known.as_ref().map_or(cx.waker(), |(_, left)| left);
        poll(&mut Context::from_waker(left))
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, thread};

    use tokio::sync::oneshot;

    use super::*;

    #[actix_web::test]
    async fn tasks_of_a_thread_are_woken_from_another_one_and_its_list_is_empty_then() {
        start();
        let (mut senders, mut tasks) = (Vec::new(), Vec::new());
        for _ in 0..100 {
            let (sender, mut receiver) = oneshot::channel::<()>();
            senders.push(sender);
            tasks.push(actix_web::rt::spawn(async move {
                let mut waker = RelayedWaker::default();
                poll_fn(|cx| waker.poll(cx, |cx| std::pin::Pin::new(&mut receiver).poll(cx))).await
            }));
        }
        // They wait before anything is sent
        tokio::task::yield_now().await;
        let sending =
            thread::spawn(move || senders.into_iter().for_each(|sender| sender.send(()).expect("a receiver")));
        for task in tasks {
            task.await.expect("no panic").expect("sent");
        }
        sending.join().expect("no panic");
        let relay = RELAY.with_borrow(Clone::clone).expect("started");
        assert!(relay.pending.lock().expect("no panic").is_empty());
    }
}
