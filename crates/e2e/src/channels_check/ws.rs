//! A WebSocket on which channels are read.

use std::net::SocketAddr;

use anyhow::{Context, bail};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite};

use super::stream_event::CheckedStreamEvent;

pub(super) struct WebSocketClient(WebSocketStream<TcpStream>);

impl WebSocketClient {
    /// Opens one and subscribes these channels, each behind what was seen of it last.
    pub(super) async fn open(
        address: SocketAddr,
        channels: &[String],
        last: &[Option<String>],
    ) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        let (mut socket, _) = client_async(format!("ws://{address}/v1/ws"), stream).await?;
        for (channel, last) in channels.iter().zip(last) {
            let mut frame = json!({ "type": "subscribe", "channel": channel });
            if let Some(last) = last {
                frame["after"] = json!(last);
            }
            socket.send(tungstenite::Message::text(frame.to_string())).await?;
        }
        Ok(Self(socket))
    }

    /// What comes next.
    pub(super) async fn next(&mut self, channels: &[String]) -> anyhow::Result<CheckedStreamEvent> {
        let frame = self.0.next().await.context("the connection was closed")??;
        let tungstenite::Message::Text(text) = frame else { return Ok(CheckedStreamEvent::KeepAlive) };
        // Its members come in this order, and messages are many
        if text.starts_with(r#"{"type":"message""#) {
            return Ok(CheckedStreamEvent::Message(serde_json::from_str(&text)?));
        }
        if text.starts_with(r#"{"type":"gap""#) {
            return Ok(CheckedStreamEvent::Gap(serde_json::from_str(&text)?));
        }
        let frame: Value = serde_json::from_str(&text)?;
        let member = |name: &str| frame[name].as_str().with_context(|| format!("{frame} has no {name}"));
        if member("type")? != "subscribed" {
            // It is refused while Redis is away, or the gateway stops
            bail!("{frame}");
        }
        let (of, id) = (member("channel")?, member("after")?.to_owned());
        let channel = channels.iter().position(|channel| channel == of).context("another channel")?;
        Ok(CheckedStreamEvent::Subscribed { channel, id })
    }
}
