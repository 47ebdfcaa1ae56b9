package httpapi

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/millrace/millrace/engine/admission"
)

func TestClientOf(t *testing.T) {
	trusted := func(a netip.Addr) bool { return netip.MustParsePrefix("10.0.0.0/8").Contains(a) }
	for _, x := range []struct {
		peer, value string
		rfc         bool
		want        string
	}{
		{"10.0.0.1", "198.51.100.7", false, "198.51.100.7"},
		{"10.0.0.1", "203.0.113.9, 198.51.100.7", false, "198.51.100.7"}, // the left one is the client's own word
		{"10.0.0.1", "203.0.113.9, 198.51.100.7, 10.9.9.9", false, "198.51.100.7"},
		{"198.51.100.1", "203.0.113.9", false, "198.51.100.1"}, // no proxy of ours
		{"10.0.0.1", "", false, "10.0.0.1"},
		{"10.0.0.1", "unknown", false, "10.0.0.1"},
		{"10.0.0.1", "203.0.113.9, nonsense", false, "10.0.0.1"},
		{"10.0.0.1", "203.0.113.9, nonsense, 10.0.0.2", false, "10.0.0.2"},
		{"10.0.0.1", "198.51.100.7:1234", false, "198.51.100.7"},
		{"10.0.0.1", "[2001:db8::1]:80", false, "2001:db8::1"},
		{"10.0.0.1", "2001:db8::1", false, "2001:db8::1"},
		{"10.0.0.1", "::ffff:198.51.100.7", false, "198.51.100.7"},
		{"10.0.0.1", "198.51.100.7,", false, "10.0.0.1"},
		{"10.0.0.1", "fe80::1%eth0", false, "10.0.0.1"},
		{"10.0.0.1", "10.0.0.2, 10.0.0.3", false, "10.0.0.2"},
		{"10.0.0.1", `for=203.0.113.9, for="[2001:db8::1]:4711";proto=https`, true, "2001:db8::1"},
		{"10.0.0.1", `proto=https; For=198.51.100.7`, true, "198.51.100.7"},
		{"10.0.0.1", `for="_hidden", for=198.51.100.7;by=10.0.0.1, for=10.0.0.2`, true, "198.51.100.7"},
		{"10.0.0.1", `for=203.0.113.9, for=_hidden`, true, "10.0.0.1"},
		{"10.0.0.1", `for="203.0.113.9, for=198.51.100.7`, true, "198.51.100.7"}, // a quote left open swallows nothing
		{"10.0.0.1", "198.51.100.7", true, "10.0.0.1"},
	} {
		if got := admission.ClientOf(netip.MustParseAddr(x.peer), x.value, x.rfc, trusted); got != netip.MustParseAddr(x.want) {
			t.Errorf("%s with %q: %s, want %s", x.peer, x.value, got, x.want)
		}
	}
}

// FuzzForwarded: whatever the client's part of the header is, the address is the one that our proxy has added.
func FuzzForwarded(f *testing.F) {
	for _, s := range []string{"", "203.0.113.9", `for="`, `for="[::1]:80";by=x`, "10.0.0.1, unknown", "[", "::1%x", `a=b;for=1.2.3.4, "`, ",,,"} {
		f.Add(s, true)
		f.Add(s, false)
	}
	peer, client := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("198.51.100.7")
	trusted := func(a netip.Addr) bool { return a == peer }
	f.Fuzz(func(t *testing.T, value string, rfc bool) {
		added := client.String()
		if rfc {
			added = "for=" + added
		}
		if got := admission.ClientOf(peer, value+", "+added, rfc, trusted); got != client {
			t.Fatalf("%q: %s", value, got)
		}
		if got := admission.ClientOf(client, value, rfc, trusted); got != client {
			t.Fatalf("a stranger's %q: %s", value, got)
		}
		admission.ClientOf(peer, value, rfc, func(netip.Addr) bool { return rand.N(2) == 0 })
	})
}
