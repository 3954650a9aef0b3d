//! Which addresses may be connected to. Pure.
//!
//! By default only addresses routed on the public Internet. `allow_private` adds private networks, but never addresses
//! that give credentials to local clients (metadata services, anything link-local), and never those that are not one
//! machine's address. IPv6 addresses outside the tables are refused unless they are in `2000::/3`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An address that must not be connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{address} is refused: {what}{}", if *.is_private { "; allow_private allows it" } else { "" })]
pub struct RefusedAddress {
    /// The address.
    pub address: IpAddr,
    /// What the address is for.
    pub what: &'static str,
    is_private: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AddressScope {
    Public,
    /// Only with `allow_private`.
    Private(&'static str),
    Forbidden(&'static str),
}
use AddressScope::{Forbidden, Private, Public};

/// Checks whether an address may be connected to.
///
/// # Errors
/// It may not, and why.
pub fn check(address: IpAddr, allow_private: bool) -> Result<(), RefusedAddress> {
    let reach = match address {
        IpAddr::V4(v4) => scope_of_v4(v4),
        IpAddr::V6(v6) => scope_of_v6(v6),
    };
    match reach {
        Public => Ok(()),
        Private(_) if allow_private => Ok(()),
        Private(what) => Err(RefusedAddress { address, what, is_private: true }),
        Forbidden(what) => Err(RefusedAddress { address, what, is_private: false }),
    }
}

const fn v4(a: u8, b: u8, c: u8, d: u8) -> Ipv4Addr {
    Ipv4Addr::new(a, b, c, d)
}

const METADATA: &str = "a metadata service";

/// Network, prefix length, scope. The first match counts.
const IPV4_RANGES: [(Ipv4Addr, u32, AddressScope); 20] = [
    (v4(100, 100, 100, 200), 32, Forbidden(METADATA)),
    (v4(168, 63, 129, 16), 32, Forbidden(METADATA)),
    (v4(0, 0, 0, 0), 8, Forbidden("no address of a machine")),
    (v4(10, 0, 0, 0), 8, Private("a private network")),
    (v4(100, 64, 0, 0), 10, Private("a provider's network")),
    (v4(127, 0, 0, 0), 8, Private("this machine")),
    (v4(169, 254, 0, 0), 16, Forbidden("link-local, where metadata services are")),
    (v4(172, 16, 0, 0), 12, Private("a private network")),
    (v4(192, 0, 0, 0), 24, Forbidden("reserved for protocols")),
    (v4(192, 0, 2, 0), 24, Forbidden("for documentation")),
    (v4(192, 31, 196, 0), 24, Forbidden("a sink for stray queries")),
    (v4(192, 52, 193, 0), 24, Forbidden("reserved for protocols")),
    (v4(192, 88, 99, 0), 24, Forbidden("a relay to 6to4")),
    (v4(192, 168, 0, 0), 16, Private("a private network")),
    (v4(192, 175, 48, 0), 24, Forbidden("a sink for stray queries")),
    (v4(198, 18, 0, 0), 15, Forbidden("for benchmarks")),
    (v4(198, 51, 100, 0), 24, Forbidden("for documentation")),
    (v4(203, 0, 113, 0), 24, Forbidden("for documentation")),
    (v4(224, 0, 0, 0), 4, Forbidden("multicast")),
    (v4(240, 0, 0, 0), 4, Forbidden("reserved, or broadcast")),
];

const fn v6([a, b, c, d]: [u16; 4], last: u16) -> Ipv6Addr {
    Ipv6Addr::new(a, b, c, d, 0, 0, 0, last)
}

/// The same for IPv6. Networks that embed an IPv4 address come before this table.
const IPV6_RANGES: [(Ipv6Addr, u32, AddressScope); 16] = [
    (v6([0, 0, 0, 0], 0), 128, Forbidden("no address of a machine")),
    (v6([0, 0, 0, 0], 1), 128, Private("this machine")),
    (v6([0x64, 0xff9b, 1, 0], 0), 48, Forbidden("a local translation to IPv4")),
    (v6([0x2001, 0, 0, 0], 0), 23, Forbidden("reserved for protocols and tunnels")),
    (v6([0x2001, 0xdb8, 0, 0], 0), 32, Forbidden("for documentation")),
    (v6([0x2002, 0, 0, 0], 0), 16, Forbidden("a tunnel to IPv4")),
    (v6([0x2620, 0x4f, 0x8000, 0], 0), 48, Forbidden("a sink for stray queries")),
    (v6([0x3fff, 0, 0, 0], 0), 20, Forbidden("for documentation")),
    (v6([0xfd00, 0xec2, 0, 0], 0), 32, Forbidden(METADATA)),
    (v6([0xfd20, 0xce, 0, 0], 0), 32, Forbidden(METADATA)),
    (v6([0xfd00, 0x42, 0, 0], 0x42), 128, Forbidden(METADATA)),
    (v6([0xfc00, 0, 0, 0], 0), 7, Private("a private network")),
    (v6([0xfe80, 0, 0, 0], 0), 10, Forbidden("link-local, where metadata services are")),
    (v6([0xfec0, 0, 0, 0], 0), 10, Forbidden("site-local, which is no longer used")),
    (v6([0xff00, 0, 0, 0], 0), 8, Forbidden("multicast")),
    (v6([0x2000, 0, 0, 0], 0), 3, Public),
];

fn scope_of_v4(address: Ipv4Addr) -> AddressScope {
    let fits = |(network, length, _): &&(Ipv4Addr, u32, AddressScope)| {
        (address.to_bits() ^ network.to_bits()).checked_shr(32 - length).unwrap_or(0) == 0
    };
    IPV4_RANGES.iter().find(fits).map_or(Public, |(_, _, reach)| *reach)
}

fn scope_of_v6(address: Ipv6Addr) -> AddressScope {
    // Mapped (::ffff:0:0/96) and translated (64:ff9b::/96) addresses reach the IPv4 address in them
    let is_translated = address.to_bits() >> 32 == v6([0x64, 0xff9b, 0, 0], 0).to_bits() >> 32;
    if let Some(inner) = address.to_ipv4_mapped().or_else(|| is_translated.then(|| last_32_bits(address))) {
        return scope_of_v4(inner);
    }
    let fits = |(network, length, _): &&(Ipv6Addr, u32, AddressScope)| {
        (address.to_bits() ^ network.to_bits()).checked_shr(128 - length).unwrap_or(0) == 0
    };
    // The rest of ::/96 are IPv4-compatible addresses, which no machine has
    IPV6_RANGES.iter().find(fits).map_or(Forbidden("not in use"), |(_, _, reach)| *reach)
}

fn last_32_bits(address: Ipv6Addr) -> Ipv4Addr {
    let [.., a, b, c, d] = address.octets();
    Ipv4Addr::new(a, b, c, d)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn reach(text: &str) -> (bool, bool) {
        let address: IpAddr = text.parse().expect(text);
        (check(address, false).is_ok(), check(address, true).is_ok())
    }

    #[test]
    fn the_public_internet_is_allowed() {
        for text in [
            "1.1.1.1",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "168.63.129.15",
            "2606:4700::1111",
            "2001:4860:4860::8888",
            "2003::1",
            "2a00::1",
            "3ffe::1",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
        ] {
            assert_eq!(reach(text), (true, true), "{text}");
        }
    }

    #[test]
    fn private_networks_and_this_machine_need_leave() {
        for text in [
            "10.0.0.1",
            "10.255.255.255",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.255",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.0.1",
            "192.168.255.255",
            "::1",
            "fc00::1",
            "fdff::1",
            "fd00::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b::10.0.0.1",
        ] {
            assert_eq!(reach(text), (false, true), "{text}");
        }
    }

    #[test]
    fn metadata_services_and_what_is_no_address_of_a_machine_are_refused_with_leave_too() {
        for text in [
            "169.254.169.254",
            "169.254.170.2",
            "169.254.0.1",
            "169.254.255.255",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
            "0.0.0.0",
            "0.1.2.3",
            "192.0.0.1",
            "192.0.2.1",
            "192.88.99.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "fd00:ec2::254",
            "fd00:ec2::23",
            "fd20:ce::254",
            "fd00:42::42",
            "fe80::1",
            "fe80::a9fe:a9fe",
            "febf::1",
            "fec0::1",
            "feff::1",
            "ff02::1",
            "::127.0.0.1",
            "::8.8.8.8",
            "::ffff:169.254.169.254",
            "::ffff:0.0.0.0",
            "::ffff:0:127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b::",
            "64:ff9b:1::808:808",
            "64:ff9b:1:7f00:0:100::",
            "2002:7f00:1::",
            "2002:a9fe:a9fe::1",
            "2001::1",
            "2001:0:7f00:1::",
            "2001:10::1",
            "2001:20::1",
            "2001:db8::1",
            "3fff::1",
            "100::1",
            "4000::1",
            "5f00::1",
            "8000::1",
        ] {
            assert_eq!(reach(text), (false, false), "{text}");
        }
    }

    #[test]
    fn a_refusal_says_what_is_there_and_whether_it_can_be_allowed() {
        let refused = |text: &str| check(text.parse().expect(text), false).expect_err(text).to_string();
        assert_eq!(refused("127.0.0.1"), "127.0.0.1 is refused: this machine; allow_private allows it");
        assert_eq!(refused("fd00:ec2::254"), "fd00:ec2::254 is refused: a metadata service");
    }

    proptest! {
        #[test]
        fn nothing_that_the_standard_library_calls_special_is_public(bits in any::<u32>(), high in any::<u8>()) {
            let random = Ipv4Addr::from_bits(bits);
            let [_, b, c, d] = random.octets();
            for v4 in [random, Ipv4Addr::new(192, high, c, d), Ipv4Addr::new(172, b, c, d), Ipv4Addr::new(169, 254, c, d)] {
                let is_special = v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_multicast()
                    || v4.is_broadcast() || v4.is_documentation() || v4.is_unspecified();
                prop_assert!(!is_special || check(v4.into(), false).is_err(), "{v4}");
                // In every notation
                let mapped = IpAddr::from(v4.to_ipv6_mapped());
                for allow_private in [false, true] {
                    prop_assert_eq!(check(mapped, allow_private).is_ok(), check(v4.into(), allow_private).is_ok());
                }
            }
        }

        #[test]
        fn only_global_unicast_is_public_in_ipv6(bits in any::<u128>()) {
            let v6 = Ipv6Addr::from_bits(bits);
            if check(v6.into(), false).is_ok() {
                prop_assert!(bits >> 125 == 1 || v6.to_ipv4_mapped().is_some());
                prop_assert!(!v6.is_multicast() && !v6.is_loopback() && !v6.is_unspecified());
            }
            let unique_local = Ipv6Addr::from_bits((bits >> 7) | (0xfc << 120));
            prop_assert!(check(unique_local.into(), false).is_err());
        }

        #[test]
        fn leave_only_ever_adds(bits in any::<u128>()) {
            for address in [IpAddr::from(Ipv6Addr::from_bits(bits)), Ipv4Addr::from_bits((bits >> 96) as u32).into()] {
                prop_assert!(check(address, false).is_err() || check(address, true).is_ok());
            }
        }
    }
}
