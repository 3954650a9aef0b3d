//! The main connection to Redis.
//!
//! All callers share one multiplexed connection, so concurrent commands pipeline; threads that serve requests may have
//! one of their own beside it (`thread_connection`). When it breaks, the next command
//! reconnects; while Redis is unavailable, commands fail at once instead of queueing, and reconnects back off. A
//! missing answer breaks the connection too, because a black hole looks like that.
//!
//! After a failover the old primary still answers. So every answer on every connection is judged (`judge`): when
//! one says that this server takes no writes, all connections to it are dropped, and a new one must be able to write.
//!
//! No lock is held across an await: a caller may be dropped, or not be polled for a long time, and must not block
//! others.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use backon::ExponentialBackoff;
use deadpool_redis::Pool;
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use redis::{
    AsyncConnectionConfig, ErrorKind, PushInfo, PushKind, RedisError, RedisResult, aio::MultiplexedConnection,
};
use tokio::{runtime::Handle, sync::watch};

use self::cluster::Destination;
use super::{
    dial::open_pool,
    error_class::connect_error,
    memory::MemoryState,
    redis_clock::{READING_INTERVAL, RedisClock},
    samples,
    server_address::ServerAddress,
};
use crate::{keys::TopicNames, next_reconnect_delay, sealing::Sealer};
use common::settings::RedisSettings;

pub(super) mod cluster;

/// A handle to Redis. Cheap to clone.
#[derive(Clone)]
pub struct Redis(Arc<RedisInner>, Sealer);

pub(super) struct RedisInner {
    pub(super) destination: Destination,
    pub(super) address: ServerAddress,
    pub(super) settings: RedisSettings,
    /// Connections live on this runtime, whichever thread asks for one: actix's threads come and go.
    pub(super) runtime: Handle,
    pub(super) hot_connection: Arc<RwLock<Option<HotConnection>>>,
    pub(super) connect_state: Mutex<ConnectState>,
    pub(super) pool: RwLock<Pool>,
    /// When a server was last left because it takes no writes: connections from before are not used again.
    pub(super) server_left: watch::Sender<Option<Instant>>,
    memory: MemoryState,
    /// How often it has answered what may have written to it, if it is a node of a cluster.
    pub(super) writes: AtomicU64,
    /// The pub/sub channels of the database.
    pub(super) topics: TopicNames,
    /// Redis's clock, read at each new connection and regularly.
    clock: RedisClock,
}

/// A future that many callers may await. Whichever is polled drives it for all.
pub(super) type SharedResult<T> = Shared<BoxFuture<'static, RedisResult<T>>>;

/// The shared connection, or that of a thread.
#[derive(Clone)]
pub(super) struct HotConnection {
    /// Of the shared connection; of a thread's: of the shared one beside which it was opened.
    pub(super) generation: u64,
    /// No other connection of this process has or had it.
    pub(super) id: u64,
    pub(super) opened_at: Instant,
    pub(super) connection: MultiplexedConnection,
    /// Epochs of messages by their keys, read on this connection.
    epochs: Arc<Mutex<BTreeMap<String, SharedResult<u64>>>>,
}

/// The connection that an answer came on.
#[derive(Debug, Clone, Copy)]
pub(super) enum Origin {
    /// The shared one or that of a thread, with its generation, and when it was opened.
    Shared(u64, Instant),
    /// Another one, and when it was opened.
    Other(Instant),
}

/// The history of connect attempts, and the running one: there is at most one.
pub(super) struct ConnectState {
    pub(super) generation: u64,
    delays: ExponentialBackoff,
    pub(super) last_failure: Option<(RedisError, Instant)>,
    pub(super) connecting: Option<SharedResult<HotConnection>>,
}

impl Redis {
    /// Prepares a client. The first command connects, so Redis may be unavailable.
    ///
    /// # Errors
    /// The URL or a file of certificates cannot be used.
    ///
    /// # Panics
    /// Outside a tokio runtime. The runtime must outlive every clone.
    pub fn new(settings: &RedisSettings) -> anyhow::Result<Self> {
        match settings.url.cluster() {
            Some(urls) => Self::of_cluster(settings, &urls),
            None => Self::open(settings, Handle::current(), Destination::Server),
        }
    }

