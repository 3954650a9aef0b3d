//! Servers in Node, of pinned versions, installed with npm beside what was built.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, ensure};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command as Starting},
    time::timeout,
};

/// Longest wait until one listens.
const START_TIMEOUT: Duration = Duration::from_secs(20);
const LOCK: &str = "package-lock.json";
const FILES: [(&str, &str); 4] = [
    ("package.json", include_str!("../../peers/package.json")),
    (LOCK, include_str!("../../peers/package-lock.json")),
    ("ws.mjs", include_str!("../../peers/ws.mjs")),
    ("socket-io.mjs", include_str!("../../peers/socket-io.mjs")),
];

/// One that runs; it ends with this value.
pub(super) struct NodeServer {
    pub(super) address: SocketAddr,
    process: Child,
}

impl NodeServer {
    pub(super) async fn start(script: &str, redis_url: &str) -> anyhow::Result<Self> {
        let mut command = Starting::new("node");
        command.arg(install_folder()?.join(script)).env("PEER_REDIS_URL", redis_url).env("NODE_ENV", "production");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn().context("node")?;
        let output = process.stdout.take().context("its output is piped")?;
        let mut line = String::new();
        timeout(START_TIMEOUT, BufReader::new(output).read_line(&mut line)).await.context("it does not listen")??;
        let port: u16 = line.trim().strip_prefix("listening ").context("it ended")?.parse()?;
        Ok(Self { address: SocketAddr::from(([127, 0, 0, 1], port)), process })
    }

    pub(super) fn process_id(&self) -> Option<u32> {
        self.process.id()
    }
}

/// Installs what they need, unless it is there; the version of Node.
pub(super) fn install() -> anyhow::Result<String> {
    let node = Command::new("node").arg("--version").output().context("node")?;
    let folder = install_folder()?;
    let is_there = fs::read_to_string(folder.join(LOCK)).is_ok_and(|text| text == FILES[1].1)
        && folder.join("node_modules/ws").exists();
    fs::create_dir_all(&folder)?;
    for (name, text) in FILES {
        fs::write(folder.join(name), text)?;
    }
    if !is_there {
        let mut command = Command::new("npm");
        command.args(["ci", "--silent", "--no-audit", "--no-fund"]).current_dir(&folder);
        ensure!(command.status().context("npm")?.success(), "npm ci failed in {}", folder.display());
    }
    Ok(String::from_utf8_lossy(&node.stdout).trim().to_owned())
}

/// `target/dev/peers`: what the scripts of this repository install is there too.
fn install_folder() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let target = own.ancestors().nth(2).context("this program is in target/<profile>")?;
    Ok(target.join("dev/peers"))
}
