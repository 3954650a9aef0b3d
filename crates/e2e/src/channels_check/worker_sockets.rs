//! Which worker a connection comes from: the kernel knows whose socket is at its other end. All workers of a subscription
//! send the same requests, so there is nothing in these that tells it.

use std::{
    collections::HashMap,
    fs,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Where in a line of `/proc/net/tcp` the addresses are, and the socket's number.
const LOCAL_FIELD: usize = 1;
const REMOTE_FIELD: usize = 2;
const INODE_FIELD: usize = 9;
/// The number of a socket that no process has any more.
const NO_INODE: &str = "0";

/// The processes of workers, and whose connections there are.
#[derive(Default)]
pub(super) struct WorkerSockets(Mutex<WorkerSocketTable>);

#[derive(Default)]
struct WorkerSocketTable {
    /// By process id.
    processes: HashMap<u32, usize>,
    /// By the address that they come from: looked up for all at once, as they come all at once when a worker starts.
    connections: HashMap<String, SocketOwner>,
}

/// Whose a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SocketOwner {
    Worker(usize),
    /// Somebody's, perhaps a worker's that the kernel does not show yet.
    Unknown,
    /// A client that had it has closed it, or is gone.
    Closed,
}

impl WorkerSockets {
    /// A worker is that process from now on.
    pub(super) fn set_worker_process(&self, process: u32, worker: usize) {
        let mut known = self.lock_table();
        known.processes.retain(|_, other| *other != worker);
        known.processes.insert(process, worker);
    }

    /// Whose connection it is. Takes a while.
    pub(super) fn owner_of(&self, peer: SocketAddr, here: SocketAddr) -> SocketOwner {
        let mut known = self.lock_table();
        let (Some(address), Some(here)) = (to_proc_format(peer), to_proc_format(here)) else {
            return SocketOwner::Closed;
        };
        if !matches!(known.connections.get(&address), Some(SocketOwner::Worker(_))) {
            known.connections = scan_connections(&known.processes, &here);
        }
        known.connections.get(&address).copied().unwrap_or(SocketOwner::Closed)
    }

    /// The connection is closed: another one may come from there.
    pub(super) fn forget(&self, peer: SocketAddr) {
        if let Some(address) = to_proc_format(peer) {
            self.lock_table().connections.remove(&address);
        }
    }

    fn lock_table(&self) -> MutexGuard<'_, WorkerSocketTable> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The addresses from which processes talk to `here`.
fn scan_connections(processes: &HashMap<u32, usize>, here: &str) -> HashMap<String, SocketOwner> {
    let mut owners: HashMap<String, usize> = HashMap::new();
    for (process, worker) in processes {
        let files = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
        let targets = files.filter_map(|file| fs::read_link(file.path()).ok()?.into_os_string().into_string().ok());
        owners.extend(targets.filter(|target| target.starts_with("socket:")).map(|target| (target, *worker)));
    }
    let table = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let of_line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let inode = *fields.get(INODE_FIELD)?;
        let owner = owners
            .get(&format!("socket:[{inode}]"))
            .map_or(SocketOwner::Unknown, |worker| SocketOwner::Worker(*worker));
        (*fields.get(REMOTE_FIELD)? == here && inode != NO_INODE)
            .then_some((fields.get(LOCAL_FIELD)?.to_string(), owner))
    };
    table.lines().filter_map(of_line).collect()
}

/// An address as `/proc/net/tcp` has it.
fn to_proc_format(address: SocketAddr) -> Option<String> {
    let SocketAddr::V4(address) = address else { return None };
    Some(format!("{:08X}:{:04X}", u32::from_ne_bytes(address.ip().octets()), address.port()))
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
        let peers = WorkerSockets::default();
        assert_eq!(peers.owner_of(peer, here), SocketOwner::Unknown, "nobody is known");
        // Process 1 is there and has other things open
        peers.set_worker_process(1, 3);
        peers.set_worker_process(std::process::id(), 7);
        assert_eq!(peers.owner_of(peer, here), SocketOwner::Worker(7));
        assert_eq!(peers.owner_of(here, here), SocketOwner::Closed, "no such connection");
        drop(client);
        peers.forget(peer);
        assert_eq!(peers.owner_of(peer, here), SocketOwner::Closed, "it is closed");
    }
}
