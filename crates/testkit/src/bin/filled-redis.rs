//! Fills an empty Redis with ended jobs: `filled-redis URL QUEUES COMPLETED DISCARDED`, each number for one queue.

use testkit::RedisFill;

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [url, queues, completed, discarded] = &words[..] else {
        anyhow::bail!("usage: filled-redis URL QUEUES COMPLETED DISCARDED")
    };
    let fill = RedisFill {
        queues: queues.parse()?,
        completed: completed.parse()?,
        discarded: discarded.parse()?,
        timed_out_every: 20,
    };
    Ok(fill.write(url)?)
}
