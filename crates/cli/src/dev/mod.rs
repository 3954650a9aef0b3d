//! `galley dev`: a Redis, a gateway and both workers in one process tree. One Ctrl-C stops all of them in order, a second one
//! kills what is left. If one of them ends, the others are stopped too, and it says which one and why.

mod address;
mod programs;
mod tree;

use std::{
    fs::{self, File, TryLockError},
    io::Write,
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use clap::Args;
use serde_json::json;
use tempfile::TempDir;
use tokio::{net::TcpStream, process::Command};

use self::{
    address::{free_address, loopback},
    programs::{RedisProgram, find_service},
    tree::{ProcessTree, TreeEnd},
};
use crate::{
    failure::{CliError, CliResult},
    gateway_client::{GatewayCall, GatewayClient},
    terminal::Terminal,
};

/// How long a program may take until it is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
const PROBE_PAUSE: Duration = Duration::from_millis(50);
const SCOPES: &str =
    "jobs:write,jobs:read,work,channels:publish,channels:subscribe,subscriptions,admin:read,admin:write";
const SERVICES: [(&str, &str, u16); 3] =
    [("gateway", "GATEWAY", 8080), ("queue-worker", "QUEUE_WORKER", 8081), ("pubsub-worker", "PUBSUB_WORKER", 8082)];

#[derive(Debug, Args)]
pub(crate) struct DevArgs {
    /// Keep data and key in this folder. Else they are gone when it ends.
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// The port of the gateway. Else 8080, or a free one if that is taken.
    #[arg(long)]
    port: Option<u16>,
    /// Use this Redis instead of a private one; so does GALLEY__REDIS__URL.
    #[arg(long, value_name = "URL")]
    redis_url: Option<String>,
    /// The server of the private Redis. Else redis-server or valkey-server on PATH.
    #[arg(long, value_name = "PROGRAM", conflicts_with = "redis_url")]
    redis_server: Option<PathBuf>,
    /// Leave out the handlers of the types test.* and demo.dish.
    #[arg(long)]
    no_demo: bool,
}

/// What runs, for the banner.
struct RunningDev {
    gateway: SocketAddr,
    key: Option<String>,
    redis: String,
    data: String,
}

/// The folder of the data: the user's, or one that is gone with the process.
enum DataFolder {
    Kept(PathBuf),
    Passing(TempDir),
}

impl DataFolder {
    fn path(&self) -> &Path {
        match self {
            Self::Kept(path) => path,
            Self::Passing(folder) => folder.path(),
        }
    }
}

impl DevArgs {
    pub(crate) async fn run(self, terminal: Terminal) -> CliResult {
        let data = self.data_folder()?;
        // First what can be refused without having started anything
        let mut addresses = Vec::new();
        for (name, section, port) in SERVICES {
            let asked = self.port.filter(|_| name == "gateway");
            addresses.push(free_address(section, port, asked, &addresses)?);
        }
        let services = SERVICES.iter().map(|(name, ..)| find_service(name)).collect::<CliResult<Vec<_>>>()?;
        let given_redis = self.redis_url.clone().or_else(|| std::env::var("GALLEY__REDIS__URL").ok());
        let given_redis = given_redis.filter(|url| !url.is_empty());
        let server = match &given_redis {
            Some(_) => None,
            None => Some(RedisProgram::find(self.redis_server.as_deref())?),
        };
        let (mut tree, mut ends) = ProcessTree::new(terminal)?;
        let starting = async {
            let redis = match (&given_redis, server) {
                (None, Some(server)) => start_redis(&mut tree, &server, data.path()).await?,
                (url, _) => url.clone().unwrap_or_default(),
            };
            let key = make_key(&services[0], data.path()).await?;
            for ((name, section, _), (program, address)) in SERVICES.iter().zip(services.iter().zip(&addresses)) {
                self.start_service(&mut tree, (name, section), program, (*address, &redis), key.as_ref()).await?;
            }
            let running = RunningDev {
                gateway: loopback(addresses[0]),
                key: key.map(|(key, _)| key),
                redis,
                data: data.path().display().to_string(),
            };
            self.print(terminal, &running)
        };
        let started = tokio::select! {
            started = starting => started.map(|()| None),
            end = ends.next() => Ok(Some(end)),
        };
        let end = match started {
            Ok(Some(end)) => Ok(end),
            Ok(None) => Ok(ends.next().await),
            Err(problem) => Err(problem),
        };
        let dead = match &end {
            Ok(TreeEnd::Exited { name, .. }) => Some(*name),
            _ => None,
        };
        tree.stop(&mut ends, dead).await;
        match end? {
            TreeEnd::Asked => {
                terminal.note("stopped");
                Ok(())
            }
            TreeEnd::Exited { name, how } => Err(CliError::failed(format!(
                "{name} ended ({how}), so everything is stopped: see its last lines above"
            ))),
        }
    }

    fn data_folder(&self) -> CliResult<DataFolder> {
        let Some(path) = &self.data else { return Ok(DataFolder::Passing(tempfile::tempdir()?)) };
        let made = fs::create_dir_all(path).and_then(|()| path.canonicalize());
        let path = made.map_err(|error| CliError::usage(format!("--data {}: {error}", path.display())))?;
        Ok(DataFolder::Kept(path))
    }

    async fn start_service(
        &self,
        tree: &mut ProcessTree,
        (name, section): (&'static str, &str),
        program: &Path,
        (address, redis): (SocketAddr, &str),
        key: Option<&(String, PathBuf)>,
    ) -> CliResult {
        let mut command = Command::new(program);
        command.env("GALLEY__REDIS__URL", redis).env(format!("GALLEY__{section}__LISTEN"), address.to_string());
        if let Some((_, file)) = key {
            command.env("GALLEY__AUTH__KEYS_FILE", file);
        }
        let defaults =
            [("LOG__FORMAT", "pretty"), ("QUEUE_WORKER__DEMO_HANDLERS", if self.no_demo { "false" } else { "true" })];
        for (setting, value) in defaults {
            let variable = format!("GALLEY__{setting}");
            if std::env::var_os(&variable).is_none() {
                command.env(variable, value);
            }
        }
        tree.start(name, command.stdin(Stdio::null()))?;
        let client = GatewayClient::new(&format!("http://{}", loopback(address)), None, None)?;
        ready(name, async || client.send(GatewayCall::get("/health/ready")).await.is_ok()).await
    }

    fn print(&self, terminal: Terminal, running: &RunningDev) -> CliResult {
        let RunningDev { gateway, key, redis, data } = running;
        if terminal.json {
            let line = json!({ "url": format!("http://{gateway}"), "key": key, "redis": redis, "data": data });
            return terminal.line(&line.to_string());
        }
        let shown_key = key.as_deref().unwrap_or("as your settings say");
        let kept = if self.data.is_some() { data.as_str() } else { "gone when this ends; --data FOLDER keeps it" };
        let export = key.as_ref().map(|key| format!(" GALLEY_KEY={key}")).unwrap_or_default();
        terminal.line(&format!(
            "
Galley runs:
  page      http://{gateway}/
  jobs      http://{gateway}/ojs/v1/jobs
  health    http://{gateway}/health/ready
  metrics   http://{gateway}/metrics
  redis     {redis}
  data      {kept}
  key       {shown_key}

Try it in another terminal: enqueue a job and see how it ends, publish a message, watch.

  export GALLEY_URL=http://{gateway}{export}
  galley jobs enqueue test.echo '[\"hello\"]' --wait
  galley publish hello 'dinner is ready'
  galley top

Ctrl-C stops everything; a second Ctrl-C kills what has not stopped.
"
        ))
    }
}

/// Waits until a program is ready. Whether it has ended is watched elsewhere.
async fn ready(name: &str, is_ready: impl AsyncFn() -> bool) -> CliResult {
    let waiting = async {
        while !is_ready().await {
            tokio::time::sleep(PROBE_PAUSE).await;
        }
    };
    let waited = tokio::time::timeout(READY_TIMEOUT, waiting).await;
    waited.map_err(|_| CliError::failed(format!("{name} does not get ready: see its lines above")))
}

/// Starts a private Redis in a folder and gives its URL.
async fn start_redis(tree: &mut ProcessTree, server: &RedisProgram, data: &Path) -> CliResult<String> {
    let folder = data.join("redis");
    fs::create_dir_all(&folder)?;
    // Two servers must never write to one append-only file. The server has the lock as its input, so it keeps it if this
    // process is killed
    let lock = File::create(folder.join("lock"))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let data = data.display();
            return Err(CliError::failed(format!(
                "another galley dev or make run uses {data}: stop it, or name another folder with --data"
            )));
        }
        Err(TryLockError::Error(error)) => return Err(error.into()),
    }
    let address = free_address("", 0, None, &[])?;
    let mut command = Command::new(&server.path);
    command.args(["--port", &address.port().to_string(), "--bind", "127.0.0.1", "--appendonly", "yes", "--save", ""]);
    command.args(["--loglevel", "warning", "--dir"]).arg(&folder).stdin(lock);
    tree.start("redis", &mut command)?;
    ready("redis", async || answers_ping(address).await).await?;
    Ok(format!("redis://{address}/5"))
}

