//! Pure: which addresses a webhook may go to.
//!
//! Whoever can choose where a name points to must not reach what only this machine can: so by default nothing but public
//! addresses. The operator can allow private ranges. Link-local addresses, where clouds keep their credentials, and those
//! that are nobody's are never allowed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A range of addresses: `10.0.0.0/8`, `fd00::/8`, or one address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Range {
    base: IpAddr,
    prefix: u8,
}

impl Range {
    /// Reads it.
    ///
    /// # Errors
    /// What is wrong with it, in words that begin with a verb.
    pub(super) fn parse(text: &str) -> Result<Range, String> {
        let no_range =
            || "holds what is no range: write \"10.0.0.0/8\" or \"fd12:3456::/32\"".to_owned();
        let (base, prefix) = match text.split_once('/') {
            Some((base, prefix)) => (base, Some(prefix)),
            None => (text, None),
        };
        let base: IpAddr = base.parse().map_err(|_| no_range())?;
        let bits = if base.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            Some(prefix) => prefix.parse().map_err(|_| no_range())?,
            None => bits,
        };
        if prefix > bits {
            return Err(no_range());
        }
        let range = Range { base, prefix };
        if !range.contains(base) || mask(base, prefix) != bits_of(base) {
            return Err(format!(
                "holds {text}, which has bits behind its prefix: name the first address"
            ));
        }
        Ok(range)
    }

    fn contains(self, address: IpAddr) -> bool {
        self.base.is_ipv4() == address.is_ipv4()
            && mask(address, self.prefix) == mask(self.base, self.prefix)
    }
}

