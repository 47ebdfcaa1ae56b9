package access

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"hash/crc32"
	"math/big"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// A key is mrk_<id>_<secret><checksum>: 4 + 12 + 1 + 43 + 6 characters. The fixed shape is what secret scanners match
// (mrk_[a-z0-9]{12}_[0-9A-Za-z]{49}), and the checksum tells them, and us, a key from a word that looks like one.
const (
	keyPrefix   = "mrk_"
	idLen       = 12
	secretLen   = 43 // 256 bits in base 62
	checksumLen = 6  // 32 bits in base 62
	keyLen      = len(keyPrefix) + idLen + 1 + secretLen + checksumLen
	secretAt    = len(keyPrefix) + idLen + 1

	maxKeys    = 100_000
	maxKeyName = 128
	maxGrace   = 30 * 24 * time.Hour
)

const (
	base36 = "0123456789abcdefghijklmnopqrstuvwxyz"
	base62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)

// A Key is an API key as it is kept: without its secret.
type Key struct {
	ID     string // names the key; no secret
	Name   string // whose or what for; principal "key:<Name>"
	Prefix string // "mrk_<id>_", what may be shown of the key
	// Hash is the SHA-256 of the secret and its checksum. A fast hash will do: slow ones (bcrypt, argon2) are for passwords, which
	// people choose and which can be guessed; 256 random bits cannot, at any speed, and a hash that costs 100 ms for
	// every request would be a way to stop the router.
	Hash     [sha256.Size]byte
	Previous [sha256.Size]byte // the hash before the last rotation, good until Grace
	Grace    time.Time         // zero: Previous is not good
	Roles    []string
	Tenant   string // "" is all names
	Created  time.Time
	Expires  time.Time // zero: never
	Rotated  time.Time // zero: never
	Used     time.Time // about when last used, kept now and then; zero: not known
}

// A KeyStore keeps keys. Calls may run at the same time.
type KeyStore interface {
	// Keys returns all keys in any order.
	Keys(ctx context.Context) ([]Key, error)
	// PutKey keeps k in place of what has its ID, and returns once that would survive a power cut.
	PutKey(ctx context.Context, k Key) error
	// DeleteKey returns nil too where there is no such key.
	DeleteKey(ctx context.Context, id string) error
}

// held is a key in use; all but its atomics stays as it is.
type held struct {
	key       Key
	principal *Principal
	used      atomic.Int64 // unix seconds of the last use
	kept      atomic.Int64 // of used, what the store has
}

// keyring is the keys in memory, replaced as a whole: keys change rarely and are asked for all the time.
type keyring struct {
	store KeyStore
	byID  atomic.Pointer[map[string]*held]
}

func (r *keyring) load(ctx context.Context, store KeyStore) error {
	r.store = store
	byID := map[string]*held{}
	r.byID.Store(&byID)
	if store == nil {
		return nil
	}
	keys, err := store.Keys(ctx)
	if err != nil {
		return err
	}
	for _, k := range keys {
		h := &held{key: k}
		if !k.Used.IsZero() {
			h.used.Store(k.Used.Unix())
			h.kept.Store(k.Used.Unix())
		}
		byID[k.ID] = h
	}
	return nil
}

// compile gives every key the principal that its roles come to under what is in force.
func (r *keyring) compile(f *inForce) {
	last := *r.byID.Load()
	next := make(map[string]*held, len(last))
	for id, h := range last {
		next[id] = h.with(h.key, f)
	}
	r.byID.Store(&next)
}

// with is h with its key changed.
func (h *held) with(k Key, f *inForce) *held {
	n := &held{key: k, principal: f.principal("key:"+k.Name, k.Tenant, k.Roles)}
	n.principal.id = "key:" + k.ID
	n.used.Store(h.used.Load())
	n.kept.Store(h.kept.Load())
	if !k.Expires.IsZero() {
		n.principal.expires = nanos(k.Expires)
	}
	return n
}

// errExpired is what was good once.
var errExpired = fmt.Errorf("%w: expired", ErrUnauthenticated)

