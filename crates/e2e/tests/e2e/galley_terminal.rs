//! `galley` on a terminal: the live view, questions, and text that attacks.

use std::{
    fs::File,
    io::{Read, Write},
    process::Stdio,
    sync::{Arc, Mutex},
};

use nix::pty::{Winsize, openpty};
use serde_json::json;
use testkit::{TEST_TIMEOUT, binary_path, eventually};
use tokio::process::{Child, Command};

use crate::galley::GalleyProgram;

/// A program on a terminal of its own.
struct TerminalProgram {
    process: Child,
    keyboard: File,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl TerminalProgram {
    fn start(url: &str, args: &[&str]) -> Self {
        let size = Winsize { ws_row: 30, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).expect("a terminal");
        let end = || Stdio::from(pty.slave.try_clone().expect("a descriptor"));
        let mut command = Command::new(binary_path("galley"));
        command.args(args).env("GALLEY_URL", url).env("TERM", "xterm").env_remove("NO_COLOR");
        let process =
            command.stdin(end()).stdout(end()).stderr(end()).kill_on_drop(true).spawn().expect("galley starts");
        let keyboard = File::from(pty.master);
        let mut screen = keyboard.try_clone().expect("a descriptor");
        let seen: Arc<Mutex<Vec<u8>>> = Arc::default();
        let kept = seen.clone();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // An error when the last program closed it
            while let Ok(read @ 1..) = screen.read(&mut bytes) {
                kept.lock().expect("no panic").extend_from_slice(&bytes[..read]);
            }
        });
        Self { process, keyboard, seen }
    }

    fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("a keyboard");
    }

    fn seen(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().expect("no panic")).into_owned()
    }

    async fn wait_for(&self, text: &str) {
        eventually(&format!("{text:?} is on the screen"), || async { self.seen().contains(text).then_some(()) }).await;
    }

    async fn exit_code(&mut self) -> Option<i32> {
        let ended = tokio::time::timeout(TEST_TIMEOUT, self.process.wait()).await;
        ended.unwrap_or_else(|_| panic!("it does not end: {}", self.seen())).expect("a process of ours").code()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_live_view_shows_queues_follows_keys_and_gives_the_terminal_back() {
    let galley = GalleyProgram::start().await;
    let _worker = galley.kit.start_worker(&[]).await;
    galley.kit.enqueue(&json!({ "type": "a", "args": [], "queue": "mail" })).await;
    let mut top = TerminalProgram::start(&galley.kit.gateway.url(""), &["top", "--interval", "0.2"]);
    top.wait_for("mail").await;
    top.wait_for("workers").await;
    galley.kit.enqueue(&json!({ "type": "a", "args": [], "queue": "video" })).await;
    top.wait_for("video").await;
    top.press("p");
    top.wait_for("paused").await;
    top.press("s");
    top.press("q");
    assert_eq!(top.exit_code().await, Some(0));
    eventually("the screen is given back", || async { top.seen().contains("\u{1b}[?1049l").then_some(()) }).await;
    let piped = galley.run(&["top"]).await;
    assert!(piped.code == 2 && piped.err.contains("terminal"), "{}", piped.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_names_the_thing_and_anything_but_yes_does_nothing() {
    let galley = GalleyProgram::start().await;
    galley.kit.enqueue(&json!({ "type": "a", "args": [], "queue": "mail" })).await;
    let url = galley.kit.gateway.url("");
    let mut refused = TerminalProgram::start(&url, &["queues", "purge", "mail"]);
    refused.wait_for("\"mail\"? 1 wait now").await;
    refused.press("\n");
    assert_eq!(refused.exit_code().await, Some(1));
    assert_eq!(galley.json(&["queues", "show", "mail"]).await["queue"]["available"], 1);
    let mut agreed = TerminalProgram::start(&url, &["queues", "purge", "mail"]);
    agreed.wait_for("[y/N]").await;
    agreed.press("y\n");
    assert_eq!(agreed.exit_code().await, Some(0));
    assert_eq!(galley.json(&["queues", "show", "mail"]).await["queue"]["available"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_terminal_even_json_has_no_hidden_character_and_tables_fit() {
    let galley = GalleyProgram::start().await;
    let hostile = "\u{9b}31m\u{202e}\u{1b}]0;owned\u{7}";
    let id = galley.kit.enqueue(&json!({ "type": "a", "args": [hostile, "x".repeat(500)], "queue": "mail" })).await;
    let url = galley.kit.gateway.url("");
    let mut shown = TerminalProgram::start(&url, &["jobs", "get", &id, "--json"]);
    assert_eq!(shown.exit_code().await, Some(0));
    shown.wait_for("\\u009b31m").await;
    let text = shown.seen();
    assert!(!text.contains(['\u{9b}', '\u{202e}', '\u{1b}']), "{text:?}");
    let mut table = TerminalProgram::start(&url, &["queues", "list"]);
    assert_eq!(table.exit_code().await, Some(0));
    // Colours on a terminal
    table.wait_for("\u{1b}[32mrunning\u{1b}[0m").await;
    let text = table.seen();
    let plain = text.replace("\u{1b}[32m", "").replace("\u{1b}[2m", "").replace("\u{1b}[0m", "");
    assert!(plain.lines().all(|line| line.trim_end().chars().count() <= 100), "{plain:?}");
}