fn bits_of(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn mask(address: IpAddr, prefix: u8) -> u128 {
    let rest = 128 - u32::from(prefix.min(128));
    bits_of(address) & u128::MAX.checked_shl(rest).unwrap_or(0)
}

/// What an address is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Class {
    Public,
    /// Somebody's own: the operator may allow it.
    Private(&'static str),
    /// Never a receiver.
    Never(&'static str),
}

use Class::{Never, Private, Public};

/// IANA's special-purpose registries (RFC 6890 and what was added since), and where clouds keep their credentials.
const V4: [([u8; 4], u8, Class); 19] = [
    ([0, 0, 0, 0], 8, Never("\"this network\"")),
    ([10, 0, 0, 0], 8, Private("a private address")),
    (
        [100, 100, 100, 200],
        32,
        Never("a cloud's metadata service"),
    ),
    ([100, 64, 0, 0], 10, Private("a shared address (RFC 6598)")),
    ([127, 0, 0, 0], 8, Private("this machine itself (loopback)")),
    ([168, 63, 129, 16], 32, Never("a cloud's metadata service")),
    (
        [169, 254, 0, 0],
        16,
        Never("link-local: clouds keep their credentials there"),
    ),
    ([172, 16, 0, 0], 12, Private("a private address")),
    ([192, 0, 0, 192], 32, Never("a cloud's metadata service")),
    (
        [192, 0, 0, 0],
        24,
        Private("an address for protocols (RFC 6890)"),
    ),
    ([192, 0, 2, 0], 24, Private("an address for documentation")),
    ([192, 88, 99, 0], 24, Never("a 6to4 relay")),
    ([192, 168, 0, 0], 16, Private("a private address")),
    ([198, 18, 0, 0], 15, Private("an address for benchmarks")),
    (
        [198, 51, 100, 0],
        24,
        Private("an address for documentation"),
    ),
    (
        [203, 0, 113, 0],
        24,
        Private("an address for documentation"),
    ),
    ([224, 0, 0, 0], 4, Never("multicast")),
    ([255, 255, 255, 255], 32, Never("broadcast")),
    ([240, 0, 0, 0], 4, Private("a reserved address")),
];

const V6: [([u16; 8], u8, Class); 13] = [
    (
        [0, 0, 0, 0, 0, 0, 0, 0],
        128,
        Never("the unspecified address"),
    ),
    (
        [0, 0, 0, 0, 0, 0, 0, 1],
        128,
        Private("this machine itself (loopback)"),
    ),
    (
        [0x64, 0xff9b, 1, 0, 0, 0, 0, 0],
        48,
        Private("a translated address (RFC 8215)"),
    ),
    (
        [0x100, 0, 0, 0, 0, 0, 0, 0],
        64,
        Never("an address that discards"),
    ),
    (
        [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254],
        128,
        Never("a cloud's metadata service"),
    ),
    (
        [0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254],
        128,
        Never("a cloud's metadata service"),
    ),
    (
        [0x2001, 0xdb8, 0, 0, 0, 0, 0, 0],
        32,
        Private("an address for documentation"),
    ),
    (
        [0x3fff, 0, 0, 0, 0, 0, 0, 0],
        20,
        Private("an address for documentation"),
    ),
    (
        [0x2001, 0, 0, 0, 0, 0, 0, 0],
        23,
        Never("an address for protocols (RFC 6890)"),
    ),
    (
        [0xfc00, 0, 0, 0, 0, 0, 0, 0],
        7,
        Private("a private address"),
    ),
    ([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10, Never("link-local")),
    (
        [0xfec0, 0, 0, 0, 0, 0, 0, 0],
        10,
        Private("a private address"),
    ),
    ([0xff00, 0, 0, 0, 0, 0, 0, 0], 8, Never("multicast")),
];

/// The first entry that holds the address.
fn class(address: IpAddr) -> Class {
    let of = |base: IpAddr, prefix: u8| Range { base, prefix }.contains(address);
    let v4 = V4
        .iter()
        .map(|(base, prefix, class)| (IpAddr::V4(Ipv4Addr::from(*base)), prefix, class));
    let v6 = V6
        .iter()
        .map(|(base, prefix, class)| (IpAddr::V6(Ipv6Addr::from(*base)), prefix, class));
    v4.chain(v6)
        .find(|(base, prefix, _)| of(*base, **prefix))
        .map_or(Public, |(_, _, class)| *class)
}

/// The IPv4 address that a packet to this one ends up at: mapped, compatible, translated (RFC 6052) or 6to4.
fn inner(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d, e, f, g, h] = v6.segments();
    let v4 = |high: u16, low: u16| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    match [a, b, c, d, e, f] {
        [0, 0, 0, 0, 0, 0xffff | 0] if (g, h) > (0, 1) => Some(v4(g, h)),
        [0x64, 0xff9b, 0, 0, 0, 0] => Some(v4(g, h)),
        [0x2002, ..] => Some(v4(b, c)),
        _ => None,
    }
}

/// What is against an address; `None`, if it may be connected to.
pub(super) fn objection(address: IpAddr, allowed: &[Range]) -> Option<&'static str> {
    let address = match address {
        IpAddr::V6(v6) => inner(v6).map_or(address, IpAddr::V4),
        v4 => v4,
    };
    match class(address) {
        Public => None,
        Private(_) if allowed.iter().any(|range| range.contains(address)) => None,
        Private(words) | Never(words) => Some(words),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(address: &str, ranges: &[&str]) -> bool {
        let ranges: Vec<Range> = ranges
            .iter()
            .map(|text| Range::parse(text).expect("a range"))
            .collect();
        objection(address.parse().expect("an address"), &ranges).is_none()
    }

    #[test]
    fn only_public_addresses_by_default() {
        for public in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.1",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2606:4700::1111",
            "2a00::1",
            "::ffff:1.1.1.1",
            "64:ff9b::1.1.1.1",
            "2002:101:101::1",
        ] {
            assert!(allowed(public, &[]), "{public}");
        }
        for refused in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "10.255.255.255",
            "100.64.0.1",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.192",
            "192.168.1.1",
            "198.18.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "168.63.129.16",
            "100.100.100.200",
            "::",
            "::1",
            "::2",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::ffff:10.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2002:a9fe:a9fe::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "ff02::1",
            "2001:db8::1",
            "2001::1",
            "100::1",
        ] {
            assert!(!allowed(refused, &[]), "{refused}");
        }
    }

    #[test]
    fn private_ranges_can_be_allowed_and_link_local_cannot() {
        assert!(allowed("127.0.0.1", &["127.0.0.0/8"]));
        assert!(allowed("::ffff:127.0.0.1", &["127.0.0.0/8"]));
        assert!(allowed("::1", &["127.0.0.0/8", "::1"]));
        assert!(allowed("10.1.2.3", &["10.1.2.3"]));
        assert!(!allowed("10.1.2.4", &["10.1.2.3"]));
        assert!(!allowed("10.2.0.0", &["10.0.0.0/15"]));
        assert!(allowed("10.1.255.255", &["10.0.0.0/15"]));
        assert!(allowed("fd12::1", &["fd00::/8"]));
        for everything in [["0.0.0.0/0"], ["::/0"]] {
            for never in [
                "169.254.169.254",
                "0.0.0.0",
                "224.0.0.1",
                "fe80::1",
                "::ffff:169.254.169.254",
                "fd00:ec2::254",
            ] {
                assert!(!allowed(never, &everything), "{never}");
            }
        }
        assert!(allowed("192.168.0.1", &["0.0.0.0/0"]));
        assert!(!allowed("::1", &["0.0.0.0/0"]));
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for bad in [
            "",
            "10.0.0.0/33",
            "::/129",
            "10.0.0.1/8",
            "localhost",
            "10.0.0.0/",
            "10/8",
            "10.0.0.0/-1",
        ] {
            assert!(Range::parse(bad).is_err(), "{bad}");
        }
    }
}
