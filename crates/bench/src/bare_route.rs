//! An actix route that parses the body of `POST /ojs/v1/jobs` and answers 201, in a process of its own as the gateway is:
//! what HTTP, JSON and this machine allow.

use std::{net::SocketAddr, process::Stdio};

use actix_web::{App, HttpResponse, HttpServer, web};
use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

/// How the program is told to be this server.
const SUBCOMMAND: &str = "bare-route";
const PATH: &str = "/ojs/v1/jobs";

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

/// Serves it until it is killed; with as many threads as the gateway has.
pub(crate) fn serve() -> anyhow::Result<()> {
    actix_web::rt::System::new().block_on(async {
        let server = HttpServer::new(|| App::new().route(PATH, web::post().to(accept))).bind(("127.0.0.1", 0))?;
        println!("listening {}", server.addrs().first().context("an address")?);
        Ok(server.run().await?)
    })
}

async fn accept(job: web::Json<BareJob>) -> HttpResponse {
    let answer = BareAnswer { job_type: &job.job_type, queue: &job.options.queue, args_bytes: job.args.get().len() };
    HttpResponse::Created().json(answer)
}

/// One that runs; it ends with this value.
pub(crate) struct BareRoute {
    pub(crate) address: SocketAddr,
    process: Child,
}

impl BareRoute {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(SUBCOMMAND).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn()?;
        let output = process.stdout.take().context("its output is piped")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).await?;
        let address = line.trim().strip_prefix("listening ").context("the bare route does not listen")?.parse()?;
        Ok(Self { address, process })
    }

    pub(crate) fn process_id(&self) -> anyhow::Result<u32> {
        self.process.id().context("the bare route has ended")
    }
}
