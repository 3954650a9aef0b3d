//! The worker: builds reports page by page, and says in a channel which are built.

use std::{process::ExitCode, time::Duration};

use galley_client::Client;
use galley_worker::{Context, HandlerError, Worker};
use rust_service::{Built, CHANNEL, Order, REPORT_BUILD, Report};

async fn build(galley: Client, context: Context, order: Order) -> Result<Report, HandlerError> {
    if order.pages > 100 {
        // Trying again would not help
        return Err(HandlerError::not_retryable("a report has at most 100 pages"));
    }
    let mut pages = Vec::new();
    for page in 1..=order.pages {
        context.progress(f64::from(page) / f64::from(order.pages)).await?;
        pages.push(format!("{}, page {page}", order.title));
    }
    // A job may run twice, and then its message comes twice: readers know it by its id
    let built = Built { id: context.id().to_string(), title: order.title.clone() };
    galley.publish(CHANNEL, &built).await?;
    Ok(Report { title: order.title, pages })
}

fn main() -> ExitCode {
    let galley = match Client::from_env() {
        // A gateway that restarts is back within a minute
        Ok(galley) => galley.patience(Duration::from_mins(1)),
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    Worker::builder()
        .handler(REPORT_BUILD, move |context, (order,): (Order,)| build(galley.clone(), context, order))
        .main()
}
