//! Other systems for jobs, each in the fastest setting that its documentation shows.

/// One of them.
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    /// Name of the package that has the version.
    package: &'static str,
    pub(super) runtime: PeerRuntime,
    /// Jobs of a round: what takes it a few seconds.
    pub(super) jobs: u32,
    pub(super) progress: PeerProgress,
    /// How many times as many jobs Galley should process.
    pub(crate) goal: &'static str,
    /// Its setting, and what it does less than Galley.
    pub(crate) setting: &'static str,
}

/// How it is started: `enqueue <jobs>` stores jobs, and its worker runs them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PeerRuntime {
    /// A program of `crates/bench/peers`.
    Rust(&'static str),
    /// A script for Node, and a variable that it reads.
    Node(&'static str, &'static str),
    /// A script, and the program and arguments of its worker.
    Python(&'static str, &'static [&'static str]),
}

/// How many jobs are done, as Redis knows it.
#[derive(Debug, Clone, Copy)]
pub(super) enum PeerProgress {
    /// Members of a set.
    Set(&'static str),
    /// Members of a sorted set.
    SortedSet(&'static str),
    /// Keys that there were not before: one for each result.
    NewKeys,
    /// What is gone from a list.
    Drained(&'static str),
}

impl Peer {
    /// The pinned version.
    pub(crate) fn version(&self) -> &'static str {
        let files = [
            include_str!("../../peers/Cargo.toml"),
            include_str!("../../peers/package.json"),
            include_str!("../../peers/requirements.txt"),
        ];
        let line = files.iter().flat_map(|text| text.lines()).find(|line| {
            let line = line.trim();
            let renamed = line.split_once("package = \"").map(|(_, rest)| rest);
            let name = renamed.unwrap_or(line).trim_start_matches('"').strip_prefix(self.package);
            name.is_some_and(|rest| rest.starts_with(['"', '=', ' ']))
        });
        let words = line.map(|line| line.rsplit(['=', '"']));
        words.and_then(|mut words| words.find(|word| word.starts_with(|c: char| c.is_ascii_digit()))).unwrap_or("?")
    }
}

pub(crate) const PEERS: &[Peer] = &[
    Peer {
        name: "bullmq-official (Rust)",
        package: "bullmq-official",
        runtime: PeerRuntime::Rust("bullmq-official"),
        jobs: 60_000,
        progress: PeerProgress::SortedSet("bull:bench:completed"),
        goal: ">= 3.5",
        setting: "1 worker, 100 at a time, bulk enqueues, completed jobs kept",
    },
    Peer {
        name: "apalis-redis (Rust)",
        package: "apalis-redis",
        runtime: PeerRuntime::Rust("apalis-redis"),
        jobs: 7000,
        progress: PeerProgress::Set("bench:done"),
        goal: "",
        setting: "1 worker, batches of 100, parallelize(tokio::spawn), no events, results kept; with more than 8,000 \
                  waiting its claim fails",
    },
    Peer {
        name: "BullMQ (Node)",
        package: "bullmq",
        runtime: PeerRuntime::Node("bullmq.mjs", ""),
        jobs: 50_000,
        progress: PeerProgress::SortedSet("bull:bench:completed"),
        goal: ">= 4",
        setting: "1 worker, 100 at a time, addBulk, completed jobs kept",
    },
    Peer {
        name: "bee-queue (Node)",
        package: "bee-queue",
        runtime: PeerRuntime::Node("bee-queue.mjs", "PEER_KEEP=1"),
        jobs: 60_000,
        progress: PeerProgress::Set("bq:bench:succeeded"),
        goal: ">= 4",
        setting: "1 worker, 100 at a time, saveAll, no events, finished jobs kept; no leases that fence a zombie",
    },
    Peer {
        name: "bee-queue (Node), nothing kept",
        package: "bee-queue",
        runtime: PeerRuntime::Node("bee-queue.mjs", ""),
        jobs: 60_000,
        progress: PeerProgress::Drained("bq:bench:waiting"),
        goal: "",
        setting: "the same with removeOnSuccess, its default: it does less, because no result is stored",
    },
    Peer {
        name: "dramatiq (Python)",
        package: "dramatiq",
        runtime: PeerRuntime::Python(
            "dramatiq_peer",
            &["dramatiq", "--processes", "2", "--threads", "8", "dramatiq_peer"],
        ),
        jobs: 10_000,
        progress: PeerProgress::NewKeys,
        goal: "",
        setting: "2 processes of 8 threads, results stored",
    },
    Peer {
        name: "taskiq (Python)",
        package: "taskiq",
        runtime: PeerRuntime::Python(
            "taskiq_peer",
            &[
                "taskiq",
                "worker",
                "taskiq_peer:broker",
                "--workers",
                "2",
                "--max-async-tasks",
                "100",
                "--max-prefetch",
                "100",
            ],
        ),
        jobs: 8000,
        progress: PeerProgress::NewKeys,
        goal: "",
        setting: "2 processes on uvloop, Redis streams, 100 at a time, results stored",
    },
    Peer {
        name: "Celery (Python)",
        package: "celery",
        runtime: PeerRuntime::Python(
            "celery_peer",
            &[
                "celery",
                "--app",
                "celery_peer",
                "worker",
                "--pool",
                "prefork",
                "--concurrency",
                "2",
                "--without-gossip",
                "--without-mingle",
                "--without-heartbeat",
                "--loglevel",
                "ERROR",
            ],
        ),
        jobs: 4000,
        progress: PeerProgress::NewKeys,
        goal: "",
        setting: "2 forked processes, prefetch 128, no gossip, mingle or heartbeats, results stored; acknowledged early",
    },
    Peer {
        name: "RQ (Python)",
        package: "rq",
        runtime: PeerRuntime::Python(
            "rq_peer",
            &[
                "rq",
                "worker-pool",
                "--num-workers",
                "2",
                "--worker-class",
                "rq.worker.SimpleWorker",
                "--quiet",
                "bench",
            ],
        ),
        jobs: 2000,
        progress: PeerProgress::SortedSet("rq:finished:bench"),
        goal: "",
        setting: "2 SimpleWorkers, which do not fork, enqueue_many, results kept",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_peer_has_a_pinned_version() {
        for peer in PEERS {
            assert!(peer.version().contains('.'), "{}: {}", peer.name, peer.version());
        }
        let version = |name: &str| PEERS.iter().find(|peer| peer.package == name).map(Peer::version);
        assert_eq!(version("bullmq-official"), Some("1.4.4"));
        assert_eq!(version("bullmq"), Some("6.7.0"));
        assert_eq!(version("taskiq"), Some("0.13.0"));
    }
}
