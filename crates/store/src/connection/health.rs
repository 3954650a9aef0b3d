//! Whether a process can do its work now: it has just done it, on a connection that serves nothing else.
//!
//! Listings, slow scripts, a full pool and a long pipeline delay other connections, not this one. All probes of a process
//! share one check, which is one round trip (two where Redis has forgotten the script) and ends within `MAX_CHECK`. Its
//! result counts for `MIN_INTERVAL`, so a thousand probes cost no more than one. It deliberately does not run by itself: where
//! nobody asks, it costs nothing.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use redis::{
    ErrorKind, FromRedisValue, InfoDict, Pipeline, RedisError, RedisResult, Value,
    aio::{ConnectionLike, MultiplexedConnection},
};

use super::{
    budgets::DataKind,
    client::Origin,
    error_class::connect_error,
    server::{ServerError, check_hello, check_info},
};
use crate::{Redis, StoreError, keys, script};
use common::health::PartState;

/// How long a result counts.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// How long a check may take, with the connection to open: less than the two seconds that `healthcheck` waits.
const MAX_CHECK: Duration = Duration::from_millis(1500);

/// What a service does with Redis, and must be able to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceWork {
    /// Stores jobs and messages. While Redis is full it cannot, and the service is worth its requests nevertheless: what it
    /// serves beside that frees memory.
    Enqueue,
    /// Claims jobs or messages and acknowledges them. A full Redis allows that.
    Claim,
}

/// Checks the work of a process. Cheap to clone.
#[derive(Clone)]
pub struct WorkCheck(Arc<WorkCheckInner>);

struct WorkCheckInner {
    redis: Redis,
    work: ServiceWork,
    state: Mutex<CheckState>,
}

#[derive(Default)]
struct CheckState {
    running: Option<Shared<BoxFuture<'static, PartState>>>,
    last: Option<CheckResult>,
    connection: Option<CheckConnection>,
}

struct CheckResult {
    state: PartState,
    ended_at: Instant,
    /// The shared connection at that time. When it breaks, the result is out of date.
    generation: Option<u64>,
}

struct CheckConnection {
    connection: MultiplexedConnection,
    opened_at: Instant,
}

/// How the shared connection is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedConnectionState {
    /// Whether there is one.
    pub is_open: bool,
    /// How many there were, with this one.
    pub opened: u64,
    /// Since when there is this one.
    pub open_for: Option<Duration>,
    /// Why the last attempt to open one failed.
    pub problem: Option<String>,
}

impl Redis {
    /// How the shared connection is, for people.
    #[must_use]
    pub fn shared_connection_state(&self) -> SharedConnectionState {
        if let Some(state) = self.state_of_nodes() {
            return state;
        }
        let live = self.current_connection();
        let connecting = self.connect_state();
        SharedConnectionState {
            is_open: live.is_some(),
            opened: connecting.generation,
            open_for: live.map(|live| live.opened_at.elapsed()),
            problem: connecting.last_failure.as_ref().map(|(error, _)| error.to_string()),
        }
    }
}

impl WorkCheck {
    /// A check of a process that does this work.
    #[must_use]
    pub fn new(redis: &Redis, work: ServiceWork) -> Self {
        Self(Arc::new(WorkCheckInner { redis: redis.clone(), work, state: Mutex::default() }))
    }

    /// Whether the work was done within the last second; if not, it is done now.
    pub async fn run(&self) -> PartState {
        let running = {
            let mut state = self.0.lock();
            if let Some(last) = &state.last
                && last.ended_at.elapsed() < MIN_INTERVAL
                && (last.state != PartState::Working || last.generation == self.0.redis.current_generation())
            {
                return last.state.clone();
            }
            state.running.get_or_insert_with(|| self.start()).clone()
        };
        running.await
    }

    /// Starts a check that goes on whether or not somebody waits for it.
    fn start(&self) -> Shared<BoxFuture<'static, PartState>> {
        let inner = self.0.clone();
        let checking = self.0.redis.inner().runtime.spawn(async move {
            let checked = tokio::time::timeout(MAX_CHECK, inner.check()).await;
            let state = checked.unwrap_or_else(|_| {
                PartState::Failed(format!("redis has not answered within {} ms", MAX_CHECK.as_millis()))
            });
            let generation = inner.redis.current_generation();
            let mut locked = inner.lock();
            locked.running = None;
            locked.last = Some(CheckResult { state: state.clone(), ended_at: Instant::now(), generation });
            state
        });
        let inner = self.0.clone();
        let broken_off = move |_| {
            inner.lock().running = None;
            PartState::Failed("the check was broken off".to_owned())
        };
        checking.map(|state| state.unwrap_or_else(broken_off)).boxed().shared()
    }
}