    /// Prepares a client whose connections live on that runtime.
    pub(super) fn open(settings: &RedisSettings, runtime: Handle, destination: Destination) -> anyhow::Result<Self> {
        let address = RedisInner::read_address(settings, &destination)?;
        let is_cluster = !matches!(destination, Destination::Server);
        let topics = TopicNames::of_database(address.info().redis_settings().db()).on_cluster(is_cluster);
        let server_left = watch::Sender::new(None);
        let pool = open_pool(&address, settings, &server_left)?;
        let delays = RedisInner::connect_delays(&address);
        let dialling = ConnectState { generation: 0, delays, last_failure: None, connecting: None };
        let redis = Self(
            Arc::new(RedisInner {
                destination,
                address,
                settings: settings.clone(),
                runtime,
                hot_connection: Arc::default(),
                connect_state: Mutex::new(dialling),
                pool: RwLock::new(pool),
                memory: MemoryState::default(),
                writes: AtomicU64::new(0),
                server_left,
                topics,
                clock: RedisClock::default(),
            }),
            Sealer::default(),
        );
        redis.0.runtime.spawn(read_clock_regularly(Arc::downgrade(&redis.0)));
        redis.0.runtime.spawn(RedisInner::follow_sentinels(Arc::downgrade(&redis.0)));
        if redis.node_of_cluster().is_none() {
            let shown = Arc::downgrade(&redis.0);
            samples::show(move || Some((shown.upgrade()?.memory.used_and_max(), shown.upgrade()?.pool().status())));
        }
        Ok(redis)
    }

    /// The same client, which seals what it stores and opens what it reads.
    #[must_use]
    pub fn with_sealer(self, sealer: Sealer) -> Self {
        Self(self.0, sealer)
    }

    /// A handle that can store and read nothing that is sealed.
    pub(super) fn without_keys(inner: Arc<RedisInner>) -> Self {
        Self(inner, Sealer::default())
    }

    /// Seals and opens what is stored.
    pub(crate) fn sealer(&self) -> &Sealer {
        &self.1
    }

    /// Redis's clock as this process knows it.
    pub(crate) fn clock(&self) -> &RedisClock {
        &self.0.clock
    }

    /// How full the server is.
    #[must_use]
    pub fn memory(&self) -> &MemoryState {
        &self.0.memory
    }

    /// Opens a connection beside the shared one, once that one has found a server that takes writes; with the time at which
    /// it was known which server it is.
    pub(super) async fn connect_separately(
        &self,
        config: &AsyncConnectionConfig,
    ) -> RedisResult<(MultiplexedConnection, Instant)> {
        self.hot_connection().await?;
        let (client, known_at) = (self.0.address.client(), Instant::now());
        let connection = client.get_multiplexed_async_connection_with_config(config).await.map_err(connect_error)?;
        Ok((connection, known_at))
    }

    /// Opens a connection whatever the server is, to look at it. Its refusal is handed out as it is.
    pub(super) async fn connect_alone(&self) -> RedisResult<MultiplexedConnection> {
        match self.cluster() {
            None => self.connect_alone_to_server().await,
            Some(cluster) => Box::pin(async { cluster.any_node().await?.connect_alone_to_server().await }).await,
        }
    }

    async fn connect_alone_to_server(&self) -> RedisResult<MultiplexedConnection> {
        // While there is a shared connection, that decides which server it is
        if self.current_generation().is_none() {
            self.0.find_primary().await?;
        }
        self.0.address.client().get_multiplexed_async_connection_with_config(&self.config()).await
    }

    /// The configuration of ordinary connections.
    pub(crate) fn config(&self) -> AsyncConnectionConfig {
        self.0.address.config(&self.0.settings, self.0.settings.response_timeout)
    }

    /// The same for commands that block for up to `block`.
    pub(super) fn config_for_answers_within(&self, block: Duration) -> AsyncConnectionConfig {
        self.0.address.config(&self.0.settings, block + self.0.settings.response_timeout)
    }

    /// Maximum wait for an answer.
    #[must_use]
    pub fn response_timeout(&self) -> Duration {
        self.0.settings.response_timeout
    }

    /// The connection that callers share; of a cluster that of a node that can be reached.
    pub(super) async fn hot_connection(&self) -> RedisResult<HotConnection> {
        match self.cluster() {
            None => self.server_connection().await,
            Some(cluster) => Box::pin(async { cluster.any_node().await?.server_connection().await }).await,
        }
    }

    /// The same for the one server that this handle leads to.
    pub(super) async fn server_connection(&self) -> RedisResult<HotConnection> {
        if let Some(generation) = self.current_generation()
            && let Some(live) = self.thread_connection(generation)
        {
            return Ok(live);
        }
        if let Some(live) = self.current_connection() {
            return Ok(live);
        }
        let dial = {
            let mut dialling = self.connect_state();
            if let Some(live) = self.current_connection() {
                return Ok(live);
            }
            if let Some(dial) = &dialling.connecting {
                dial.clone()
            } else {
                if let Some((error, not_before)) = &dialling.last_failure
                    && Instant::now() < *not_before
                {
                    return Err(error.clone());
                }
                let dial = self.connect(dialling.generation + 1);
                dialling.connecting = Some(dial.clone());
                dial
            }
        };
        dial.await
    }

    pub(super) fn inner(&self) -> &RedisInner {
        &self.0
    }

    pub(super) fn arc(&self) -> &Arc<RedisInner> {
        &self.0
    }

