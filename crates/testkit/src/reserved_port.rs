//! A port that a test chooses and a program binds later.

use std::{net::TcpListener, ops::Range};

/// Below the ports that the kernel hands out by default. The bus of a Redis Cluster has a port that is 10,000 higher, which
/// is below them too.
const PORTS: Range<u16> = 10_000..20_000;
/// From here on a port leaves none for the bus of a Redis Cluster.
const PORTS_END: u16 = 55_536;
/// Fewer are not enough for all tests that run at once.
const ENOUGH: usize = 2_000;

/// A free port of this machine that no other test chooses as long as this lives, also while nothing listens on it.
#[derive(Debug)]
pub struct ReservedPort {
    number: u16,
    /// On the port above it: only one process can have that, and it is free when the process ends, however it ends.
    _claim: TcpListener,
}

impl ReservedPort {
    /// Chooses one.
    ///
    /// # Panics
    /// None is free.
    #[must_use]
    pub fn choose() -> Self {
        let handed_out = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
        let ports = ports_outside(&handed_out);
        for _ in 0..1_000 {
            let number = ports.start + 2 * rand::random_range(0..(ports.end - ports.start) / 2);
            let Ok(claim) = TcpListener::bind(("127.0.0.1", number + 1)) else { continue };
            if TcpListener::bind(("127.0.0.1", number)).is_ok() {
                return Self { number, _claim: claim };
            }
        }
        panic!("no port of {ports:?} is free");
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.number
    }
}

/// Ports below or above those that the kernel hands out, from the first to the last of the text: no connection and no
/// listener on port 0 takes one of them meanwhile. The usual ones if it does not say, or leaves too few.
fn ports_outside(handed_out: &str) -> Range<u16> {
    let mut bounds = handed_out.split_whitespace().map_while(|word| word.parse::<u16>().ok());
    let (Some(first), Some(last)) = (bounds.next(), bounds.next()) else { return PORTS };
    let below = PORTS.start..first.clamp(PORTS.start, PORTS.end);
    let above = last.saturating_add(1).clamp(PORTS.start, PORTS_END);
    let above = above..PORTS_END.min(above.saturating_add(10_000));
    [below, above].into_iter().find(|ports| ports.len() >= ENOUGH).unwrap_or(PORTS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_the_kernel_hands_out_are_left_alone_where_enough_are_left() {
        for (handed_out, ports) in [
            ("32768\t60999\n", 10_000..20_000),
            ("15000\t61000\n", 10_000..15_000),
            ("1024\t39999\n", 40_000..50_000),
            ("1024\t9000\n", 10_000..20_000),
            ("10000\t50000\n", 50_001..55_536),
            ("1024\t65535\n", 10_000..20_000),
            ("", 10_000..20_000),
        ] {
            assert_eq!(ports_outside(handed_out), ports, "{handed_out}");
        }
    }
}