var (
	errKeyForm = fmt.Errorf("%w: this is no complete API key: it has the form mrk_<id>_<secret> of %d characters; copy the whole of it", ErrUnauthenticated, keyLen)
	errKeyTypo = fmt.Errorf("%w: the API key is mistyped: its checksum does not fit; copy the whole of it", ErrUnauthenticated)
	errKey     = fmt.Errorf("%w: the API key is not known here: it was revoked, or is another router's", ErrUnauthenticated)
	errKeyOld  = fmt.Errorf("%w: the API key is past its life; ask for a new one", errExpired)
)

// find returns whose key it is. What a good key need not pass, its form and its checksum, is looked at once it is not
// good, to say why.
func (r *keyring) find(text string, now time.Time) (*Principal, error) {
	if len(text) != keyLen || text[secretAt-1] != '_' {
		return nil, errKeyForm
	}
	h := (*r.byID.Load())[text[len(keyPrefix):secretAt-1]]
	if h == nil || !h.good(hashOf(text), now) {
		if err := checkKey(text); err != nil {
			return nil, err
		}
		return nil, errKey
	}
	if h.principal.expires != 0 && now.UnixNano() >= h.principal.expires {
		return nil, errKeyOld
	}
	// A store of the same second over and over would have the cores pass the line around.
	if s := now.Unix(); h.used.Load() != s {
		h.used.Store(s)
	}
	return h.principal, nil
}

// hashOf is the SHA-256 of a whole key's secret and checksum: 49 bytes, which is one block of it.
func hashOf(text string) digest { return sha256.Sum256(bytesOf(text[secretAt:])) }

// good reports whether sum is that of the secret, or of the one before within its grace.
func (h *held) good(sum digest, now time.Time) bool {
	good := subtle.ConstantTimeCompare(sum[:], h.key.Hash[:])
	if !h.key.Grace.IsZero() && now.Before(h.key.Grace) {
		good |= subtle.ConstantTimeCompare(sum[:], h.key.Previous[:])
	}
	return good == 1
}

// checkKey holds text to the form of a key.
func checkKey(text string) error {
	if len(text) != keyLen || text[:len(keyPrefix)] != keyPrefix || text[secretAt-1] != '_' {
		return errKeyForm
	}
	for i := len(keyPrefix); i < secretAt-1; i++ {
		if c := text[i]; (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return errKeyForm
		}
	}
	for i := secretAt; i < keyLen; i++ {
		if c := text[i]; (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			return errKeyForm
		}
	}
	n := checksum(text[:keyLen-checksumLen])
	for i := keyLen - 1; i >= keyLen-checksumLen; i-- {
		if text[i] != base62[n%62] {
			return errKeyTypo
		}
		n /= 62
	}
	return nil
}

// newSecret returns a whole new key of the id. crypto/rand.Read does not fail: it ends the process instead.
func newSecret(id string) string {
	var b [32]byte
	rand.Read(b[:])
	text := keyPrefix + id + "_" + inBase62(new(big.Int).SetBytes(b[:]), secretLen)
	return text + inBase62(big.NewInt(int64(checksum(text))), checksumLen)
}

// checksum is of all that stands before it.
func checksum(s string) uint32 { return crc32.ChecksumIEEE(bytesOf(s)) }

func inBase62(n *big.Int, width int) string {
	out := make([]byte, width)
	base, digit := big.NewInt(62), new(big.Int)
	for i := range out {
		n.DivMod(n, base, digit)
		out[width-1-i] = base62[digit.Int64()]
	}
	return string(out)
}

func newID() string {
	out := make([]byte, 0, idLen)
	var b [1]byte
	for len(out) < idLen {
		if rand.Read(b[:]); b[0] < 252 { // 7 × 36: every digit as likely as the next
			out = append(out, base36[b[0]%36])
		}
	}
	return string(out)
}

// errNoKeys is what managing keys comes to without a store.
var errNoKeys = fmt.Errorf("%w: this router keeps no API keys", event.ErrUnsupported)