/// Whether a server answers a PING: while it reads its data it answers otherwise.
async fn answers_ping(address: SocketAddr) -> bool {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut answer = [0; 5];
    let asked = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"PING\r\n").await?;
        stream.read_exact(&mut answer).await
    };
    matches!(tokio::time::timeout(Duration::from_secs(1), asked).await, Ok(Ok(_))) && &answer == b"+PONG"
}

/// A key that may do everything, with the file that makes the gateway know it; none if the settings say who may use it.
async fn make_key(gateway: &Path, data: &Path) -> CliResult<Option<(String, PathBuf)>> {
    let is_set = |name: &&str| std::env::var_os(format!("GALLEY__AUTH__{name}")).is_some_and(|value| !value.is_empty());
    if ["MODE", "KEYS_FILE", "FIRST_KEY"].iter().any(is_set) {
        return Ok(None);
    }
    let (file, text) = (data.join("keys.toml"), data.join("key"));
    if let (Ok(key), true) = (fs::read_to_string(&text), file.exists())
        && !key.trim().is_empty()
    {
        return Ok(Some((key.trim().to_owned(), file)));
    }
    let _ = fs::remove_file(&file);
    let mut command = Command::new(gateway);
    command.args(["keys", "create", "--name", "galley dev", "--scopes", SCOPES, "--file"]).arg(&file);
    let output = command.stdin(Stdio::null()).output().await?;
    if !output.status.success() {
        let problem = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(CliError::failed(format!("no key could be made: {problem}")));
    }
    let key = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let mut kept = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&text)?;
    kept.write_all(key.as_bytes())?;
    Ok(Some((key, file)))
}