    pub(super) fn connect_state(&self) -> MutexGuard<'_, ConnectState> {
        self.0.connect_state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn current_generation(&self) -> Option<u64> {
        let live = self.0.hot_connection.read().unwrap_or_else(PoisonError::into_inner);
        live.as_ref().map(|live| live.generation)
    }

    /// The generation of the shared connection that takes the next command.
    pub(super) fn next_generation(&self) -> u64 {
        let dialling = self.connect_state();
        self.current_generation().unwrap_or(dialling.generation + 1)
    }

    pub(super) fn current_connection(&self) -> Option<HotConnection> {
        self.0.hot_connection.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Connects in a separate task, whether or not anybody waits for it.
    fn connect(&self, generation: u64) -> SharedResult<HotConnection> {
        let shared = self.0.hot_connection.clone();
        // An idle connection that closes is dropped at once, not by the next caller
        let config = self.config().set_push_sender(move |push: PushInfo| {
            if push.kind == PushKind::Disconnection {
                drop_connection(&shared, generation);
            }
            Ok::<(), redis::aio::SendError>(())
        });
        let redis = self.clone();
        let dial = self.0.runtime.spawn(async move {
            let dialled = redis.0.connect_to_primary(&config).await;
            if let Ok((connection, _)) = &dialled {
                // Before the first use, which may need the time. If it fails, so will the first use
                let _ = redis.clock().read(&mut connection.clone()).await;
            }
            redis.finish_connect(generation, dialled)
        });
        let redis = self.clone();
        let broken_off = move |_| {
            redis.connect_state().connecting = None;
            Err(RedisError::from((ErrorKind::Io, "connecting was broken off")))
        };
        dial.map(|live| live.unwrap_or_else(broken_off)).boxed().shared()
    }

    fn finish_connect(
        &self,
        generation: u64,
        result: RedisResult<(MultiplexedConnection, Instant)>,
    ) -> RedisResult<HotConnection> {
        let mut dialling = self.connect_state();
        dialling.connecting = None;
        let mut shared = self.0.hot_connection.write().unwrap_or_else(PoisonError::into_inner);
        let current = result.and_then(|(connection, known_at)| {
            let is_current = !self.left_server_since(known_at);
            let left_meanwhile = || RedisError::from((ErrorKind::Io, "connected to a server that was left meanwhile"));
            is_current.then_some(connection).ok_or_else(left_meanwhile)
        });
        match current {
            Ok(connection) => {
                if dialling.last_failure.take().is_some() || generation > 1 {
                    tracing::info!(event = "redis.reconnected", generation, "connected to redis again");
                    metrics::counter!("galley_redis_reconnects_total").increment(1);
                }
                dialling.generation = generation;
                dialling.delays = RedisInner::connect_delays(&self.0.address);
                let live = HotConnection::new(generation, connection);
                *shared = Some(live.clone());
                Ok(live)
            }
            Err(error) => {
                if dialling.last_failure.is_none() {
                    tracing::warn!(event = "redis.unavailable", %error, "redis cannot be reached");
                }
                let pause = next_reconnect_delay(&mut dialling.delays);
                dialling.last_failure = Some((error.clone(), Instant::now() + pause));
                metrics::counter!("galley_redis_connect_failures_total").increment(1);
                // Another node may have its slots by now
                if let Some((_, Some(cluster))) = self.node_of_cluster() {
                    cluster.demand_refresh();
                }
                Err(error)
            }
        }
    }
}

impl HotConnection {
    pub(super) fn new(generation: u64, connection: MultiplexedConnection) -> Self {
        static OPENED: AtomicU64 = AtomicU64::new(0);
        let id = OPENED.fetch_add(1, Ordering::Relaxed);
        Self { generation, id, opened_at: Instant::now(), connection, epochs: Arc::default() }
    }

    pub(super) fn epochs(&self) -> MutexGuard<'_, BTreeMap<String, SharedResult<u64>>> {
        self.epochs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn origin(&self) -> Origin {
        Origin::Shared(self.generation, self.opened_at)
    }
}

/// Reads Redis's clock regularly, on a connection that others keep open.
async fn read_clock_regularly(redis: Weak<RedisInner>) {
    loop {
        tokio::time::sleep(READING_INTERVAL).await;
        let Some(redis) = redis.upgrade().map(Redis::without_keys) else { return };
        if redis.is_connected()
            && let Err(error) = redis.now().await
        {
            tracing::debug!(%error, "redis's clock not read; read again soon");
        }
    }
}

/// Drops a connection; false if another one is in use already.
pub(super) fn drop_connection(live: &RwLock<Option<HotConnection>>, generation: u64) -> bool {
    let mut live = live.write().unwrap_or_else(PoisonError::into_inner);
    live.take_if(|live| live.generation == generation).is_some()
}
