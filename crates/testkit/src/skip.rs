//! Tests whose tools are missing on this machine.

/// Says on standard error why a test is skipped. Return from the test after it.
///
/// # Panics
/// In CI (`CI=true`): there a test that did not run must not look like one that passed.
pub fn skip(reason: &str) {
    assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "CI=true, and a test cannot run: {reason}");
    eprintln!("skipped: {reason}");
}

/// Whether this machine has the address `::1`.
#[must_use]
pub fn has_ipv6() -> bool {
    std::net::TcpListener::bind(("::1", 0)).is_ok()
}
