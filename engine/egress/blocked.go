package egress

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
)

// ErrBlocked is what errors of targets that may not be connected to wrap.
var ErrBlocked = errors.New("address not allowed as a target")

// Why a target was refused.
const (
	reasonSpecial  = iota // a special-purpose address
	reasonDenied          // by a rule of deny
	reasonUnlisted        // by no rule of allow, where only those count
	reasonNotation        // a host that programs read differently
	reasons
)

func reasonName(reason int) string {
	return [reasons]string{"special", "denied", "unlisted", "notation"}[reason]
}

func (d *Dialer) refused(reason int) { d.refusals[reason].Add(1) }

// Refusals counts the connections that were refused, by reason: special, denied, unlisted or notation.
func (d *Dialer) Refusals() map[string]uint64 {
	m := make(map[string]uint64, reasons)
	for i := range d.refusals {
		m[reasonName(i)] = d.refusals[i].Load()
	}
	return m
}

// A blockedError says which address of a host may not be connected to, and why.
type blockedError struct {
	host   string       // as it was given
	addr   netip.Addr   // invalid where the name or the port alone was refused
	prefix netip.Prefix // that holds addr, if that was it
	match  string       // what else of the target was it, such as "as *.example.com" or "port 25"
	why    string       // the registry's entry, or the rule
	hint   string       // what would allow it
	reason int
}

func (e *blockedError) Error() string {
	at := fmt.Sprintf("%.80s", e.host)
	switch a, err := netip.ParseAddr(e.host); {
	case err == nil && a == e.addr:
		at = a.String()
	case e.addr.IsValid():
		at += " has the address " + e.addr.String()
	}
	match := e.match
	if e.prefix.IsValid() {
		match = "in " + e.prefix.String()
	}
	return fmt.Sprintf("%s, %s (%s): not allowed as a target; %s", at, match, e.why, e.hint)
}

// Unwrap returns ErrBlocked.
func (e *blockedError) Unwrap() error { return ErrBlocked }

// checkName judges what needs no lookup: a name that may not be connected to is not looked up either, for the question
// itself leaves the network.
func (d *Dialer) checkName(r *ruleset, t target) error {
	for i := range r.deny {
		if rule := &r.deny[i]; len(rule.CIDRs) == 0 {
			if e := rule.denies(t, netip.Addr{}, netip.Prefix{}); e != nil {
				return e
			}
		}
	}
	if !r.Only || t.named {
		return nil
	}
	for i := range r.allow {
		if _, ok := r.allow[i].host(t.name); ok && r.allow[i].port(t.port) {
			return nil
		}
	}
	return unlisted(r, t, netip.Addr{})
}

// check judges one address of a target. IPv4 within IPv6 (mapped, compatible, translated, NAT64, 6to4, Teredo, ISATAP)
// counts as what it embeds.
func (d *Dialer) check(r *ruleset, t target, a netip.Addr) error {
	if a.Zone() != "" { // of a resolver; one that was typed is refused by checkHost. A Prefix contains no such address
		return &blockedError{host: t.host, addr: a, match: "zone " + strconv.Quote(a.Zone()), why: "which only link-local addresses need",
			hint: "a name that has an address without a zone is", reason: reasonNotation}
	}
	bare := a.Unmap()
	all := []netip.Addr{bare}
	if bare.Is6() {
		in := embedded(bare)
		all = append(all, in.v4[:in.n]...)
	}
	for i := range r.deny {
		for _, x := range all {
			if prefix, ok := r.deny[i].addr(x); ok {
				if e := r.deny[i].denies(t, a, prefix); e != nil {
					return e
				}
			}
		}
	}
	if t.named {
		return nil
	}
	s, isSpecial := special{}, false
	if !r.Private {
		s, isSpecial = d.rangeOf(bare)
	}
	if !isSpecial && !r.Only {
		return nil
	}
	for i := range r.allow {
		rule := &r.allow[i]
		if isSpecial && len(rule.CIDRs) == 0 { // a name may come to any address
			continue
		}
		_, host := rule.host(t.name)
		prefix, addr := rule.addr(bare)
		if isSpecial && !lifts(prefix, s.prefix, bare) {
			continue
		}
		if host && addr && rule.port(t.port) {
			return nil
		}
	}
	if !isSpecial {
		return unlisted(r, t, a)
	}
	hint := "--allow-private-targets allows it"
	if r.Source != "" {
		hint = "its range under allow in " + r.Source + " allows it"
	}
	return &blockedError{host: t.host, addr: a, prefix: s.prefix, why: s.name + ", " + s.by, hint: hint, reason: reasonSpecial}
}

// lifts reports whether a range of allow is meant for special addresses: it is no wider than the special range that holds
// the address. 0.0.0.0/0 means every public address, and not this machine as well. Where IPv6 carries a special IPv4
// address, it gives bits of that one.
func lifts(allow, special netip.Prefix, a netip.Addr) bool {
	switch {
	case special.Addr().Is4() == a.Is4():
		return allow.Bits() >= special.Bits()
	case sixToFour.Contains(a):
		return allow.Bits() > sixToFour.Bits()
	default:
		return allow.Bits() > 96
	}
}

// denies returns what a rule of deny says of a target whose address, if it is known by now, lies in prefix.
func (r *Rule) denies(t target, a netip.Addr, prefix netip.Prefix) error {
	pattern, host := r.host(t.name)
	if !host || !r.port(t.port) {
		return nil
	}
	e := &blockedError{host: t.host, addr: a, prefix: prefix, why: "denied by " + r.at(), hint: "its operator decides", reason: reasonDenied}
	switch {
	case pattern != "":
		e.match = "as " + pattern
	case len(r.Ports) > 0:
		e.match = fmt.Sprintf("port %d", t.port)
	}
	return e
}

func unlisted(r *ruleset, t target, a netip.Addr) error {
	source := r.Source
	if source == "" {
		source = "this process's options"
	}
	return &blockedError{host: t.host, addr: a, match: fmt.Sprintf("port %d", t.port), why: "in no rule of allow of " + source + ", where only those count",
		hint: "its operator decides", reason: reasonUnlisted}
}
