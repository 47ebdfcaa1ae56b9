package filters

import (
	"encoding/json"
	"math/rand/v2"
	"testing"
)

// Strings end where encoding/json says they do, wherever in a word of eight bytes something stands that means anything.
func TestStringsEndWhereTheyEnd(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	alphabet := []byte("aaaaaaaaaaaaaaaaaaaaaaaaaaaz~!]^[\x7f\x80\xa0\xa2\xdc\xff\x1f\x00\t\"\"\\\\nu0041 #")
	for range 200_000 {
		b := []byte{'"'}
		for range rng.IntN(40) {
			b = append(b, alphabet[rng.IntN(len(alphabet))])
		}
		want := 0
		for i := 1; i < len(b) && want == 0; i++ {
			if b[i] == '"' && json.Valid(b[:i+1]) {
				want = i + 1
			}
		}
		end, _, ok := skipString(string(b), 0)
		if ok != (want > 0) || ok && end != want {
			t.Fatalf("%q ends at %d, %t; want %d", b, end, ok, want)
		}
	}
}
