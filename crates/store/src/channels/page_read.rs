//! Reads a page of a history for the readers that are behind at the same position.

use std::sync::Arc;

use futures_util::FutureExt;
use tokio_util::task::AbortOnDropHandle;

use super::{
    hub::{ChannelHubInner, ChannelState},
    shared_pages::{SharedPage, SharedPageRead},
};
use crate::{log_interruption, next_reconnect_delay, reconnect_delays};
use model::message::{Position, StoredMessage};

/// Maximum number of messages in one page of a reader that is behind.
const CURSOR_PAGE_SIZE: usize = 32;
/// Maximum bytes of such a page; a single message may be larger.
const MAX_CURSOR_PAGE_BYTES: usize = 128 * 1024;

impl ChannelState {
    /// Reads the page behind a position, together with others that read it. A task of its own reads: a reader whose client
    /// accepts nothing is not polled, and would keep a read permit from others.
    pub(super) fn read_page(self: &Arc<Self>, hub: &Arc<ChannelHubInner>, after: Position) -> SharedPageRead {
        self.shared_pages.read(after, || {
            let read = read_page(hub.clone(), self.clone(), after);
            let reading = AbortOnDropHandle::new(hub.runtime.spawn(read));
            async move { reading.await.ok().map(Arc::new) }.boxed().shared()
        })
    }
}

async fn read_page(inner: Arc<ChannelHubInner>, followed: Arc<ChannelState>, after: Position) -> SharedPage {
    let mut delays = reconnect_delays();
    loop {
        let (generation, changes) = {
            let ring = followed.ring();
            (ring.generation, ring.change_count)
        };
        let lease = inner.page_budget.reserve(MAX_CURSOR_PAGE_BYTES).await;
        let page = {
            let _permit = inner.page_permits.acquire().await;
            inner
                .channels
                .read_channel_page_bounded(&followed.name, after, CURSOR_PAGE_SIZE, MAX_CURSOR_PAGE_BYTES)
                .await
        };
        match page {
            Ok(page) => {
                let encode = |message: &StoredMessage| {
                    let json = || message.to_json(&followed.name);
                    Arc::new(followed.shared_events.encode(&followed.name, message.position, &lease, json))
                };
                return SharedPage {
                    gap: page.gap(after),
                    messages: page.messages.iter().map(encode).collect(),
                    read_up_to: page.read_up_to,
                    has_more: page.has_more,
                    generation,
                    change_count: changes,
                };
            }
            Err(error) => {
                drop(lease);
                log_interruption("reading a channel", &error);
                tokio::time::sleep(next_reconnect_delay(&mut delays)).await;
            }
        }
    }
}
