//! The web service: orders a report, shows it, cancels it.

use std::{env, time::Duration};

use actix_web::{App, HttpResponse, HttpServer, ResponseError, delete, get, http::StatusCode, post, web};
use galley_client::{Client, Error, JobState, NewJob};
use rust_service::{Order, QUEUE, REPORT_BUILD, Report};
use serde_json::json;

/// An error of Galley as an answer of this service.
#[derive(Debug)]
struct Failure(Error);

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl ResponseError for Failure {
    fn status_code(&self) -> StatusCode {
        match &self.0 {
            Error::Refused { status, .. } => StatusCode::from_u16(*status).unwrap_or(StatusCode::BAD_GATEWAY),
            _ => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn error_response(&self) -> HttpResponse {
        HttpResponse::build(self.status_code()).json(json!({ "error": self.to_string() }))
    }
}

#[post("/reports")]
async fn order(galley: web::Data<Client>, order: web::Form<Order>) -> Result<HttpResponse, Failure> {
    let job = NewJob::new(REPORT_BUILD, [order.into_inner()])?.queue(QUEUE).timeout(Duration::from_mins(10));
    let job = galley.enqueue(job).await?;
    Ok(HttpResponse::SeeOther().insert_header(("location", format!("/reports/{}", job.id))).finish())
}

/// The report as soon as it is built, for half a minute.
#[get("/reports/{id}")]
async fn show(galley: web::Data<Client>, id: web::Path<String>) -> Result<HttpResponse, Failure> {
    let job = galley.wait(&id, Duration::from_secs(30)).await?;
    Ok(match job.state {
        JobState::Completed => HttpResponse::Ok().json(job.result_as::<Report>()?),
        JobState::Discarded => HttpResponse::UnprocessableEntity().json(json!({ "error": job.error })),
        JobState::Cancelled => HttpResponse::Gone().json(json!({ "error": "the report was cancelled" })),
        _ => HttpResponse::Accepted().json(json!({ "progress": job.others.get("progress") })),
    })
}

#[delete("/reports/{id}")]
async fn cancel(galley: web::Data<Client>, id: web::Path<String>) -> Result<HttpResponse, Failure> {
    galley.cancel(&id).await?;
    Ok(HttpResponse::NoContent().finish())
}

#[actix_web::main]
async fn main() -> std::io::Result<()> {
    // A gateway that restarts is back within a minute
    let galley = Client::from_env().map_err(std::io::Error::other)?.patience(Duration::from_mins(1));
    let galley = web::Data::new(galley);
    let listen = env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let app = move || App::new().app_data(galley.clone()).service(order).service(show).service(cancel);
    let server = HttpServer::new(app).workers(1).bind(listen)?;
    for address in server.addrs() {
        println!("http://{address}/reports");
    }
    server.run().await
}
