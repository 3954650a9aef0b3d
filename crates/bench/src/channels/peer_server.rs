//! Servers of other systems: in Node, and nginx with nchan. `deploy/dev/bench-peers.sh` installs them.

use std::{fs, net::SocketAddr, path::Path, process::Stdio, time::Duration};

use anyhow::{Context, ensure};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use crate::peers::{install_folder, missing_reason, node_script};

/// Longest wait until one listens.
const START_TIMEOUT: Duration = Duration::from_secs(20);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// One that runs; it ends with this value.
pub(super) struct NodeServer {
    pub(super) address: SocketAddr,
    process: Child,
}

impl NodeServer {
    pub(super) async fn start(script: &str, redis_url: &str) -> anyhow::Result<Self> {
        let mut command = Command::new("node");
        command.arg(node_script(script)?).env("PEER_REDIS_URL", redis_url).env("NODE_ENV", "production");
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

/// nginx with nchan; it ends with this value.
pub(super) struct NchanServer {
    pub(super) address: SocketAddr,
    process: Child,
    _folder: TempDir,
}

impl NchanServer {
    pub(super) async fn start() -> anyhow::Result<Self> {
        let installed = install_folder()?.join("nchan/usr");
        let program = installed.join("sbin/nginx");
        ensure!(program.exists(), "{}", missing_reason("nchan"));
        let folder = tempfile::tempdir()?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let module = installed.join("lib/nginx/modules/ngx_nchan_module.so");
        let text = include_str!("../../peers/nchan.conf")
            .replace("MODULE", &module.to_string_lossy())
            .replace("FOLDER", &folder.path().to_string_lossy())
            .replace("PORT", &port.to_string());
        // Where the installed module makes its folder
        fs::create_dir_all(folder.path().join("tmp/peer/nginx"))?;
        let configuration = folder.path().join("nginx.conf");
        fs::write(&configuration, text)?;
        let mut command = Command::new(program);
        command.arg("-p").arg(folder.path()).arg("-c").arg(&configuration).args(["-e", "stderr"]);
        let process = command.stdin(Stdio::null()).kill_on_drop(true).spawn()?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let deadline = Instant::now() + START_TIMEOUT;
        while TcpStream::connect(address).await.is_err() {
            ensure!(Instant::now() < deadline, "nginx does not listen");
            sleep(POLL_INTERVAL).await;
        }
        Ok(Self { address, process, _folder: folder })
    }

    pub(super) fn process_id(&self) -> Option<u32> {
        self.process.id()
    }
}

impl Drop for NchanServer {
    /// Its processes end together when the first is told to, and not when it is killed.
    fn drop(&mut self) {
        if let Some(id) = self.process.id().and_then(|id| i32::try_from(id).ok()) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), nix::sys::signal::Signal::SIGTERM);
            // Until it has done so, or killing would come first
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// Whether what a server needs is installed; the reason if it is not.
pub(super) fn check_installed(is_nchan: bool) -> Result<(), String> {
    let file = if is_nchan { "nchan/usr/sbin/nginx" } else { "node/node_modules/.package-lock.json" };
    let is_there = install_folder().is_ok_and(|folder| Path::new(&folder).join(file).exists());
    if is_there { Ok(()) } else { Err(missing_reason(if is_nchan { "nchan" } else { "node" })) }
}
