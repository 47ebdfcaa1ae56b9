package admission

import (
	"net/netip"
	"strings"
)

// ClientOf is the address of who sent a request, where peer is who sent it to us. Only a trusted proxy is believed, and
// of what it hands on only what trusted ones have added: the list is read from its end until an address that is not a
// proxy's. value is X-Forwarded-For, or with rfc7239 Forwarded. It allocates nothing.
func ClientOf(peer netip.Addr, value string, rfc7239 bool, trusted func(netip.Addr) bool) netip.Addr {
	at := peer
	for value != "" && trusted(at) {
		hop := value
		i := strings.LastIndexByte(value, ',')
		if i >= 0 {
			hop = value[i+1:]
		}
		value = value[:max(i, 0)]
		hop = strings.Trim(hop, " \t")
		if rfc7239 {
			hop = forParameter(hop)
		}
		a, ok := hopAddr(hop)
		if !ok { // "unknown", a name, or nonsense: whoever wrote it is the last one known
			return at
		}
		at = a
	}
	return at
}

// forParameter is the node of an element of Forwarded (RFC 7239, 4): for="[2001:db8::1]:80";proto=https. An element in
// which a quoted comma or semicolon was cut gives no address.
func forParameter(element string) string {
	for pair := range strings.SplitSeq(element, ";") {
		name, value, ok := strings.Cut(strings.Trim(pair, " \t"), "=")
		if ok && strings.EqualFold(name, "for") {
			if n := len(value); n >= 2 && value[0] == '"' && value[n-1] == '"' {
				value = value[1 : n-1]
			}
			return value
		}
	}
	return ""
}

// hopAddr reads an address with or without a port; IPv6 with one is in brackets.
func hopAddr(s string) (netip.Addr, bool) {
	if len(s) > 64 {
		return netip.Addr{}, false
	}
	if rest, ok := strings.CutPrefix(s, "["); ok {
		i := strings.IndexByte(rest, ']')
		if i < 0 || len(rest) > i+1 && !isPort(rest[i+1:]) {
			return netip.Addr{}, false
		}
		s = rest[:i]
	} else if i := strings.IndexByte(s, ':'); i >= 0 && strings.IndexByte(s[i+1:], ':') < 0 {
		if !isPort(s[i:]) {
			return netip.Addr{}, false
		}
		s = s[:i]
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" || a.IsUnspecified() {
		return netip.Addr{}, false
	}
	return a.Unmap(), true
}

// isPort reports whether s is a colon and digits.
func isPort(s string) bool {
	if len(s) < 2 || len(s) > 6 || s[0] != ':' {
		return false
	}
	for i := 1; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}
