//! Any test on a Redis Cluster of one node: with `GALLEY_TEST_REDIS_KIND=cluster` every server of a test is one, unless the test
//! chooses its options itself. The services of such a test talk to a cluster; the test itself need not know.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use crate::{ReservedPort, TEST_TIMEOUT};

/// The port of the one node for other nodes: it has to have one.
pub(crate) struct OneNodeCluster(ReservedPort);

impl OneNodeCluster {
    /// For a server that is about to start with these options; none if it is to be an ordinary one.
    pub(crate) fn choose(options: &[String]) -> Option<Self> {
        let is_asked_for = std::env::var("GALLEY_TEST_REDIS_KIND").is_ok_and(|kind| kind == "cluster");
        (is_asked_for && options.is_empty()).then(|| Self(ReservedPort::choose()))
    }

    pub(crate) fn options(&self) -> Vec<String> {
        let bus_port = self.0.number().to_string();
        ["--cluster-enabled", "yes", "--cluster-port", &bus_port].map(ToOwned::to_owned).to_vec()
    }

    /// Gives the node all slots, and waits until it serves them.
    pub(crate) fn complete(port: u16) {
        let deadline = Instant::now() + TEST_TIMEOUT;
        while Instant::now() < deadline {
            if ask(port, "CLUSTER ADDSLOTSRANGE 0 16383").is_some()
                && ask(port, "EXISTS x").is_some_and(|said| said == ":0")
            {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("a cluster of one node does not serve its slots");
    }
}

/// The first line of the answer.
fn ask(port: u16, command: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(TEST_TIMEOUT)).ok()?;
    stream.write_all(format!("{command}\r\n").as_bytes()).ok()?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).ok()?;
    Some(line.trim_end().to_owned())
}
