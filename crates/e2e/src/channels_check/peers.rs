//! Which worker a connection comes from: the kernel knows whose socket is at its other end. All workers of a subscription
//! send the same requests, so there is nothing in these that tells it.

use std::{
    collections::HashMap,
    fs,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Where in a line of `/proc/net/tcp` the addresses are, and the socket's number.
const LOCAL: usize = 1;
const REMOTE: usize = 2;
const INODE: usize = 9;

/// The processes that workers were and are, by process id.
#[derive(Default)]
pub(super) struct Peers(Mutex<HashMap<u32, usize>>);

impl Peers {
    /// A worker is that process now.
    pub(super) fn add(&self, process: u32, worker: usize) {
        self.processes().insert(process, worker);
    }

    /// Whose connection it is; none if it is no worker's that is known and there.
    pub(super) fn worker_at(&self, peer: SocketAddr, here: SocketAddr) -> Option<usize> {
        let socket = format!("socket:[{}]", socket_between(peer, here)?);
        let processes = self.processes();
        processes.iter().find(|(process, _)| has_open(**process, &socket)).map(|(_, worker)| *worker)
    }

    fn processes(&self) -> MutexGuard<'_, HashMap<u32, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The number of the socket of whoever is at `peer` and talks to `here`.
fn socket_between(peer: SocketAddr, here: SocketAddr) -> Option<String> {
    let (local, remote) = (in_table(peer)?, in_table(here)?);
    let table = fs::read_to_string("/proc/net/tcp").ok()?;
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_it = fields.get(LOCAL) == Some(&local.as_str()) && fields.get(REMOTE) == Some(&remote.as_str());
        is_it.then(|| fields.get(INODE).map(|inode| (*inode).to_owned()))?
    })
}

/// An address as `/proc/net/tcp` has it.
fn in_table(address: SocketAddr) -> Option<String> {
    let SocketAddr::V4(address) = address else { return None };
    Some(format!("{:08X}:{:04X}", u32::from_ne_bytes(address.ip().octets()), address.port()))
}

fn has_open(process: u32, socket: &str) -> bool {
    let Ok(files) = fs::read_dir(format!("/proc/{process}/fd")) else { return false };
    files.flatten().any(|file| fs::read_link(file.path()).is_ok_and(|target| target.as_os_str() == socket))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_connection_is_its_owners_and_nobodys_when_the_owner_is_not_known() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
        let (peer, here) = (client.local_addr().expect("an address"), listener.local_addr().expect("bound"));
        let peers = Peers::default();
        assert_eq!(peers.worker_at(peer, here), None, "nobody is known");
        // Process 1 is there and has other things open
        peers.add(1, 3);
        peers.add(std::process::id(), 7);
        assert_eq!(peers.worker_at(peer, here), Some(7));
        assert_eq!(peers.worker_at(here, here), None, "no such connection");
    }
}
