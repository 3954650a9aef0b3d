//! What an operator wants to know of a server, beside what a service demands of it: for `galley doctor`. It changes nothing.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use redis::aio::ConnectionLike;

use super::{
    access::{self, MissingAccess},
    error_class::connect_error,
    server::{ServerError, ServerInfo},
};
use crate::{Redis, StoreError, keys};

/// How often the way to the server is measured.
const ROUND_TRIPS: usize = 20;

/// What a server says of itself.
#[derive(Debug)]
pub struct ServerDiagnosis {
    /// What a service would say at start.
    pub checked: Result<ServerInfo, ServerError>,
    /// The sections of INFO; empty if the server does not allow the question.
    pub info: HashMap<String, String>,
    /// How long an answer took, the shortest first.
    pub round_trips: Vec<Duration>,
    /// How far its clock is before this machine's, in milliseconds.
    pub clock_ahead_ms: i64,
    /// Commands that the user may not use, and Galley needs.
    pub missing: BTreeSet<String>,
    /// What the user may not ask, which Galley can do without.
    pub missing_questions: BTreeSet<String>,
    /// Whether a process of Galley runs maintenance.
    pub has_leader: bool,
}

impl Redis {
    /// Asks the server what it is.
    ///
    /// # Errors
    /// There is no connection, or it broke: the error says why.
    pub async fn diagnose(&self) -> Result<ServerDiagnosis, ServerError> {
        let mut connection = match self.connect_alone().await {
            Ok(connection) => connection,
            Err(error) => {
                return Err(match self.connect_problem(&error) {
                    Some(problem) => ServerError::Unsuitable(problem),
                    None => StoreError::from(connect_error(error)).into(),
                });
            }
        };
        let connection = &mut connection;
        let MissingAccess { needed, optional } =
            access::missing_access(connection, &[], self.topics()).await.map_err(StoreError::from)?;
        let info: String = redis::cmd("INFO").query_async(connection).await.unwrap_or_default();
        let (round_trips, clock_ahead_ms) = measure(connection).await.map_err(StoreError::from)?;
        let leaders: u64 = redis::cmd("EXISTS").arg(keys::LEADER).query_async(connection).await.unwrap_or_default();
        Ok(ServerDiagnosis {
            checked: self.check_server().await,
            info: info.lines().filter_map(|line| line.trim().split_once(':')).map(owned).collect(),
            round_trips,
            clock_ahead_ms,
            missing: needed,
            missing_questions: optional.into_iter().map(str::to_owned).collect(),
            has_leader: leaders > 0,
        })
    }
}

fn owned((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

/// The way to the server and back, and its clock by the quickest of the answers.
async fn measure(connection: &mut impl ConnectionLike) -> redis::RedisResult<(Vec<Duration>, i64)> {
    let mut answers = Vec::new();
    for _ in 0..ROUND_TRIPS {
        let asked = Instant::now();
        let (seconds, micros): (i64, i64) = redis::cmd("TIME").query_async(connection).await?;
        let took = asked.elapsed();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let here = i64::try_from((now.saturating_sub(took / 2)).as_millis()).unwrap_or(i64::MAX);
        answers.push((took, seconds * 1000 + micros / 1000 - here));
    }
    answers.sort_unstable();
    let ahead = answers.first().map_or(0, |(_, ahead)| *ahead);
    Ok((answers.into_iter().map(|(took, _)| took).collect(), ahead))
}
