package filters

import "math/big"

func rational(t interface{ Fatalf(string, ...any) }, s string) *big.Rat {
	r, ok := new(big.Rat).SetString(s)
	if !ok {
		t.Fatalf("%q is no number", s)
	}
	return r
}

func exactly(o op, a, b *big.Rat) *big.Rat {
	r := new(big.Rat)
	switch o {
	case opAdd:
		return r.Add(a, b)
	case opSubtract:
		return r.Sub(a, b)
	}
	return r.Mul(a, b)
}
