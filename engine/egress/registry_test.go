package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// last is the highest address of a prefix.
func last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// ofRange returns addresses of an entry that no narrower entry holds: its ends, and some in between.
func ofRange(s special, all []special) (addrs []netip.Addr) {
	one, end := s.prefix.Addr(), last(s.prefix)
	candidates := []netip.Addr{one, one.Next(), end, end.Prev()}
	b := one.AsSlice()
	for i := s.prefix.Bits(); i < len(b)*8; i += 3 { // every third bit set
		b[i/8] |= 1 << (7 - i%8)
	}
	middle, _ := netip.AddrFromSlice(b)
	for _, a := range append(candidates, middle) {
		narrower := slices.ContainsFunc(all, func(o special) bool { return o.prefix.Bits() > s.prefix.Bits() && o.prefix.Contains(a) })
		if a.IsValid() && s.prefix.Contains(a) && !narrower && !slices.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

// within6 returns what an IPv4 address becomes in every range of IPv6 that carries one.
func within6(a netip.Addr) []string {
	b := a.As4()
	hi, lo := fmt.Sprintf("%x", uint(b[0])<<8|uint(b[1])), fmt.Sprintf("%x", uint(b[2])<<8|uint(b[3]))
	not := fmt.Sprintf("%x:%x", ^(uint16(b[0])<<8 | uint16(b[1])), ^(uint16(b[2])<<8 | uint16(b[3])))
	return []string{
		"::ffff:" + a.String(), "::ffff:" + hi + ":" + lo, "0:0:0:0:0:FFFF:" + strings.ToUpper(hi) + ":" + lo, "::ffff:" + a.String() + "%eth0",
		"::" + a.String(), "::ffff:0:" + a.String(),
		"64:ff9b::" + a.String(), "64:FF9B::" + hi + ":" + lo, "64:ff9b:1::" + a.String(), "64:ff9b:1:" + hi + ":" + fmt.Sprintf("%x:%x", b[2], uint(b[3])<<8) + "::",
		"2002:" + hi + ":" + lo + "::", "2002:" + hi + ":" + lo + ":1:2:3:4:5",
		"2001:0:" + hi + ":" + lo + ":0:0:f7f7:f7f7", "2001:0:808:808:0:0:" + not,
		"2606:4700::5efe:" + hi + ":" + lo, "2606:4700::200:5efe:" + hi + ":" + lo,
	}
}

// notations4 returns every way in which some program reads an IPv4 address.
func notations4(a netip.Addr) (hosts []string) {
	b := a.As4()
	n := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	tail3, tail2 := n&0xFFFFFF, n&0xFFFF
	dotted := a.String()
	hosts = []string{
		dotted, dotted + ".", "[" + dotted + "]", "%" + fmt.Sprintf("%02x", dotted[0]) + dotted[1:],
		strconv.FormatUint(uint64(n), 10), fmt.Sprintf("0x%x", n), fmt.Sprintf("0X%08X", n), fmt.Sprintf("0%o", n), fmt.Sprintf("0x%x.", n),
		fmt.Sprintf("%d.%d", b[0], tail3), fmt.Sprintf("%d.%d.%d", b[0], b[1], tail2), fmt.Sprintf("0x%x.%d", b[0], tail3),
		fmt.Sprintf("0%o.0%o.0%o.0%o", b[0], b[1], b[2], b[3]), fmt.Sprintf("0x%x.0x%x.0x%x.0x%x", b[0], b[1], b[2], b[3]),
		fmt.Sprintf("0X%02X.0%o.%d.0x%x", b[0], b[1], b[2], b[3]), fmt.Sprintf("%03d.%03d.%03d.%03d", b[0], b[1], b[2], b[3]),
		fmt.Sprintf("%d.%d.%d.0x%x", b[0], b[1], b[2], b[3]), fmt.Sprintf("00000000%o.%d", b[0], tail3),
		strings.ReplaceAll(dotted, ".", "。"), strings.ReplaceAll(dotted, ".", "．"), strings.ReplaceAll(dotted, ".", "｡"), strings.ReplaceAll(dotted, ".", "%2e"),
		strings.Map(func(r rune) rune { // full-width digits
			if r >= '0' && r <= '9' {
				return '０' + r - '0'
			}
			return r
		}, dotted),
		dotted + "%eth0", dotted + "%00", "\u200b" + dotted,
	}
	return append(hosts, within6(a)...)
}

// notations6 does so for IPv6.
func notations6(a netip.Addr) []string {
	b := a.As16()
	last := fmt.Sprintf("%d.%d.%d.%d", b[12], b[13], b[14], b[15])
	full := a.StringExpanded()
	return []string{
		a.String(), full, strings.ToUpper(full), a.String() + "%eth0", a.String() + "%1", a.String() + "%25eth0", "[" + a.String() + "]",
		full[:30] + last, a.String() + ".", strings.ReplaceAll(a.String(), ":", "：") + "x",
	}
}

// Every notation of every range of the registries is refused, as a host to dial and in a URL, before anything is sent.
func TestEveryNotationOfEveryRange(t *testing.T) {
	port, accepted := trap(t)
	d := newDialer(t, Options{Timeout: 2 * time.Second, Resolver: libc{}})
	all := specials()
	tried := 0
	try := func(host string) {
		tried++
		addr := net.JoinHostPort(strings.Trim(host, "[]"), port)
		if strings.HasPrefix(host, "[") && !strings.Contains(host, ":") {
			addr = host + ":" + port
		}
		c, err := d.DialContext(context.Background(), "tcp", addr)
		var op *net.OpError
		switch {
		case err == nil:
			c.Close()
			t.Errorf("%s: connected", host)
		case errors.As(err, &op):
			t.Errorf("%s: it tried: %v", host, err)
		}
	}
	for _, s := range all {
		if s.is != refused {
			continue
		}
		addrs := ofRange(s, all)
		if len(addrs) == 0 {
			t.Errorf("%s: nothing of it is tried", s.prefix)
		}
		for _, a := range addrs {
			var hosts []string
			if a.Is4() {
				hosts = notations4(a)
			} else {
				hosts = notations6(a)
			}
			for _, h := range hosts {
				try(h)
			}
			got, ok := d.rangeOf(a)
			if !ok || got.prefix != s.prefix {
				t.Errorf("%s counts as %s; want %s", a, got.prefix, s.prefix)
			}
		}
	}
	if tried < 2000 {
		t.Errorf("%d notations were tried, which is not every one", tried)
	}
	for _, h := range notations4(ip("127.0.0.1")) { // as an HTTP client reads them, out of a URL
		if strings.Contains(h, ":") {
			h = "[" + h + "]"
		}
		raw := "http://" + h + ":" + port + "/"
		if _, err := url.Parse(raw); err != nil {
			continue
		}
		resp, err := d.Client().Get(raw)
		if err == nil {
			resp.Body.Close()
			t.Errorf("%s: answered", raw)
		}
	}
	if n := accepted(); n != 0 {
		t.Errorf("%d connections reached this machine", n)
	}
	t.Logf("%d notations", tried)
}

// What is marked special and yet public is allowed, and what carries IPv4 goes by that.
func TestRegistryVerdicts(t *testing.T) {
	d := newDialer(t, Options{})
	all := specials()
	for _, s := range all {
		for _, a := range ofRange(s, all) {
			_, blocked := d.rangeOf(a)
			if s.is == public && blocked {
				t.Errorf("%s of %s (%s) is refused", a, s.prefix, s.name)
			}
		}
	}
	for _, text := range within6(ip("93.184.216.34")) {
		if strings.HasPrefix(text, "64:ff9b:1:") {
			continue // local use, whatever it carries
		}
		if strings.Contains(text, "%") {
			continue // TestAllowAndDeny has zones
		}
		if err := checkAddr(d, ip(text)); err != nil {
			t.Errorf("%v", err)
		}
	}
	// Which of them are not refused is said twice, so that none is opened by a slip.
	open := map[verdict][]string{}
	for _, s := range all {
		open[s.is] = append(open[s.is], s.prefix.String())
	}
	for is, want := range map[verdict]string{
		public:  "2001:4:112::/48 2620:4f:8000::/48 2001:3::/32 192.31.196.0/24 192.52.193.0/24 192.175.48.0/24 2000::/3",
		carries: "::ffff:0.0.0.0/96 64:ff9b::/96 ::/96 ::ffff:0:0:0/96 2001::/32 2002::/16",
	} {
		if got := strings.Join(open[is], " "); got != want {
			t.Errorf("not refused are %s; want %s", got, want)
		}
	}
	// In the registry's order and without a gap: what is added later is added here.
	for _, r := range []struct {
		table []special
		n     int
		first string
		last  string
	}{{registry4(), 26, "0.0.0.0/8", "255.255.255.255/32"}, {registry6(), 25, "::1/128", "fe80::/10"}} {
		if len(r.table) != r.n || r.table[0].prefix.String() != r.first || r.table[len(r.table)-1].prefix.String() != r.last {
			t.Errorf("%d entries, %s to %s", len(r.table), r.table[0].prefix, r.table[len(r.table)-1].prefix)
		}
		if !slices.IsSortedFunc(r.table[2:], func(a, b special) int { return a.prefix.Addr().Compare(b.prefix.Addr()) }) {
			t.Error("not in the registry's order")
		}
	}
}

// libc is a resolver that reads numbers as the C library's does (inet_aton), undoes percent-encoding and knows the
// dots and digits of international names: what a careless resolver would make of a notation.
type libc struct{}

func (libc) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	if a, ok := aton(loose(host)); ok {
		return []netip.Addr{a}, nil
	}
	return []netip.Addr{ip("127.0.0.1")}, nil
}

// loose is a host as the most forgiving program reads it.
func loose(host string) string {
	if u, err := url.PathUnescape(host); err == nil {
		host = u
	}
	host = strings.Map(func(r rune) rune {
		switch {
		case r == '。' || r == '．' || r == '｡':
			return '.'
		case r >= '０' && r <= '９':
			return '0' + r - '０'
		case r == '\u200b' || r == '\u00ad':
			return -1
		}
		return r
	}, host)
	return strings.TrimSuffix(strings.Trim(host, "[] "), ".")
}

// aton follows inet_aton(3): one to four numbers in decimal, octal or hexadecimal, the last filling what is left.
func aton(s string) (a netip.Addr, ok bool) {
	if a, err := netip.ParseAddr(s); err == nil {
		return a, true
	}
	parts := strings.Split(s, ".")
	if len(parts) > 4 {
		return a, false
	}
	var n uint64
	for i, p := range parts {
		if p == "" || strings.ContainsAny(p, "_+-") {
			return a, false
		}
		base := 10
		switch {
		case len(p) > 1 && (p[:2] == "0x" || p[:2] == "0X"):
			p, base = p[2:], 16
		case p[0] == '0' && len(p) > 1:
			p, base = p[1:], 8
		}
		v, err := strconv.ParseUint(p, base, 64)
		most := uint64(255)
		if i == len(parts)-1 {
			most = 1<<(8*(4-i)) - 1
		}
		if err != nil || v > most {
			return a, false
		}
		if i == len(parts)-1 {
			n |= v
		} else {
			n |= v << (8 * (3 - i))
		}
	}
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}), true
}