impl WorkCheckInner {
    fn lock(&self) -> MutexGuard<'_, CheckState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn check(&self) -> PartState {
        let checked = match self.do_work().await {
            Ok(()) if self.work == ServiceWork::Enqueue => {
                self.redis.memory().check_room(DataKind::WaitingJobs).map_err(ServerError::from)
            }
            checked => checked,
        };
        match checked {
            Ok(()) => PartState::Working,
            Err(ServerError::Store(error @ (StoreError::OutOfMemory | StoreError::NoRoom(_)))) => {
                PartState::Degraded(format!("no jobs are accepted: {error}"))
            }
            // The other nodes of a cluster have work
            Err(ServerError::Store(error @ StoreError::Unavailable(_))) if self.redis.is_partly_connected().await => {
                PartState::Degraded(format!("a node of the cluster cannot be reached: {error}"))
            }
            Err(error) => PartState::Failed(error.to_string()),
        }
    }

    async fn do_work(&self) -> Result<(), ServerError> {
        // A process that cannot open it does no work, even if the connection of this check is still good
        self.redis.hot_connection().await.map_err(StoreError::from)?;
        if self.redis.cluster().is_some() {
            return self.do_work_in_cluster().await;
        }
        let kept = self.lock().connection.take();
        let mut opened = match kept.filter(|kept| !self.redis.left_server_since(kept.opened_at)) {
            Some(kept) => kept,
            None => self.open().await.map_err(StoreError::from)?,
        };
        let asked = self.ask(&mut opened.connection).await;
        self.redis.judge(Origin::Other(opened.opened_at), asked.as_deref());
        let answers = asked.map_err(StoreError::from)?;
        let checked = self.check_answers(answers, &mut opened.connection).await;
        // It answered, so the next check uses it again
        self.lock().connection = Some(opened);
        checked
    }

    /// The commands have their nodes, and the server that is asked the rest is one that can be reached.
    async fn do_work_in_cluster(&self) -> Result<(), ServerError> {
        let mut redis = self.redis.clone();
        let answers = self.ask(&mut redis).await.map_err(StoreError::from)?;
        self.check_answers(answers, &mut redis).await
    }

    async fn open(&self) -> RedisResult<CheckConnection> {
        let opened_at = Instant::now();
        let mut connection = self.redis.connect_alone().await.map_err(connect_error)?;
        self.load_script(&mut connection).await?;
        Ok(CheckConnection { connection, opened_at })
    }

    async fn load_script(&self, connection: &mut impl ConnectionLike) -> RedisResult<()> {
        if self.work == ServiceWork::Claim {
            script::CHECK_CLAIM.prepare_invoke().load_async(connection).await?;
        }
        Ok(())
    }

    /// Sends everything at once and hands out an answer for each command.
    async fn ask(&self, connection: &mut impl ConnectionLike) -> RedisResult<Vec<Value>> {
        let pipeline = commands(self.work);
        let answers = connection.req_packed_commands(&pipeline, 0, COMMANDS).await?;
        let is_forgotten = |answer: &Value| matches!(answer, Value::ServerError(error) if error.code() == "NOSCRIPT");
        if !answers.iter().any(is_forgotten) {
            return Ok(answers);
        }
        self.load_script(connection).await?;
        connection.req_packed_commands(&pipeline, 0, COMMANDS).await
    }

    async fn check_answers(
        &self,
        answers: Vec<Value>,
        connection: &mut impl ConnectionLike,
    ) -> Result<(), ServerError> {
        let Ok([worked, _, hello, info, config, sealing_keys]) = <[Value; COMMANDS]>::try_from(answers) else {
            return Err(StoreError::from(RedisError::from((ErrorKind::Parse, "an answer is missing"))).into());
        };
        let is_done = match self.work {
            ServiceWork::Enqueue => parse::<String>(worked).map(|id| !id.is_empty()),
            ServiceWork::Claim => parse::<i64>(worked).map(|claimed| claimed == 1),
        };
        if !is_done? {
            return Err(ServerError::Unsuitable("it lost an entry of a stream".to_owned()));
        }
        let version = check_hello(&parse(hello)?, self.redis.cluster().is_some()).map_err(ServerError::Unsuitable)?;
        // A managed service may forbid both
        let info = parse(info).unwrap_or_else(|_| InfoDict::new(""));
        let config: HashMap<String, String> = parse(config).unwrap_or_default();
        check_info(version, &info, &config).map_err(ServerError::Unsuitable)?;
        self.redis.sealer().check_known(&parse(sealing_keys)?, connection).await
    }
}

/// How many commands a check has.
const COMMANDS: usize = 6;

/// The work first, and the removal of what it leaves; then what `check_server` asks too.
fn commands(work: ServiceWork) -> Pipeline {
    let mut pipeline = redis::pipe();
    match work {
        ServiceWork::Enqueue => pipeline.cmd("XADD").arg(keys::HEALTH_CHECK).arg("*").arg("i").arg("check"),
        ServiceWork::Claim => {
            pipeline.cmd("EVALSHA").arg(script::CHECK_CLAIM.get_hash()).arg(1).arg(keys::HEALTH_CHECK)
        }
    };
    pipeline.cmd("DEL").arg(keys::HEALTH_CHECK);
    pipeline.cmd("HELLO").cmd("INFO").arg("default");
    pipeline.cmd("CONFIG").arg("GET").arg("*append*").cmd("HGETALL").arg(keys::ENCRYPTION_KEYS);
    pipeline
}

fn parse<T: FromRedisValue>(answer: Value) -> Result<T, StoreError> {
    let value = answer.extract_error().map_err(StoreError::from)?;
    T::from_redis_value(value).map_err(|error| StoreError::from(RedisError::from(error)))
}
