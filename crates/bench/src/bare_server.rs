//! Servers in a process of their own, as the gateway is, that show what actix-web, JSON and this machine allow: a route that
//! parses the body of `POST /ojs/v1/jobs` and answers 201, and event streams that forward what Redis publishes.

use std::{convert::Infallible, net::SocketAddr, process::Stdio};

use actix_web::{App, HttpResponse, HttpServer, error::ErrorInternalServerError, web};
use anyhow::Context;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use testkit::redis::{self, aio::MultiplexedConnection};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    sync::{OnceCell, broadcast},
};

/// How the program is told to be this server.
const SUBCOMMAND: &str = "bare-server";
const PATH: &str = "/ojs/v1/jobs";
/// The same, with the body added to a stream of Redis before the answer.
pub(crate) const STORED_PATH: &str = "/stored-jobs";
/// That stream.
pub(crate) const STORED_STREAM: &str = "bare:jobs";
const STREAM_PATH: &str = "/stream";
/// The Redis that jobs are stored in, and whose messages of a channel go to the event streams; without these there are none.
const REDIS_URL: &str = "BARE_REDIS_URL";
const CHANNEL: &str = "BARE_CHANNEL";
/// Messages that a stream may be behind.
const MAX_BEHIND: usize = 64;

/// What a body has, as the gateway reads it: the arguments stay as they are.
#[derive(Deserialize)]
struct BareJob {
    #[serde(rename = "type")]
    job_type: String,
    args: Box<RawValue>,
    options: BareOptions,
}

#[derive(Deserialize)]
struct BareOptions {
    queue: String,
}

#[derive(Serialize)]
struct BareAnswer<'a> {
    #[serde(rename = "type")]
    job_type: &'a str,
    queue: &'a str,
    args_bytes: usize,
}

/// Serves until it is killed; with as many threads as the gateway has.
pub(crate) fn serve() -> anyhow::Result<()> {
    actix_web::rt::System::new().block_on(async {
        let messages = broadcast::Sender::new(MAX_BEHIND);
        if let (Ok(url), Ok(channel)) = (std::env::var(REDIS_URL), std::env::var(CHANNEL)) {
            actix_web::rt::spawn(forward(url, channel, messages.clone()));
        }
        let server = HttpServer::new(move || {
            let app = App::new().app_data(web::Data::new(messages.clone()));
            let app = app.app_data(web::Data::new(BareConnection::new()));
            let app = app.route(PATH, web::post().to(accept)).route(STORED_PATH, web::post().to(store));
            app.route(STREAM_PATH, web::get().to(stream))
        });
        let server = server.bind(("127.0.0.1", 0))?;
        println!("listening {}", server.addrs().first().context("an address")?);
        Ok(server.run().await?)
    })
}

/// Sends what Redis publishes to every stream, as an event.
async fn forward(url: String, channel: String, messages: broadcast::Sender<web::Bytes>) -> anyhow::Result<()> {
    let mut subscriber = redis::Client::open(url)?.get_async_pubsub().await?;
    subscriber.subscribe(channel).await?;
    let mut published = subscriber.on_message();
    while let Some(message) = published.next().await {
        let event = [b"id: 1-1\ndata: ", message.get_payload_bytes(), b"\n\n"].concat();
        // An error says that nobody listens
        let _ = messages.send(event.into());
    }
    Ok(())
}

async fn stream(messages: web::Data<broadcast::Sender<web::Bytes>>) -> HttpResponse {
    let first = futures_util::stream::once(async { Ok::<_, Infallible>(web::Bytes::from_static(b": hi\n\n")) });
    let rest = futures_util::stream::unfold(messages.subscribe(), async |mut messages| {
        messages.recv().await.ok().map(|event| (Ok(event), messages))
    });
    HttpResponse::Ok().content_type("text/event-stream").streaming(first.chain(rest))
}

async fn accept(job: web::Json<BareJob>) -> HttpResponse {
    let answer = BareAnswer { job_type: &job.job_type, queue: &job.options.queue, args_bytes: job.args.get().len() };
    HttpResponse::Created().json(answer)
}

/// A connection to Redis for each thread, as the gateway has: it is opened by the first request.
type BareConnection = OnceCell<MultiplexedConnection>;

async fn store(job: web::Json<BareJob>, connection: web::Data<BareConnection>) -> actix_web::Result<HttpResponse> {
    let open = async || {
        let url = std::env::var(REDIS_URL).unwrap_or_default();
        redis::Client::open(url)?.get_multiplexed_async_connection().await
    };
    let mut connection = connection.get_or_try_init(open).await.map_err(ErrorInternalServerError)?.clone();
    let mut command = redis::cmd("XADD");
    command.arg(STORED_STREAM).arg("*").arg("type").arg(&job.job_type).arg("args").arg(job.args.get());
    let _: String = command.query_async(&mut connection).await.map_err(ErrorInternalServerError)?;
    Ok(accept(job).await)
}

/// One that runs; it ends with this value.
pub(crate) struct BareServer {
    pub(crate) address: SocketAddr,
    process: Child,
}

impl BareServer {
    /// Starts it, with event streams of the messages of a channel if there is one.
    pub(crate) async fn start(redis_url: &str, channel: Option<&str>) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.env(REDIS_URL, redis_url).envs(channel.map(|channel| (CHANNEL, channel)));
        command.arg(SUBCOMMAND).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn()?;
        let output = process.stdout.take().context("its output is piped")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).await?;
        let address = line.trim().strip_prefix("listening ").context("the bare server does not listen")?.parse()?;
        Ok(Self { address, process })
    }

    pub(crate) fn process_id(&self) -> anyhow::Result<u32> {
        self.process.id().context("the bare server has ended")
    }
}
