//! A connection of a thread's own, for threads that serve requests.
//!
//! The task of the shared connection runs on another thread: each command wakes that thread, and each answer wakes this
//! one. A connection whose task runs on the thread itself costs no such switch, and what the requests of one turn of its
//! loop ask is written at once.
//!
//! It only stands in for the shared connection, which alone decides whether Redis is there and which server it is: a
//! connection of a thread belongs to one generation of the shared one and is not used after that. Until it is open, and
//! when it closes, the thread uses the shared one.

use std::{
    cell::RefCell,
    sync::{Arc, PoisonError, RwLock, Weak},
    time::{Duration, Instant},
};

use redis::{PushInfo, PushKind};

use super::{
    client::{HotConnection, Redis, RedisInner, drop_connection},
    dial::connect_to_writable,
};

/// Pause after opening one, or failing to: a server that closes each at once must not be asked without end.
const DIAL_INTERVAL: Duration = Duration::from_secs(1);
/// Commands on their way to the connection's task. More requests than that are rarely in progress on one thread.
const QUEUE_LENGTH: usize = 512;

thread_local! {
    static OWN: RefCell<Option<ThreadConnection>> = const { RefCell::new(None) };
}

struct ThreadConnection {
    /// The handle that it belongs to.
    redis: Weak<RedisInner>,
    live: Arc<RwLock<Option<HotConnection>>>,
    not_before: Option<Instant>,
}

impl Redis {
    /// Lets this thread, which must run a runtime, have a connection of its own beside the shared one, from its next
    /// command on.
    pub fn use_thread_connection(&self) {
        let own = ThreadConnection { redis: Arc::downgrade(self.arc()), live: Arc::default(), not_before: None };
        OWN.set(Some(own));
    }

    /// This thread's own connection, if it has one beside the shared one of that generation. Else opens it, for later
    /// commands.
    pub(super) fn thread_connection(&self, generation: u64) -> Option<HotConnection> {
        OWN.with_borrow_mut(|own| {
            let own = own.as_mut().filter(|own| std::ptr::eq(own.redis.as_ptr(), Arc::as_ptr(self.arc())))?;
            let live = own.live.read().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some(live) = live.filter(|live| live.generation == generation) {
                return Some(live);
            }
            let now = Instant::now();
            if own.not_before.is_none_or(|not_before| not_before <= now) {
                own.not_before = Some(now + DIAL_INTERVAL);
                self.open_thread_connection(generation, own.live.clone());
            }
            None
        })
    }

    /// Its task runs on the thread that opens it.
    fn open_thread_connection(&self, generation: u64, live: Arc<RwLock<Option<HotConnection>>>) {
        let slot = Arc::downgrade(&live);
        let config = self.config().set_pipeline_buffer_size(QUEUE_LENGTH).set_push_sender(move |push: PushInfo| {
            if push.kind == PushKind::Disconnection
                && let Some(slot) = slot.upgrade()
            {
                drop_connection(&slot, generation);
            }
            Ok::<(), redis::aio::SendError>(())
        });
        let client = self.inner().address.client();
        tokio::spawn(async move {
            match connect_to_writable(&client, &config, false).await {
                Ok(connection) => {
                    let opened = HotConnection::new(generation, connection);
                    *live.write().unwrap_or_else(PoisonError::into_inner) = Some(opened);
                }
                // The shared one says what is wrong, if it is not only about this one
                Err(error) => tracing::debug!(%error, "a thread keeps using the shared connection to redis"),
            }
        });
    }
}
