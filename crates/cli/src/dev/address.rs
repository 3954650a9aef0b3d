//! Where the programs listen: where the settings say, else the usual port, else a free one.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};

use crate::failure::{CliError, CliResult};

/// An address where nothing listens yet. `section` is that of the service's setting `listen`, empty if there is none; `usual`
/// is 0 if any port will do.
pub(super) fn free_address(
    section: &str,
    usual: u16,
    asked: Option<u16>,
    taken: &[SocketAddr],
) -> CliResult<SocketAddr> {
    let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    if let Some(port) = asked {
        let address = local(port);
        return if is_free(address) { Ok(address) } else { Err(in_use(address, "--port PORT")) };
    }
    let variable = format!("GALLEY__{section}__LISTEN");
    let set = std::env::var(&variable).ok().filter(|value| !section.is_empty() && !value.is_empty());
    if let Some(text) = set {
        let parsed = text.parse::<SocketAddr>().ok().filter(|address| address.port() != 0);
        let problem = || CliError::usage(format!("{variable} must be an address with a port, got {text:?}"));
        let address = parsed.ok_or_else(problem)?;
        let way = format!("{variable}=127.0.0.1:PORT");
        return if is_free(address) { Ok(address) } else { Err(in_use(address, &way)) };
    }
    let usual = local(usual);
    if usual.port() != 0 && !taken.contains(&usual) && is_free(usual) {
        return Ok(usual);
    }
    // The port is free until somebody takes it in the moment between: then the program says so and everything stops
    for _ in 0..100 {
        let address = TcpListener::bind(local(0))?.local_addr()?;
        if !taken.contains(&address) {
            return Ok(address);
        }
    }
    Err(CliError::failed("no port is free"))
}

fn is_free(address: SocketAddr) -> bool {
    TcpListener::bind(address).is_ok()
}

fn in_use(address: SocketAddr, way: &str) -> CliError {
    CliError::failed(format!("{address} is in use by another program: stop it, or say {way}"))
}

/// Where this machine reaches it.
pub(super) fn loopback(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => SocketAddr::from((Ipv4Addr::LOCALHOST, address.port())),
        IpAddr::V6(ip) if ip.is_unspecified() => SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, address.port())),
        _ => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_passed_over_unless_it_was_asked_for() {
        let other = TcpListener::bind("127.0.0.1:0").expect("a port");
        let taken = other.local_addr().expect("an address");
        let found = free_address("", taken.port(), None, &[]).expect("another");
        assert_ne!(found, taken);
        let again = free_address("", found.port(), None, &[found]).expect("another");
        assert_ne!(again, found, "two services never get the same");
        let problem = free_address("", 1, Some(taken.port()), &[]).expect_err("it was asked for").to_string();
        assert!(problem.contains(&taken.to_string()) && problem.contains("--port"), "{problem}");
    }
}
