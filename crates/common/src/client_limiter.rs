//! How many of something exist at a time: in all, and of one client, which is an address or whatever tells clients apart.

use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Counts what exists, and refuses what is too much.
#[derive(Debug)]
pub struct ClientLimiter<K: Eq + Hash>(Arc<LimiterState<K>>);

#[derive(Debug)]
struct LimiterState<K> {
    max_total: usize,
    max_per_client: usize,
    counts: Mutex<Counts<K>>,
}

#[derive(Debug)]
struct Counts<K> {
    total: usize,
    by_client: HashMap<K, usize>,
}

/// One of what is counted, until it is dropped.
#[derive(Debug)]
pub struct ClientPermit<K: Eq + Hash> {
    limiter: ClientLimiter<K>,
    client: Option<K>,
}

/// Why there may be no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TooMany {
    /// In all.
    Total,
    /// Of this client.
    OfClient,
}

impl<K: Eq + Hash> Clone for ClientLimiter<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Eq + Hash + Clone> ClientLimiter<K> {
    /// Allows that many in all and of one client; none means no limit.
    #[must_use]
    pub fn new(max_total: Option<usize>, max_per_client: Option<usize>) -> Self {
        let (max_total, max_per_client) = (max_total.unwrap_or(usize::MAX), max_per_client.unwrap_or(usize::MAX));
        let counts = Mutex::new(Counts { total: 0, by_client: HashMap::new() });
        Self(Arc::new(LimiterState { max_total, max_per_client, counts }))
    }

    /// Counts one more. Of an unknown client it counts in all only.
    ///
    /// # Errors
    /// There are too many.
    pub fn admit(&self, client: Option<K>) -> Result<ClientPermit<K>, TooMany> {
        let mut counts = self.counts();
        if counts.total >= self.0.max_total {
            return Err(TooMany::Total);
        }
        if let Some(client) = &client {
            let of_client = counts.by_client.get(client).copied().unwrap_or_default();
            if of_client >= self.0.max_per_client {
                return Err(TooMany::OfClient);
            }
            counts.by_client.insert(client.clone(), of_client + 1);
        }
        counts.total += 1;
        Ok(ClientPermit { limiter: self.clone(), client })
    }
}

impl<K: Eq + Hash> ClientLimiter<K> {
    /// How many there are.
    #[must_use]
    pub fn total(&self) -> usize {
        self.counts().total
    }

    fn counts(&self) -> MutexGuard<'_, Counts<K>> {
        self.0.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash> Drop for ClientPermit<K> {
    fn drop(&mut self) {
        let mut counts = self.limiter.counts();
        counts.total -= 1;
        if let Some(client) = &self.client
            && let Some(of_client) = counts.by_client.get_mut(client)
        {
            *of_client -= 1;
            if *of_client == 0 {
                counts.by_client.remove(client);
            }
        }
    }
}

/// What counts as one client: an IPv4 address, or an IPv6 /64, which one client has to itself. Clients behind a proxy have
/// its address.
#[must_use]
pub fn client_address(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        client_address(text.parse().expect("an address"))
    }

    #[test]
    fn one_address_cannot_take_what_is_there_for_all() {
        let limiter = ClientLimiter::new(Some(3), Some(2));
        let first = limiter.admit(Some(ip("10.0.0.1"))).expect("room");
        let second = limiter.admit(Some(ip("::ffff:10.0.0.1"))).expect("room");
        assert_eq!(limiter.admit(Some(ip("10.0.0.1"))).expect_err("the same address"), TooMany::OfClient);
        let other = limiter.admit(Some(ip("10.0.0.2"))).expect("room");
        assert_eq!(limiter.admit(Some(ip("10.0.0.3"))).expect_err("too many"), TooMany::Total);
        assert_eq!(limiter.admit(None).expect_err("too many"), TooMany::Total);
        drop((first, other));
        let again = limiter.admit(Some(ip("10.0.0.1"))).expect("room again");
        drop((second, again));
        assert!(limiter.counts().by_client.is_empty() && limiter.counts().total == 0, "nothing is kept");
    }

    #[test]
    fn a_client_with_a_whole_network_of_addresses_is_one() {
        let limiter = ClientLimiter::new(None, Some(1));
        let first = limiter.admit(Some(ip("2001:db8::1"))).expect("room");
        assert_eq!(limiter.admit(Some(ip("2001:db8::ffff:2"))).expect_err("the same /64"), TooMany::OfClient);
        assert!(limiter.admit(Some(ip("2001:db8:0:1::1"))).is_ok(), "another one");
        drop(first);
    }
}
