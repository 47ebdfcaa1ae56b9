package egress

import (
	"cmp"
	"net/netip"
	"slices"
)

// A verdict is what an entry of a registry means for a target.
type verdict uint8

const (
	refused verdict = iota // no place of the public Internet, or one that differs with where one stands
	public                 // marked special, and yet an ordinary service of the public Internet (AS112, AMT)
	carries                // goes by the IPv4 address within: see embedded
)

// A special range is an entry of one of the registries of addresses that are set aside.
type special struct {
	prefix netip.Prefix
	name   string // as the registry has it
	by     string // the document that set it aside
	is     verdict
}

// registry4 is the IANA IPv4 Special-Purpose Address Registry (RFC 6890, as updated by RFC 8190), in its order, with
// every entry known to us in 2026-11. The ranges of Python 3.11.7's ipaddress, which go by it too, are all among them:
// https://www.iana.org/assignments/iana-ipv4-special-registry
func registry4() []special {
	return []special{
		entry("0.0.0.0/8", "This network", "RFC 791 section 3.2", refused),
		entry("0.0.0.0/32", "This host on this network", "RFC 1122 section 3.2.1.3", refused),
		entry("10.0.0.0/8", "Private-Use", "RFC 1918", refused),
		entry("100.64.0.0/10", "Shared Address Space", "RFC 6598", refused),
		entry("127.0.0.0/8", "Loopback", "RFC 1122 section 3.2.1.3", refused),
		entry("169.254.0.0/16", "Link Local, cloud metadata among it", "RFC 3927", refused),
		entry("172.16.0.0/12", "Private-Use", "RFC 1918", refused),
		entry("192.0.0.0/24", "IETF Protocol Assignments", "RFC 6890 section 2.1", refused),
		entry("192.0.0.0/29", "IPv4 Service Continuity Prefix", "RFC 7335", refused),
		entry("192.0.0.8/32", "IPv4 dummy address", "RFC 7600", refused),
		entry("192.0.0.9/32", "Port Control Protocol Anycast", "RFC 7723", refused), // global, and answered by the nearest gateway
		entry("192.0.0.10/32", "Traversal Using Relays around NAT Anycast", "RFC 8155", refused),
		entry("192.0.0.170/32", "NAT64/DNS64 Discovery", "RFC 8880, RFC 7050 section 2.2", refused),
		entry("192.0.0.171/32", "NAT64/DNS64 Discovery", "RFC 8880, RFC 7050 section 2.2", refused),
		entry("192.0.2.0/24", "Documentation (TEST-NET-1)", "RFC 5737", refused),
		entry("192.31.196.0/24", "AS112-v4", "RFC 7535", public),
		entry("192.52.193.0/24", "AMT", "RFC 7450", public),
		entry("192.88.99.0/24", "Deprecated (6to4 Relay Anycast)", "RFC 7526", refused),
		entry("192.88.99.2/32", "6a44-relay anycast address", "RFC 6751", refused),
		entry("192.168.0.0/16", "Private-Use", "RFC 1918", refused),
		entry("192.175.48.0/24", "Direct Delegation AS112 Service", "RFC 7534", public),
		entry("198.18.0.0/15", "Benchmarking", "RFC 2544", refused),
		entry("198.51.100.0/24", "Documentation (TEST-NET-2)", "RFC 5737", refused),
		entry("203.0.113.0/24", "Documentation (TEST-NET-3)", "RFC 5737", refused),
		entry("240.0.0.0/4", "Reserved", "RFC 1112 section 4", refused),
		entry("255.255.255.255/32", "Limited Broadcast", "RFC 8190, RFC 919 section 7", refused),
	}
}

// registry6 is the IANA IPv6 Special-Purpose Address Registry, in its order, with every entry known to us in 2026-11: the
// registry's last change that we have seen a date of is that of 2024-10-22, and 100:0:0:1::/64 is newer (RFC 9780). What is
// not here is refused all the same unless it lies in 2000::/3, by beyond:
// https://www.iana.org/assignments/iana-ipv6-special-registry
func registry6() []special {
	return []special{
		entry("::1/128", "Loopback Address", "RFC 4291", refused),
		entry("::/128", "Unspecified Address", "RFC 4291", refused),
		entry("::ffff:0:0/96", "IPv4-mapped Address", "RFC 4291", carries), // never met: addresses are unmapped first
		entry("64:ff9b::/96", "IPv4-IPv6 Translat.", "RFC 6052", carries),
		entry("64:ff9b:1::/48", "IPv4-IPv6 Translat.", "RFC 8215", refused),
		entry("100::/64", "Discard-Only Address Block", "RFC 6666", refused),
		entry("100:0:0:1::/64", "Dummy IPv6 Prefix", "RFC 9780", refused),
		entry("2001::/23", "IETF Protocol Assignments", "RFC 2928", refused),
		entry("2001::/32", "TEREDO", "RFC 4380, RFC 8190", carries),
		entry("2001:1::1/128", "Port Control Protocol Anycast", "RFC 7723", refused), // global, and answered by the nearest gateway
		entry("2001:1::2/128", "Traversal Using Relays around NAT Anycast", "RFC 8155", refused),
		entry("2001:1::3/128", "DNS-SD Service Registration Protocol Anycast", "RFC 9665", refused),
		entry("2001:2::/48", "Benchmarking", "RFC 5180, RFC Errata 1752", refused),
		entry("2001:3::/32", "AMT", "RFC 7450", public),
		entry("2001:4:112::/48", "AS112-v6", "RFC 7535", public),
		entry("2001:10::/28", "Deprecated (previously ORCHID)", "RFC 4843", refused),
		entry("2001:20::/28", "ORCHIDv2", "RFC 7343", refused),
		entry("2001:30::/28", "Drone Remote ID Protocol Entity Tags (DETs) Prefix", "RFC 9374", refused),
		entry("2001:db8::/32", "Documentation", "RFC 3849", refused),
		entry("2002::/16", "6to4", "RFC 3056", carries),
		entry("2620:4f:8000::/48", "Direct Delegation AS112 Service", "RFC 7534", public),
		entry("3fff::/20", "Documentation", "RFC 9637", refused),
		entry("5f00::/16", "Segment Routing (SRv6) SIDs", "RFC 9602", refused),
		entry("fc00::/7", "Unique-Local", "RFC 4193, RFC 8190", refused),
		entry("fe80::/10", "Link-Local Unicast", "RFC 4291", refused),
	}
}

