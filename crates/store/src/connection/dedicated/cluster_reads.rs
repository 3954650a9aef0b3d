//! Blocking reads of a cluster. A command has one slot, so a read of several queues is a read for each slot, each on a
//! connection to the node that has it. The first one that has something ends the others.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use redis::{Arg, AsyncConnectionConfig, Cmd, RedisError, RedisResult, Value};
use tokio::{sync::watch, time::sleep};

use super::ServerConnection;
use crate::{
    connection::{
        client::cluster::{Cluster, NodeAddress, Redirect},
        error_class::is_about_slot,
    },
    next_reconnect_delay, reconnect_delays, slots,
};

/// How long a connection for a slot is kept that no read is about.
const IDLE_TIME: Duration = Duration::from_mins(1);
/// How long a node may be out of reach within one read. Then the others have been read for as long.
const PATIENCE: Duration = Duration::from_secs(5);

/// The connections for the blocking reads of one reader.
pub(super) struct ClusterReads {
    cluster: Arc<Cluster>,
    config: AsyncConnectionConfig,
    connections: HashMap<u16, (ServerConnection, Instant)>,
    end: ReadsEnd,
    /// What a part of an earlier read failed with, while others had answers: those had to be handed out first.
    failure: Option<RedisError>,
}

/// Ends the reads of one reader. Cheap to clone.
#[derive(Clone)]
pub(super) struct ReadsEnd(watch::Sender<bool>);

impl ReadsEnd {
    /// The next read is not ended yet.
    pub(super) fn reset(&self) {
        self.0.send_replace(false);
    }

    pub(super) fn end(&self) {
        self.0.send_replace(true);
    }
}

/// What became of the read of one slot.
enum PartEnd {
    Answer(Value),
    /// The read was not sent: nothing can be lost.
    NotReached(RedisError),
    /// Its answer may have had work in it.
    Lost(RedisError),
}

impl ClusterReads {
    pub(super) fn new(cluster: Arc<Cluster>, config: AsyncConnectionConfig) -> Self {
        let end = ReadsEnd(watch::Sender::new(false));
        Self { cluster, config, connections: HashMap::new(), end, failure: None }
    }

    pub(super) fn end(&self) -> ReadsEnd {
        self.end.clone()
    }

    pub(super) async fn read(&mut self, command: &Cmd) -> RedisResult<Value> {
        if let Some(error) = self.failure.take() {
            return Err(error);
        }
        let now = Instant::now();
        self.connections.retain(|_, (_, used_at)| now.duration_since(*used_at) < IDLE_TIME);
        let (stop, stopped) = watch::channel(false);
        let mut parts = FuturesUnordered::new();
        for (slot, command) in split(command) {
            let kept = self.connections.remove(&slot).map(|(connection, _)| connection);
            let reader = PartReader {
                cluster: self.cluster.clone(),
                config: self.config.clone(),
                slot,
                stopped: stopped.clone(),
            };
            parts.push(async move { (slot, reader.read(kept, &command).await) });
        }
        let mut end = self.end.0.subscribe();
        let (mut answers, mut lost, mut not_reached) = (Vec::new(), None, None);
        let mut is_ending = false;
        loop {
            let part = tokio::select! {
                part = parts.next() => part,
                _ = end.wait_for(|is_ended| *is_ended), if !is_ending => {
                    is_ending = true;
                    stop.send_replace(true);
                    continue;
                }
            };
            let Some((slot, (connection, part))) = part else { break };
            self.connections.extend(connection.map(|connection| (slot, (connection, Instant::now()))));
            match part {
                PartEnd::Answer(Value::Nil) => {}
                PartEnd::Answer(answer) => answers.push(answer),
                PartEnd::Lost(error) => lost = Some(error),
                PartEnd::NotReached(error) => {
                    not_reached = Some(error);
                    continue;
                }
            }
            // One that timed out has waited for as long as the others
            stop.send_replace(true);
        }
        match (answers.is_empty(), lost, not_reached) {
            (true, Some(error), _) => Err(error),
            // Reads of other nodes were answered with nothing, unless there is not one
            (true, None, Some(error)) if self.connections.is_empty() => Err(error),
            (_, lost, _) => {
                self.failure = lost;
                Ok(merge(answers))
            }
        }
    }
}

/// Reads one slot.
struct PartReader {
    cluster: Arc<Cluster>,
    config: AsyncConnectionConfig,
    slot: u16,
    stopped: watch::Receiver<bool>,
}

impl PartReader {
    /// Reads until there is an answer, or the read is to end. With the connection for the next read.
    async fn read(mut self, kept: Option<ServerConnection>, command: &Cmd) -> (Option<ServerConnection>, PartEnd) {
        let (mut kept, mut ask, began) = (kept, None::<NodeAddress>, Instant::now());
        let mut delays = reconnect_delays();
        loop {
            let opened = match kept.take() {
                Some(connection) => Ok(connection),
                None => self.open(ask.as_ref()).await,
            };
            let error = match opened {
                Ok(mut connection) => match self.read_on(&mut connection, command, ask.is_some()).await {
                    Ok(answer) => return (ask.is_none().then_some(connection), PartEnd::Answer(answer)),
                    Err(error) if is_about_slot(&error) => {
                        ask = match connection.node().and_then(|node| Redirect::of_error(&error, node)) {
                            Some(Redirect::Ask(address)) => Some(address),
                            _ => None,
                        };
                        error
                    }
                    Err(error) => return (None, PartEnd::Lost(error)),
                },
                Err(error) => {
                    ask = None;
                    error
                }
            };
            if *self.stopped.borrow() || began.elapsed() > PATIENCE {
                return (None, PartEnd::NotReached(error));
            }
            tokio::select! {
                () = sleep(next_reconnect_delay(&mut delays)) => {}
                _ = self.stopped.changed() => {}
            }
        }
    }