// CreateKey makes a key of the name, roles, tenant and expiry of want, whose other fields are not looked at, and
// returns it with its whole text, which is shown this once and kept nowhere. by is who asks, for the audit log.
func (g *Guard) CreateKey(ctx context.Context, by *Principal, want Key) (Key, string, error) {
	g.change.Lock()
	defer g.change.Unlock()
	if g.keys.store == nil {
		return Key{}, "", errNoKeys
	}
	now := g.o.Now()
	if err := g.checkNewKey(&want, now); err != nil {
		return Key{}, "", err
	}
	if g.Off() && !g.rules.Load().lasting(want) {
		return Key{}, "", event.Bad(event.ErrConflict, "roles", "the first key turns access control on, and nobody could make others: give it the role admin, "+
			"no tenant and no expiry, or start the router with MILLRACE_TOKEN or --access")
	}
	id := newID()
	for (*g.keys.byID.Load())[id] != nil {
		id = newID()
	}
	text := newSecret(id)
	k := Key{ID: id, Name: want.Name, Prefix: text[:secretAt], Hash: hashOf(text), Roles: slices.Clone(want.Roles),
		Tenant: want.Tenant, Created: now, Expires: want.Expires}
	if err := g.keys.store.PutKey(ctx, k); err != nil {
		return Key{}, "", fmt.Errorf("cannot keep the new API key: %w", err)
	}
	g.keep(k)
	if len(*g.keys.byID.Load()) == 1 {
		g.anyone.Swap(anyone()).ended.Store(true)
	}
	g.Changed(by, "key", id, "created: name "+k.Name+", roles "+strings.Join(k.Roles, " "))
	return k, text, nil
}

// checkNewKey holds what is asked for to the rules, and writes the tenant in its full form.
func (g *Guard) checkNewKey(want *Key, now time.Time) error {
	var errs []error
	fault := func(at, format string, args ...any) {
		errs = append(errs, event.Invalid(at, fmt.Sprintf(format, args...)))
	}
	if why := checkKeyName(want.Name); why != "" {
		fault("name", "%s", why)
	}
	if len(want.Roles) == 0 {
		fault("roles", "are missing: a key without a role may do nothing; the roles are %s", strings.Join(g.roleNames(), ", "))
	}
	if len(want.Roles) > maxRoles {
		fault("roles", "are %d; at most %d are allowed", len(want.Roles), maxRoles)
		return errors.Join(errs...)
	}
	known := g.rules.Load().roles
	for i, r := range want.Roles {
		if known[r] == nil {
			fault(fmt.Sprintf("roles[%d]", i), "%.60q is no role here%s; the roles are %s", r, suggest(r, g.roleNames()), strings.Join(g.roleNames(), ", "))
		}
	}
	tenant, why := fullTenant(want.Tenant)
	if why != "" {
		fault("tenant", "%s", why)
	}
	want.Tenant = tenant
	if !want.Expires.IsZero() && !want.Expires.After(now) {
		fault("expires", "is %s, which is past", want.Expires.UTC().Format(time.RFC3339))
	}
	if n := len(*g.keys.byID.Load()); n >= maxKeys {
		errs = append(errs, event.Bad(event.ErrFull, "keys", fmt.Sprintf("there are %d; at most %d are kept: revoke those that are not used", n, maxKeys)))
	}
	return errors.Join(errs...)
}

func checkKeyName(s string) string {
	if s == "" || len(s) > maxKeyName {
		return fmt.Sprintf("has %d bytes; a key's name is 1 to %d characters that say whose it is", len(s), maxKeyName)
	}
	for i := 0; i < len(s); i++ {
		if c := s[i]; c <= ' ' || c >= 0x7F {
			return fmt.Sprintf("%.60q has %q at %d; a key's name is of printable ASCII without spaces", s, c, i)
		}
	}
	return ""
}

// RotateKey gives a key a new secret and returns its whole text. The one before stays good for grace, up to 30 days
// and not past the key's expiry; zero ends it at once, and so does the next rotation.
func (g *Guard) RotateKey(ctx context.Context, by *Principal, id string, grace time.Duration) (Key, string, error) {
	g.change.Lock()
	defer g.change.Unlock()
	h := (*g.keys.byID.Load())[id]
	if h == nil {
		return Key{}, "", noKey(id)
	}
	if grace < 0 || grace > maxGrace {
		return Key{}, "", event.Invalid("grace", fmt.Sprintf("is %s; want 0s to %s", grace, maxGrace))
	}
	now := g.o.Now()
	if !h.key.Expires.IsZero() && !now.Before(h.key.Expires) {
		return Key{}, "", fmt.Errorf("%w: the API key %s has expired: make a new one", event.ErrConflict, id)
	}
	text := newSecret(id)
	k := h.current()
	k.Previous, k.Grace = k.Hash, now.Add(grace)
	k.Hash, k.Rotated = hashOf(text), now
	if grace == 0 {
		k.Previous, k.Grace = [sha256.Size]byte{}, time.Time{}
	}
	if err := g.keys.store.PutKey(ctx, k); err != nil {
		return Key{}, "", fmt.Errorf("cannot keep the new secret: %w", err)
	}
	if grace == 0 {
		g.keep(k)
	} else { // who came in with the old secret stays
		n := &held{key: k, principal: h.principal}
		n.used.Store(h.used.Load())
		n.kept.Store(h.used.Load())
		g.keys.swap(id, n)
	}
	g.Changed(by, "key", id, fmt.Sprintf("rotated: the old secret is good for another %s", grace))
	return k, text, nil
}

