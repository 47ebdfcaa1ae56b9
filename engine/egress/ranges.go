package egress

import "net/netip"

// A special range is an entry of one of IANA's registries of addresses that are no place of the public
// Internet.
type special struct {
	prefix netip.Prefix
	name   string // as the registry has it
	by     string // the document that set it aside
}

// specials holds every entry of the IANA IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890, as
// updated by RFC 8190) but those that are ordinary unicast services of the public Internet (AS112, AMT),
// and besides multicast, what was once special and may still be routed inside (site-local), and the one
// metadata address that lies in public space. Narrow ranges stand before those that hold them. Go's Is…
// predicates miss about half of these.
func specials() []special {
	entry := func(prefix, name, by string) special { return special{netip.MustParsePrefix(prefix), name, by} }
	return []special{
		// https://www.iana.org/assignments/iana-ipv4-special-registry
		entry("0.0.0.0/32", "This host on this network", "RFC 1122 section 3.2.1.3"),
		entry("0.0.0.0/8", "This network", "RFC 791 section 3.2"),
		entry("10.0.0.0/8", "Private-Use", "RFC 1918"),
		entry("100.64.0.0/10", "Shared Address Space", "RFC 6598"),
		entry("127.0.0.0/8", "Loopback", "RFC 1122 section 3.2.1.3"),
		entry("169.254.0.0/16", "Link Local, cloud metadata among it", "RFC 3927"),
		entry("172.16.0.0/12", "Private-Use", "RFC 1918"),
		entry("192.0.0.0/29", "IPv4 Service Continuity Prefix", "RFC 7335"),
		entry("192.0.0.8/32", "IPv4 dummy address", "RFC 7600"),
		entry("192.0.0.9/32", "Port Control Protocol Anycast", "RFC 7723"),
		entry("192.0.0.10/32", "Traversal Using Relays around NAT Anycast", "RFC 8155"),
		entry("192.0.0.170/31", "NAT64/DNS64 Discovery", "RFC 8880, RFC 7050 section 2.2"),
		entry("192.0.0.0/24", "IETF Protocol Assignments", "RFC 6890 section 2.1"),
		entry("192.0.2.0/24", "Documentation (TEST-NET-1)", "RFC 5737"),
		entry("192.88.99.2/32", "6a44-relay anycast address", "RFC 6751"),
		entry("192.88.99.0/24", "Deprecated (6to4 Relay Anycast)", "RFC 7526"),
		entry("192.168.0.0/16", "Private-Use", "RFC 1918"),
		entry("198.18.0.0/15", "Benchmarking", "RFC 2544"),
		entry("198.51.100.0/24", "Documentation (TEST-NET-2)", "RFC 5737"),
		entry("203.0.113.0/24", "Documentation (TEST-NET-3)", "RFC 5737"),
		entry("255.255.255.255/32", "Limited Broadcast", "RFC 8190, RFC 919 section 7"),
		entry("240.0.0.0/4", "Reserved", "RFC 1112 section 4"),
		// https://www.iana.org/assignments/multicast-addresses
		entry("224.0.0.0/4", "Multicast", "RFC 5771"),
		// Platform service of Azure; public space, reachable from its machines only.
		entry("168.63.129.16/32", "Azure platform address", "no registry: the cloud's metadata and agent service"),

		// https://www.iana.org/assignments/iana-ipv6-special-registry
		entry("::1/128", "Loopback Address", "RFC 4291"),
		entry("::/128", "Unspecified Address", "RFC 4291"),
		entry("64:ff9b:1::/48", "IPv4-IPv6 Translat.", "RFC 8215"),
		entry("100::/64", "Discard-Only Address Block", "RFC 6666"),
		entry("100:0:0:1::/64", "Dummy IPv6 Prefix", "RFC 9780"),
		entry("2001:1::1/128", "Port Control Protocol Anycast", "RFC 7723"),
		entry("2001:1::2/128", "Traversal Using Relays around NAT Anycast", "RFC 8155"),
		entry("2001:1::3/128", "DNS-SD Service Registration Protocol Anycast", "RFC 9665"),
		entry("2001:2::/48", "Benchmarking", "RFC 5180"),
		entry("2001:10::/28", "Deprecated (previously ORCHID)", "RFC 4843"),
		entry("2001:20::/28", "ORCHIDv2", "RFC 7343"),
		entry("2001:30::/28", "Drone Remote ID Protocol Entity Tags (DETs)", "RFC 9374"),
		entry("2001:db8::/32", "Documentation", "RFC 3849"),
		entry("3fff::/20", "Documentation", "RFC 9637"),
		entry("5f00::/16", "Segment Routing (SRv6) SIDs", "RFC 9602"),
		entry("fc00::/7", "Unique-Local", "RFC 4193, RFC 8190"),
		entry("fe80::/10", "Link-Local Unicast", "RFC 4291"),
		// https://www.iana.org/assignments/ipv6-address-space
		entry("fec0::/10", "Site-Local (deprecated)", "RFC 3879"),
		entry("ff00::/8", "Multicast", "RFC 4291"),
	}
}