// FuzzHost: whatever stands where a host should, no address is connected to that the registries refuse, nor one that
// another program would read out of the same text.
func FuzzHost(f *testing.F) {
	for _, a := range []string{"127.0.0.1", "169.254.169.254", "10.0.0.1"} {
		for _, h := range notations4(ip(a)) {
			f.Add(h)
		}
	}
	for _, h := range append(notations6(ip("::1")), "localhost", "example.com", "a..b", "", ".", "0x", "93.184.216.34", "2606:4700::1111", "2606:4700::%20") {
		f.Add(h)
	}
	d, err := New(Options{Resolver: libc{}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, host string) {
		if CheckURL("http://"+host+"/") == nil {
			if u, err := url.Parse("http://" + host + "/"); err != nil || checkHost(u.Hostname()) != nil {
				t.Fatalf("%q passes in a URL and not as a host", host)
			}
		}
		tgt, err := d.target(net.JoinHostPort(host, "80"))
		if err != nil {
			return
		}
		addrs, err := d.allowed(context.Background(), d.rules.Load(), "ip", tgt)
		if err != nil {
			return
		}
		for _, a := range addrs {
			a = a.Unmap()
			if a.Zone() != "" {
				t.Fatalf("%q comes to %s", host, a)
			}
			if !a.IsGlobalUnicast() || a.IsPrivate() || a.IsLinkLocalUnicast() || a.IsLoopback() {
				t.Fatalf("%q comes to %s", host, a)
			}
			if s, ok := d.rangeOf(a); ok {
				t.Fatalf("%q comes to %s of %s", host, a, s.prefix)
			}
		}
		// Whatever number another program reads in it is the one that was checked.
		if read, ok := aton(loose(host)); ok && !slices.Contains(addrs, read) {
			t.Fatalf("%q is %s to others, and %v here", host, read, addrs)
		}
	})
}
