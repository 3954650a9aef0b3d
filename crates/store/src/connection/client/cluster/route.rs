//! Sends commands to the nodes that have their slots. A node that does not have a slot executes nothing, and says which one
//! does: then the command goes there. Everything else that a node answers, or that becomes of its connection, is what it would
//! be with one server.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use redis::{
    Cmd, Pipeline, RedisError, RedisResult, Value, aio::ConnectionLike, make_extension_error, parse_redis_value,
};
use tokio::time::sleep;

use super::{Cluster, NodeAddress, Redirect};
use crate::{Redis, StoreError, connection::error_class::ErrorClass, slots};

/// How often a command is sent on at once: nodes may not agree for a moment on who has a slot. Then a pause precedes each time.
const MAX_PROMPT_REDIRECTS: u32 = 4;
/// The shortest and the longest pause before a command is sent on that has no node yet, because its keys are at two.
const PAUSES: std::ops::Range<u64> = 5..50;

/// Which connection to a node takes a command.
#[derive(Debug, Clone, Copy)]
pub(in crate::connection) enum ConnectionKind {
    /// The hot one.
    Hot,
    /// One of the pool.
    Pool,
}

impl ConnectionKind {
    async fn send(self, node: &Redis, command: &Cmd) -> RedisResult<Value> {
        match self {
            Self::Hot => node.send_here(command).await,
            Self::Pool => pooled(node).await?.req_packed_command(command).await,
        }
    }

    async fn send_all(
        self,
        node: &Redis,
        (pipeline, offset, count): (&Pipeline, usize, usize),
    ) -> RedisResult<Vec<Value>> {
        match self {
            Self::Hot => node.send_all_here(pipeline, offset, count).await,
            Self::Pool => pooled(node).await?.req_packed_commands(pipeline, offset, count).await,
        }
    }
}

async fn pooled(node: &Redis) -> RedisResult<crate::connection::pool::PooledConnection> {
    node.pooled_connection().await.map_err(|error| match error {
        StoreError::Unavailable(error) | StoreError::Refused(error) => error,
        other => RedisError::from((redis::ErrorKind::Io, "pool", other.to_string())),
    })
}

/// Commands of a pipeline that go to one node together: their numbers.
struct Part {
    node: Redis,
    numbers: Vec<usize>,
}

impl Cluster {
    /// Sends a command to the node of its slot; one without keys to any node that can be reached.
    pub(in crate::connection) async fn send(
        self: &Arc<Self>,
        kind: ConnectionKind,
        command: &Cmd,
    ) -> RedisResult<Value> {
        if let Some(hash) = self.scripts.keep(command) {
            return Ok(hash);
        }
        let Some(slot) = slots::slot_of_command(command) else {
            return self.send_to(kind, &NextNode::Owner(self.any_node().await?), command).await;
        };
        let (mut node, mut detour) = (NextNode::Owner(self.owner(slot).await?), Detour::default());
        loop {
            let answer = self.send_to(kind, &node, command).await;
            let redirect = node.address().and_then(|asked| Redirect::of_answer(&answer, asked));
            let Some(redirect) = redirect else { return answer };
            let Some(next) = self.follow(redirect, slot, &mut detour).await? else { return answer };
            node = next;
        }
    }

    /// Sends a command to one node, which is sent the text of a script too if it does not know it.
    async fn send_to(&self, kind: ConnectionKind, node: &NextNode, command: &Cmd) -> RedisResult<Value> {
        let mut pipeline = Pipeline::with_capacity(3);
        let answer = match node {
            NextNode::Owner(node) => kind.send(node, command).await,
            NextNode::Ask(node) => {
                pipeline.cmd("ASKING").add_command(command.clone());
                kind.send_all(node, (&pipeline, 0, 2)).await.map(last)
            }
        };
        let Some(text) = self.scripts.lacking_at_node(command, &answer) else { return answer };
        let mut pipeline = Pipeline::with_capacity(3);
        pipeline.cmd("SCRIPT").arg("LOAD").arg(&*text);
        let node = match node {
            NextNode::Owner(node) => node,
            NextNode::Ask(node) => {
                // It is about the one command that follows
                pipeline.cmd("ASKING");
                node
            }
        };
        pipeline.add_command(command.clone());
        kind.send_all(node, (&pipeline, 0, pipeline.len())).await.map(last)
    }