// protocols is 2001::/23, "IETF Protocol Assignments" (RFC 2928): not globally reachable but for these
// entries within it that are marked so. Teredo, within it too, goes by the addresses it embeds.
var (
	protocols       = netip.MustParsePrefix("2001::/23")
	protocolsGlobal = [...]netip.Prefix{
		netip.MustParsePrefix("2001:3::/32"),     // AMT, RFC 7450
		netip.MustParsePrefix("2001:4:112::/48"), // AS112-v6, RFC 7535
	}
)

// The ranges whose addresses carry an IPv4 address that a gateway or a kernel would connect to.
var (
	compatible = netip.MustParsePrefix("::/96")           // IPv4-compatible, RFC 4291 section 2.5.5.1
	translated = netip.MustParsePrefix("::ffff:0:0:0/96") // IPv4-translated, RFC 2765 section 2.1
	nat64      = netip.MustParsePrefix("64:ff9b::/96")    // RFC 6052
	sixToFour  = netip.MustParsePrefix("2002::/16")       // RFC 3056
	teredo     = netip.MustParsePrefix("2001::/32")       // RFC 4380 section 4
)

// embedded yields the IPv4 addresses within an IPv6 address and the name of the way they are carried.
func embedded(a netip.Addr) (v4 [2]netip.Addr, n int, how string) {
	b := a.As16()
	at := func(i int) netip.Addr { return netip.AddrFrom4([4]byte(b[i : i+4])) }
	switch {
	case compatible.Contains(a):
		return [2]netip.Addr{at(12)}, 1, "IPv4-compatible, RFC 4291 section 2.5.5.1"
	case translated.Contains(a):
		return [2]netip.Addr{at(12)}, 1, "IPv4-translated, RFC 2765 section 2.1"
	case nat64.Contains(a):
		return [2]netip.Addr{at(12)}, 1, "NAT64, RFC 6052"
	case sixToFour.Contains(a):
		return [2]netip.Addr{at(2)}, 1, "6to4, RFC 3056"
	case teredo.Contains(a): // the client's is stored inverted
		client := netip.AddrFrom4([4]byte{^b[12], ^b[13], ^b[14], ^b[15]})
		return [2]netip.Addr{at(4), client}, 2, "Teredo, RFC 4380 section 4"
	case b[8]&^2 == 0 && b[9] == 0 && b[10] == 0x5E && b[11] == 0xFE:
		return [2]netip.Addr{at(12)}, 1, "ISATAP, RFC 5214 section 6.1"
	}
	return v4, 0, ""
}

// rangeOf returns the special range that holds a, which has no zone and is not IPv4-mapped.
func (d *Dialer) rangeOf(a netip.Addr) (special, bool) {
	for i := range d.specials {
		if d.specials[i].prefix.Contains(a) {
			return d.specials[i], true
		}
	}
	if a.Is4() {
		return special{}, false
	}
	if v4, n, how := embedded(a); n > 0 {
		for _, in := range v4[:n] {
			if s, ok := d.rangeOf(in); ok {
				s.by += ", carried in IPv6 as " + how
				return s, true
			}
		}
		return special{}, false
	}
	if protocols.Contains(a) {
		for _, p := range protocolsGlobal {
			if p.Contains(a) {
				return special{}, false
			}
		}
		return special{protocols, "IETF Protocol Assignments", "RFC 2928"}, true
	}
	return special{}, false
}