    async fn open(&self, ask: Option<&NodeAddress>) -> RedisResult<ServerConnection> {
        let node = match ask {
            Some(address) => self.cluster.node(address)?,
            None => self.cluster.owner(self.slot).await?,
        };
        let opened = ServerConnection::open(&node, &self.config).await;
        if opened.is_err() {
            self.cluster.demand_refresh();
        }
        opened
    }

    async fn read_on(
        &mut self,
        connection: &mut ServerConnection,
        command: &Cmd,
        is_asking: bool,
    ) -> RedisResult<Value> {
        if *self.stopped.borrow() {
            return Ok(Value::Nil);
        }
        let unblock = connection.unblock();
        let mut stopped = self.stopped.clone();
        let read = async {
            if !is_asking {
                return connection.read(command).await;
            }
            let mut both = redis::pipe();
            both.cmd("ASKING").add_command(command.clone());
            Ok(connection.read_all(&both).await?.pop().unwrap_or_default())
        };
        tokio::pin!(read);
        tokio::select! {
            answer = &mut read => return answer,
            _ = stopped.wait_for(|is_stopped| *is_stopped) => {}
        }
        tokio::select! {
            answer = &mut read => answer,
            // If the node cannot be reached, the read ends by its own timeout
            () = unblock => read.await,
        }
    }
}

/// A command for each slot. Only reads of streams may have several.
fn split(command: &Cmd) -> Vec<(u16, Cmd)> {
    let words: Vec<Arg<&[u8]>> = command.args_iter().collect();
    let bytes = |word: &Arg<&[u8]>| match word {
        Arg::Simple(bytes) => bytes.to_vec(),
        _ => Vec::new(),
    };
    let Some(slot) = slots::slot_of_command(command) else { return vec![(0, command.clone())] };
    let Some(first_key) = slots::first_stream(&words) else { return vec![(slot, command.clone())] };
    let (options, streams) = words.split_at(first_key);
    let (keys, ids) = streams.split_at(streams.len() / 2);
    let mut by_slot: Vec<(u16, Vec<usize>)> = Vec::new();
    for (number, key) in keys.iter().enumerate() {
        let slot = slots::slot_of(&bytes(key));
        match by_slot.iter_mut().find(|(known, _)| *known == slot) {
            Some((_, numbers)) => numbers.push(number),
            None => by_slot.push((slot, vec![number])),
        }
    }
    let of_slot = |(slot, numbers): (u16, Vec<usize>)| {
        let mut part = Cmd::new();
        for word in options {
            part.arg(bytes(word));
        }
        for list in [keys, ids] {
            for number in &numbers {
                part.arg(bytes(&list[*number]));
            }
        }
        (slot, part)
    };
    by_slot.into_iter().map(of_slot).collect()
}

/// One answer of several: streams with their entries.
fn merge(mut answers: Vec<Value>) -> Value {
    if answers.len() < 2 {
        return answers.pop().unwrap_or_default();
    }
    let mut streams = Vec::new();
    for answer in answers {
        match answer {
            Value::Map(found) => streams.extend(found),
            other => tracing::warn!(?other, "unexpected answer to a read of streams"),
        }
    }
    Value::Map(streams)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(command: &Cmd) -> Vec<String> {
        let word = |argument: Arg<&[u8]>| match argument {
            Arg::Simple(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            _ => String::from("?"),
        };
        command.args_iter().map(word).collect()
    }

    #[test]
    fn a_read_of_several_queues_is_one_for_each_slot() {
        let mut read = redis::cmd("XREADGROUP");
        read.arg(&["GROUP", "workers", "STREAMS", "COUNT", "1", "BLOCK", "5", "STREAMS"]);
        read.arg(&["{a}0", "{b}0", "{a}1", "1", "2", "3"]);
        let parts = split(&read);
        let options = "XREADGROUP GROUP workers STREAMS COUNT 1 BLOCK 5 STREAMS";
        let texts: Vec<String> = parts.iter().map(|(_, part)| words(part).join(" ")).collect();
        assert_eq!(texts, [format!("{options} {{a}}0 {{a}}1 1 3"), format!("{options} {{b}}0 2")]);
        assert_eq!(
            parts.iter().map(|(slot, _)| *slot).collect::<Vec<_>>(),
            [slots::slot_of(b"a"), slots::slot_of(b"b")]
        );
    }

    #[test]
    fn other_commands_stay_whole() {
        let mut command = redis::cmd("BLMOVE");
        command.arg(&["l", "bridge:{l}", "RIGHT", "LEFT", "5"]);
        let parts = split(&command);
        assert_eq!(parts.len(), 1);
        assert_eq!((parts[0].0, words(&parts[0].1)), (slots::slot_of(b"l"), words(&command)));
    }
}