// RevokeKey makes a key good for nothing from now on, on connections that are open too. Where keys alone guard, the last
// of an admin stays: event.ErrConflict.
func (g *Guard) RevokeKey(ctx context.Context, by *Principal, id string) error {
	g.change.Lock()
	defer g.change.Unlock()
	h := (*g.keys.byID.Load())[id]
	if h == nil {
		return noKey(id)
	}
	if err := g.mayLose(h.key); err != nil {
		return err
	}
	if err := g.keys.store.DeleteKey(ctx, id); err != nil {
		return fmt.Errorf("cannot revoke API key %s: %w", id, err)
	}
	g.keys.replace(id, nil)
	g.Changed(by, "key", id, "revoked: name "+h.key.Name)
	return nil
}

// mayLose refuses to revoke the key without which nobody could make others, or everybody could do everything. g.change
// is held: of two keys that are revoked at once, the second is looked at without the first.
func (g *Guard) mayLose(k Key) error {
	if !g.o.Off { // a token or a policy lets somebody in
		return nil
	}
	f := g.rules.Load()
	others, admins := 0, 0
	for id, h := range *g.keys.byID.Load() {
		if id == k.ID {
			continue
		}
		others++
		if f.lasting(h.key) {
			admins++
		}
	}
	switch {
	case others == 0 && g.stays.Load():
		return event.Bad(event.ErrConflict, "key", "it is the last, and nobody could make another: make another first")
	case others > 0 && admins == 0 && f.lasting(k):
		return event.Bad(event.ErrConflict, "key", "it is the last of an admin: nobody could manage the others; make another first, or start the router with MILLRACE_TOKEN")
	}
	return nil
}

// lasting says whether k lets somebody manage keys for as long as it is there.
func (f *inForce) lasting(k Key) bool {
	return k.Expires.IsZero() && f.principal("", k.Tenant, k.Roles).Check(Admin, Router, "") == nil
}

func noKey(id string) error { return fmt.Errorf("API key %.40q: %w", id, event.ErrNotFound) }

// keep puts k in use. g.change is held.
func (g *Guard) keep(k Key) {
	h := (*g.keys.byID.Load())[k.ID]
	if h == nil {
		h = &held{}
	}
	g.keys.replace(k.ID, h.with(k, g.rules.Load()))
}

// replace is swap, and ends who came in with what it was.
func (r *keyring) replace(id string, h *held) {
	was := (*r.byID.Load())[id]
	r.swap(id, h)
	if was != nil && was.principal != nil {
		was.principal.ended.Store(true)
	}
}

// swap puts h in place of one key; nil is none.
func (r *keyring) swap(id string, h *held) {
	last := *r.byID.Load()
	next := make(map[string]*held, len(last)+1)
	for k, v := range last {
		next[k] = v
	}
	delete(next, id)
	if h != nil {
		next[id] = h
	}
	r.byID.Store(&next)
}

// current is the key with when it was last used.
func (h *held) current() Key {
	k := h.key
	k.Roles = slices.Clone(k.Roles)
	if s := h.used.Load(); s != 0 {
		k.Used = time.Unix(s, 0)
	}
	return k
}

// ListKeys returns the keys by name, then id.
func (g *Guard) ListKeys() []Key {
	byID := *g.keys.byID.Load()
	keys := make([]Key, 0, len(byID))
	for _, h := range byID {
		keys = append(keys, h.current())
	}
	slices.SortFunc(keys, func(a, b Key) int {
		if c := strings.Compare(a.Name, b.Name); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return keys
}
