package egress

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// CheckURL says what is wrong with a target's URL, as far as that can be told without looking its host
// up: it must be http or https with a host and without user, password and fragment. Whether the address
// is allowed is decided when it is dialled. The error never shows user, password or query.
func CheckURL(raw string) error {
	for i := 0; i < len(raw); i++ {
		if raw[i] <= ' ' || raw[i] == 0x7F {
			return fmt.Errorf("URL has %q at %d; percent-encode it", raw[i], i)
		}
	}
	u, err := url.Parse(raw)
	if err != nil {
		if !strings.Contains(raw, "://") { // such as 127.0.0.1:9000, of which the parser says something else
			return errors.New("URL has no scheme; want such as https://example.com/hook")
		}
		// The parser quotes what it stumbles over, which may be a password: https://me:PASSWORD, its host forgotten.
		return errors.New("URL cannot be read; percent-encode what is special in it")
	}
	switch {
	case u.Scheme == "":
		return errors.New("URL has no scheme; want such as https://example.com/hook")
	case u.Scheme != "http" && u.Scheme != "https":
		return fmt.Errorf("URL has the scheme %.20q; want http or https", u.Scheme)
	case u.User != nil:
		return errors.New("URL has a user or password; send it as a header instead: authorization")
	case u.Opaque != "" || u.Hostname() == "":
		return fmt.Errorf("URL has no host; want such as %s://example.com/hook", u.Scheme)
	case u.Fragment != "" || strings.HasSuffix(raw, "#"):
		return errors.New("URL has a fragment (#…), which is never sent; drop it, or write # as %23")
	}
	if p := u.Port(); p != "" || strings.HasSuffix(u.Host, ":") {
		if n, err := strconv.ParseUint(p, 10, 16); err != nil || n == 0 {
			return fmt.Errorf("URL has the port %.20q; want 1 to 65535", p)
		}
	}
	if err := checkHost(u.Hostname()); err != nil {
		return fmt.Errorf("URL: %w", err)
	}
	return nil
}

// checkHost refuses a host that different programs read differently: IPv4 in octal, hexadecimal, as one
// integer or with fewer than four parts, IPv6 with a zone, and names beyond ASCII.
func checkHost(host string) error {
	if host == "" {
		return errors.New("host is empty")
	}
	if len(host) > 254 {
		return fmt.Errorf("host has %d bytes; a name has at most 253", len(host))
	}
	a, err := netip.ParseAddr(host)
	if err == nil {
		if a.Zone() != "" { // of which programs read different things, and some nothing
			return fmt.Errorf("host %.80q has a zone (%%…), which only link-local addresses need, and they are no targets; write %s", host, a.WithZone(""))
		}
		return nil
	}
	if strings.Contains(host, ":") {
		return fmt.Errorf("host %.80q is not an IPv6 address", host)
	}
	if !plain(host) {
		return fmt.Errorf("host %.80q has other than letters, digits, . _ -; write an international name in its xn-- form", host)
	}
	// The host parser of the URL standard: whatever ends in a number is IPv4.
	last := strings.TrimSuffix(host, ".")
	last = last[strings.LastIndexByte(last, '.')+1:]
	if last == "" {
		return fmt.Errorf("host %.80q is not a name", host)
	}
	if isNumber(last) {
		return fmt.Errorf("host %.80q is not a plain IPv4 address; write four decimal numbers without leading zeros, such as 192.0.2.1", host)
	}
	return nil
}

func plain(s string) bool {
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '.', c == '-', c == '_':
		default:
			return false
		}
	}
	return true
}

func isNumber(s string) bool {
	if len(s) >= 2 && s[0] == '0' && s[1]|0x20 == 'x' {
		_, err := strconv.ParseUint(s[2:], 16, 64)
		return err == nil || len(s) == 2 || errors.Is(err, strconv.ErrRange)
	}
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}
