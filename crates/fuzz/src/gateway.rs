//! Frames of WebSocket clients. The gateway is a program and not a library: its two files are compiled here.

#[path = "../../gateway/src/message_socket/client_frame.rs"]
#[expect(dead_code, reason = "the gateway reads the members")]
mod client_frame_file;
#[path = "../../gateway/src/message_socket/frame_heads.rs"]
mod frame_heads_file;

use client_frame_file::ClientFrame;
use frame_heads_file::FrameHeads;

/// The default of `gateway.json_depth_limit`.
const DEPTH_LIMIT: usize = 64;

pub(crate) fn client_frame(data: &[u8]) {
    if let Ok(frame) = ClientFrame::parse(data, DEPTH_LIMIT) {
        assert!(std::str::from_utf8(data).is_ok(), "{}", frame.action);
    }
}

/// However the bytes are cut, the longest frame is the same.
pub(crate) fn frame_heads(data: &[u8]) {
    let whole = FrameHeads::default().longest_frame(data);
    let size = usize::from(data.first().copied().unwrap_or_default() % 16) + 1;
    let mut heads = FrameHeads::default();
    let parts = data.chunks(size).map(|chunk| heads.longest_frame(chunk)).max().unwrap_or_default();
    assert_eq!(whole, parts, "in parts of {size}");
}