// beyond is what those two registries leave to others, or to nobody.
func beyond() []special {
	return []special{
		// https://www.iana.org/assignments/multicast-addresses
		entry("224.0.0.0/4", "Multicast", "RFC 5771", refused),
		// Public space, and answered from Azure's machines only.
		entry("168.63.129.16/32", "Azure platform address", "no registry: the cloud's metadata and agent service", refused),
		// https://www.iana.org/assignments/ipv6-address-space: unicast is assigned out of 2000::/3 only.
		entry("::/0", "Reserved by IETF", "RFC 4291", refused),
		entry("2000::/3", "Global Unicast", "RFC 4291", public),
		entry("::/96", "IPv4-compatible Address", "RFC 4291 section 2.5.5.1", carries),
		entry("::ffff:0:0:0/96", "IPv4-translated Address", "RFC 2765 section 2.1", carries),
		entry("fec0::/10", "Site-Local (deprecated)", "RFC 3879", refused),
		entry("ff00::/8", "Multicast", "RFC 4291", refused),
	}
}

func entry(prefix, name, by string, is verdict) special {
	return special{netip.MustParsePrefix(prefix), name, by, is}
}

// specials is every entry, the narrow before those that hold them. Go's Is… predicates miss about half of these.
func specials() []special {
	all := slices.Concat(registry4(), registry6(), beyond())
	slices.SortStableFunc(all, func(a, b special) int { return cmp.Compare(b.prefix.Bits(), a.prefix.Bits()) })
	return all
}

// The ranges whose addresses carry an IPv4 address that a gateway or a kernel would connect to.
var (
	compatible = netip.MustParsePrefix("::/96")
	translated = netip.MustParsePrefix("::ffff:0:0:0/96")
	nat64      = netip.MustParsePrefix("64:ff9b::/96")
	nat64Local = netip.MustParsePrefix("64:ff9b:1::/48") // RFC 8215: with prefixes of any length within
	sixToFour  = netip.MustParsePrefix("2002::/16")
	teredo     = netip.MustParsePrefix("2001::/32")
)

// inner holds the IPv4 addresses that an IPv6 address may carry.
type inner struct {
	v4  [4]netip.Addr
	n   int
	how string // the way they are carried
}

// embedded yields the IPv4 addresses within an IPv6 address.
func embedded(a netip.Addr) (in inner) {
	b := a.As16()
	add := func(b0, b1, b2, b3 byte) {
		in.v4[in.n] = netip.AddrFrom4([4]byte{b0, b1, b2, b3})
		in.n++
	}
	last := func() { add(b[12], b[13], b[14], b[15]) }
	switch {
	case compatible.Contains(a):
		last()
		in.how = "IPv4-compatible, RFC 4291 section 2.5.5.1"
	case translated.Contains(a):
		last()
		in.how = "IPv4-translated, RFC 2765 section 2.1"
	case nat64.Contains(a):
		last()
		in.how = "NAT64, RFC 6052"
	case nat64Local.Contains(a): // where it stands follows from the prefix's length, RFC 6052 section 2.2
		add(b[6], b[7], b[9], b[10])
		add(b[7], b[9], b[10], b[11])
		add(b[9], b[10], b[11], b[12])
		last()
		in.how = "NAT64, RFC 8215"
	case sixToFour.Contains(a):
		add(b[2], b[3], b[4], b[5])
		in.how = "6to4, RFC 3056"
	case teredo.Contains(a):
		add(b[4], b[5], b[6], b[7])
		add(^b[12], ^b[13], ^b[14], ^b[15]) // the client's is stored inverted
		in.how = "Teredo, RFC 4380 section 4"
	case b[8]&^2 == 0 && b[9] == 0 && b[10] == 0x5E && b[11] == 0xFE:
		last()
		in.how = "ISATAP, RFC 5214 section 6.1"
	}
	return in
}

// rangeOf returns the special range that refuses a, which has no zone and is not IPv4-mapped.
func (d *Dialer) rangeOf(a netip.Addr) (special, bool) {
	i := slices.IndexFunc(d.specials, func(s special) bool { return s.prefix.Contains(a) })
	if i >= 0 && d.specials[i].is == refused {
		return d.specials[i], true
	}
	if a.Is4() {
		return special{}, false
	}
	in := embedded(a)
	for _, v4 := range in.v4[:in.n] {
		if s, ok := d.rangeOf(v4); ok {
			s.by += ", carried in IPv6 as " + in.how
			return s, true
		}
	}
	return special{}, false
}
