package hooks

import (
	"crypto/hmac"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"hash"
	"strings"
	"sync"
	"unsafe"

	"github.com/millrace/millrace/engine/event"
)

const (
	maxSignatures = 16      // of one webhook
	maxSum        = 64      // bytes of a MAC: SHA-512
	maxSecrets    = 8       // of one source
	maxSecret     = 4 << 10 // bytes of one
)

// keys are the secrets of a source: what one of them has signed is good.
type keys struct {
	list []*sync.Pool // of *keyed
}

// keyed is a hash keyed by one secret, with room for what it computes, so that a webhook costs no allocation.
type keyed struct {
	hash hash.Hash
	sum  [maxSum]byte
}

func newKeys(of func() hash.Hash, secrets [][]byte) keys {
	k := keys{}
	for _, secret := range secrets {
		k.list = append(k.list, &sync.Pool{New: func() any { return &keyed{hash: hmac.New(of, secret)} }})
	}
	return k
}

// match reports whether one of the signatures is that of the parts, one after another, by one of the secrets. How long
// it takes depends on how many there are and on the parts' length alone. What matched is the webhook's proof.
func (k keys) match(h *event.Hook, sigs *signatures, parts ...[]byte) bool {
	good := 0
	for _, pool := range k.list {
		m := pool.Get().(*keyed)
		m.hash.Reset()
		for _, p := range parts {
			_, _ = m.hash.Write(p)
		}
		sum := m.hash.Sum(m.sum[:0])
		for i := range sigs.n {
			if subtle.ConstantTimeCompare(sum, sigs.list[i][:sigs.size[i]]) == 1 {
				good = 1
				copy(h.Proof[:], sum)
			}
		}
		pool.Put(m)
	}
	h.Proved = good == 1
	return h.Proved
}

// signatures are those of one webhook, decoded.
type signatures struct {
	list [maxSignatures][maxSum]byte
	size [maxSignatures]int
	n    int
	seen int // those that cannot be decoded included
}

// The encodings of signatures.
const (
	inHex    = "hex"
	inBase64 = "base64"
)

// add decodes one more. One that is no signature is as good as a wrong one: others may be right. It reports false past the
// bound.
func (s *signatures) add(text, encoding string) bool {
	if s.seen++; s.seen > maxSignatures {
		return false
	}
	var room [2 * maxSum]byte
	b := bytesOf(text)
	n, err := 0, error(nil)
	switch {
	case encoding == inHex && len(b) <= 2*maxSum:
		n, err = hex.Decode(room[:], b)
	case encoding == inBase64 && base64.StdEncoding.DecodedLen(len(b)) <= len(room):
		n, err = base64.StdEncoding.Strict().Decode(room[:], b)
	default:
		return true
	}
	if err == nil && n > 0 && n <= maxSum {
		copy(s.list[s.n][:], room[:n])
		s.size[s.n] = n
		s.n++
	}
	return true
}

// bytesOf borrows a text's bytes, which must not be changed.
func bytesOf(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }

// secretsOf are the secrets of `secret` and `secrets` together.
func secretsOf(one string, more []string) []string {
	if one == "" {
		return more
	}
	return append([]string{one}, more...)
}

// checkSecrets says what is wrong with them; key is what rules call the first.
func checkSecrets(key, one string, more []string) (faults []event.Fault) {
	all := secretsOf(one, more)
	switch {
	case len(all) == 0:
		return []event.Fault{{At: key, Detail: "missing; want the secret that the sender signs with, such as ${env:NAME}"}}
	case len(all) > maxSecrets:
		return []event.Fault{{At: key + "s", Detail: fmt.Sprintf("%d are given; at most %d are allowed while they rotate", len(all), maxSecrets)}}
	}
	for i, s := range all {
		at := key
		if one == "" {
			at = fmt.Sprintf("%ss[%d]", key, i)
		} else if i > 0 {
			at = fmt.Sprintf("%ss[%d]", key, i-1)
		}
		switch {
		case s == "":
			faults = append(faults, event.Fault{At: at, Detail: "is empty; anybody could sign with it"})
		case len(s) > maxSecret:
			faults = append(faults, event.Fault{At: at, Detail: fmt.Sprintf("has %d bytes; at most %d are allowed", len(s), maxSecret)})
		case strings.TrimSpace(s) != s:
			faults = append(faults, event.Fault{At: at, Detail: "begins or ends with white space, which no sender's secret does; look how it was copied"})
		}
	}
	return faults
}

func invalid(faults []event.Fault) error {
	if len(faults) == 0 {
		return nil
	}
	return &event.Faults{Is: event.ErrInvalid, List: faults}
}

func asBytes(texts []string) [][]byte {
	out := make([][]byte, len(texts))
	for i, s := range texts {
		out[i] = []byte(s)
	}
	return out
}