    /// Sends a pipeline. Its commands may have several nodes; those of a transaction have one. Of a node that cannot be reached
    /// its commands have errors, and the others have answers.
    pub(in crate::connection) async fn send_all(
        self: &Arc<Self>,
        kind: ConnectionKind,
        (pipeline, offset, count): (&Pipeline, usize, usize),
    ) -> RedisResult<Vec<Value>> {
        if pipeline.is_transaction() {
            return self.send_transaction(kind, pipeline).await;
        }
        let commands: Vec<&Cmd> = pipeline.cmd_iter().collect();
        let mut parts = self.parts(&commands, (0..commands.len()).collect()).await?;
        if let [part] = parts.as_slice() {
            let answers = kind.send_all(&part.node, (pipeline, 0, commands.len())).await?;
            return self.finish(kind, &commands, answers).await.map(|answers| window(answers, offset, count));
        }
        let sent = join_all(parts.iter().map(|part| async {
            let mut own = Pipeline::with_capacity(part.numbers.len());
            for number in &part.numbers {
                own.add_command(commands[*number].clone());
            }
            kind.send_all(&part.node, (&own, 0, part.numbers.len())).await
        }))
        .await;
        let mut answers = vec![Value::Nil; commands.len()];
        for (part, sent) in parts.drain(..).zip(sent) {
            let sent = sent.unwrap_or_else(|error| vec![unreachable_node(&error); part.numbers.len()]);
            for (number, answer) in part.numbers.into_iter().zip(sent) {
                answers[number] = answer;
            }
        }
        self.finish(kind, &commands, answers).await.map(|answers| window(answers, offset, count))
    }

    /// Sends those commands again, one after the other, whose node said that it does not have their slot, or their script.
    async fn finish(
        self: &Arc<Self>,
        kind: ConnectionKind,
        commands: &[&Cmd],
        mut answers: Vec<Value>,
    ) -> RedisResult<Vec<Value>> {
        for (command, answer) in commands.iter().zip(&mut answers) {
            if !matches!(answer, Value::ServerError(_)) {
                continue;
            }
            let asked = slots::slot_of_command(command).and_then(|slot| self.known_owner(slot));
            let Some(asked) = asked else { continue };
            let said = Ok(std::mem::take(answer));
            let redirect = Redirect::of_answer(&said, &asked);
            if let Some(redirect) = &redirect {
                self.note(redirect);
            }
            let is_refused = redirect.is_some() || self.scripts.lacking_at_node(command, &said).is_some();
            *answer = match said {
                Ok(said) if !is_refused => said,
                _ => self.send(kind, command).await.unwrap_or_else(|error| unreachable_node(&error)),
            };
        }
        Ok(answers)
    }

    async fn send_transaction(self: &Arc<Self>, kind: ConnectionKind, pipeline: &Pipeline) -> RedisResult<Vec<Value>> {
        let length = pipeline.len();
        let slot = pipeline.cmd_iter().find_map(slots::slot_of_command);
        let first = match slot {
            Some(slot) => self.owner(slot).await?,
            None => self.any_node().await?,
        };
        let (mut node, mut detour) = (NextNode::Owner(first), Detour::default());
        loop {
            let answers = match &node {
                NextNode::Owner(node) => kind.send_all(node, (pipeline, length + 1, 1)).await,
                NextNode::Ask(node) => {
                    let mut all = Pipeline::with_capacity(length + 3);
                    all.cmd("ASKING").cmd("MULTI");
                    for command in pipeline.cmd_iter() {
                        all.add_command(command.clone());
                    }
                    all.cmd("EXEC");
                    kind.send_all(node, (&all, 0, length + 3)).await.map(result_of_transaction)
                }
            };
            let redirect = node.address().and_then(|asked| match &answers {
                Ok(values) => values.iter().find_map(|value| Redirect::of_answer(&Ok(value.clone()), asked)),
                Err(error) => Redirect::of_error(error, asked),
            });
            let (Some(redirect), Some(slot)) = (redirect, slot) else { return answers };
            let Some(next) = self.follow(redirect, slot, &mut detour).await? else { return answers };
            node = next;
        }
    }

    /// The node to which a command goes next; none if it has been sent on for as long as an answer may take.
    async fn follow(
        self: &Arc<Self>,
        redirect: Redirect,
        slot: u16,
        detour: &mut Detour,
    ) -> RedisResult<Option<NextNode>> {
        self.note(&redirect);
        if detour.began.elapsed() > self.settings.response_timeout {
            return Ok(None);
        }
        detour.redirects += 1;
        let has_no_node = matches!(redirect, Redirect::TryAgain | Redirect::Unserved);
        if has_no_node || detour.redirects > MAX_PROMPT_REDIRECTS {
            sleep(Duration::from_millis(rand::random_range(PAUSES))).await;
        }
        Ok(Some(match redirect {
            Redirect::Moved(_, address) => NextNode::Owner(self.node(&address)?),
            Redirect::Ask(address) => NextNode::Ask(self.node(&address)?),
            Redirect::TryAgain | Redirect::Unserved => NextNode::Owner(self.owner(slot).await?),
        }))
    }

