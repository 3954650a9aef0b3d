//! Slots of a cluster that are moved from node to node, in one go or step by step.

use redis::RedisResult;

use crate::{ClusterProcesses, eventually, eventually_or};

/// For keys of a test.
const MIGRATE_TIMEOUT_MS: u64 = 60_000;

impl ClusterProcesses {
    /// Moves a slot with its keys to another primary.
    ///
    /// # Panics
    /// A node refuses it.
    pub async fn move_slot(&self, slot: usize, to: usize) {
        let from = self.begin_move(slot, to).await;
        self.move_keys(slot, from, to).await;
        self.end_move(slot, from, to).await;
    }

    /// Begins to move a slot to a node, and returns the node that owns it until the move ends. That node answers with `ASK` for
    /// keys that it does not have.
    ///
    /// # Panics
    /// A node refuses it.
    pub async fn begin_move(&self, slot: usize, to: usize) -> usize {
        let from = self.primary_of(slot).await;
        self.set_slot(to, slot, "IMPORTING", from).await;
        self.set_slot(from, slot, "MIGRATING", to).await;
        from
    }

    /// Moves the keys of a slot whose move has begun.
    ///
    /// # Panics
    /// A node refuses it.
    pub async fn move_keys(&self, slot: usize, from: usize, to: usize) {
        eventually_or(
            || format!("node {to} takes the keys of slot {slot}"),
            || async {
                let mut read = redis::cmd("CLUSTER");
                let keys: Vec<Vec<u8>> = self.ask(from, read.arg("GETKEYSINSLOT").arg(slot).arg(100)).await;
                if keys.is_empty() {
                    return Some(());
                }
                let mut migrate = redis::cmd("MIGRATE");
                migrate
                    .arg("127.0.0.1")
                    .arg(self.port(to))
                    .arg("")
                    .arg(0)
                    .arg(MIGRATE_TIMEOUT_MS)
                    .arg("KEYS")
                    .arg(keys);
                // It refuses them while it does not know who has the slot: nodes learn from each other who took one
                let _: RedisResult<()> = self.try_ask(from, &migrate).await;
                None
            },
        )
        .await;
    }

    /// Ends the move of a slot, whose keys have been moved, and waits until every running node knows.
    ///
    /// # Panics
    /// A node refuses it.
    pub async fn end_move(&self, slot: usize, from: usize, to: usize) {
        self.set_slot(to, slot, "NODE", to).await;
        self.set_slot(from, slot, "NODE", to).await;
        for node in self.running() {
            eventually("every node knows where the slot is", || async {
                let views = self.views(node).await?;
                let owner = views.iter().find(|view| view.slots.iter().any(|(a, b)| (*a..=*b).contains(&slot)))?;
                (owner.id == self.nodes[to].id).then_some(())
            })
            .await;
        }
    }

    async fn set_slot(&self, node: usize, slot: usize, state: &str, other: usize) {
        let mut command = redis::cmd("CLUSTER");
        self.tell(node, command.arg("SETSLOT").arg(slot).arg(state).arg(&self.nodes[other].id)).await;
    }
}