    /// The node that has a slot.
    pub(in crate::connection) async fn owner(self: &Arc<Self>, slot: u16) -> RedisResult<Redis> {
        if let Some(address) = self.known_owner(slot) {
            return self.node(&address);
        }
        self.refreshed().await?;
        let unserved = || make_extension_error("CLUSTERDOWN".to_owned(), Some(format!("no node has the slot {slot}")));
        self.node(&self.known_owner(slot).ok_or_else(unserved)?)
    }

    /// A node that can be reached: every process prefers another one, and always the same.
    pub(in crate::connection) async fn any_node(self: &Arc<Self>) -> RedisResult<Redis> {
        self.reachable_node(self.first_of_any).await
    }

    /// The first primary that can be reached, beginning with the one of that number.
    pub(super) async fn reachable_node(self: &Arc<Self>, first: usize) -> RedisResult<Redis> {
        let mut failure = None;
        for node in self.primaries(first).await? {
            match node.server_connection().await {
                Ok(_) => return Ok(node),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or_else(|| make_extension_error("CLUSTERDOWN".to_owned(), Some("no node".to_owned()))))
    }

    /// All primaries, beginning with the one of that number.
    pub(in crate::connection) async fn primaries(self: &Arc<Self>, first: usize) -> RedisResult<Vec<Redis>> {
        if self.map().primaries().is_empty() {
            self.refreshed().await?;
        }
        let map = self.map();
        let addresses = map.primaries();
        (0..addresses.len()).map(|number| self.node(&addresses[(first + number) % addresses.len()])).collect()
    }

    /// Which commands go to which node.
    async fn parts(self: &Arc<Self>, commands: &[&Cmd], numbers: Vec<usize>) -> RedisResult<Vec<Part>> {
        let mut parts: BTreeMap<NodeAddress, Part> = BTreeMap::new();
        let mut without_keys = Vec::new();
        for number in numbers {
            let Some(slot) = slots::slot_of_command(commands[number]) else {
                without_keys.push(number);
                continue;
            };
            let node = self.owner(slot).await?;
            let Some(address) = node.node_of_cluster().map(|(address, _)| address.clone()) else { continue };
            parts.entry(address).or_insert_with(|| Part { node, numbers: Vec::new() }).numbers.push(number);
        }
        let mut parts: Vec<Part> = parts.into_values().collect();
        if !without_keys.is_empty() {
            match parts.first_mut() {
                // With the rest: then they are in its order, and need no connection of their own
                Some(part) => {
                    part.numbers.extend(without_keys);
                    part.numbers.sort_unstable();
                }
                None => parts.push(Part { node: self.any_node().await?, numbers: without_keys }),
            }
        }
        Ok(parts)
    }
}

/// Where a command goes.
enum NextNode {
    Owner(Redis),
    /// The node to which a slot is being moved. It has to be told that it is meant.
    Ask(Redis),
}

impl NextNode {
    fn address(&self) -> Option<&NodeAddress> {
        let (Self::Owner(node) | Self::Ask(node)) = self;
        node.node_of_cluster().map(|(address, _)| address)
    }
}

/// How a command was sent on so far.
struct Detour {
    began: Instant,
    redirects: u32,
}

impl Default for Detour {
    fn default() -> Self {
        Self { began: Instant::now(), redirects: 0 }
    }
}

fn last(answers: Vec<Value>) -> Value {
    answers.into_iter().next_back().unwrap_or_default()
}

/// The answer to `EXEC`, or what refused the transaction before.
fn result_of_transaction(answers: Vec<Value>) -> Vec<Value> {
    let is_redirect = |answer: &&Value| matches!(answer, Value::ServerError(error) if ["MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN"].contains(&error.code()));
    let refused = answers.iter().find(is_redirect).cloned();
    vec![refused.unwrap_or_else(|| last(answers))]
}

fn window(answers: Vec<Value>, offset: usize, count: usize) -> Vec<Value> {
    answers.into_iter().skip(offset).take(count).collect()
}

/// What a command of a pipeline is answered whose node did not: as one that is lost with its connection, it may have been
/// executed.
fn unreachable_node(error: &RedisError) -> Value {
    if ErrorClass::of(error) == ErrorClass::Refused
        && let Some(code) = error.code()
    {
        let line = format!("-{code} {}\r\n", error.detail().unwrap_or_default().replace(['\r', '\n'], " "));
        return parse_redis_value(line.as_bytes()).unwrap_or_default();
    }
    let line = format!("-CLUSTERDOWN a node did not answer: {}\r\n", error.to_string().replace(['\r', '\n'], " "));
    parse_redis_value(line.as_bytes()).unwrap_or_default()
}
