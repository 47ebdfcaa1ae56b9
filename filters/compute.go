package filters

import (
	"errors"
	"math/big"
	"strings"
)

// quotient is the number of significant digits that a division keeps where it does not come out even, as
// in IEEE 754's decimal128.
const quotient = 34

// compute does arithmetic, exactly: on int64 where it fits, else on decimals. + also joins two strings.
// Operands of other types, a missing one and a division by zero come to missing.
func compute(o op, a, b value) (value, error) {
	if o == opAdd && a.kind == text && b.kind == text {
		if len(a.s)+len(b.s) > maxText {
			return value{}, errText
		}
		return value{kind: text, s: a.s + b.s}, nil
	}
	if !a.isNumber() || !b.isNumber() {
		return value{}, nil
	}
	if a.kind == integer && b.kind == integer {
		if v, ok := computeInts(o, a.i, b.i); ok {
			return value{kind: integer, i: v}, nil
		}
	}
	x, ex, err1 := a.big()
	y, ey, err2 := b.big()
	if err := errors.Join(err1, err2); err != nil {
		return value{}, errDigit
	}
	switch o {
	case opMultiply:
		return fromBig(x.Mul(x, y), ex+ey)
	case opDivide:
		return divide(x, ex, y, ey)
	}
	if d := ex - ey; d > maxDigits || d < -maxDigits {
		return value{}, errDigit
	} else if d > 0 {
		x.Mul(x, ten(d))
		ex = ey
	} else {
		y.Mul(y, ten(-d))
	}
	switch o {
	case opAdd:
		return fromBig(x.Add(x, y), ex)
	case opSubtract:
		return fromBig(x.Sub(x, y), ex)
	}
	if y.Sign() == 0 {
		return value{}, nil
	}
	return fromBig(x.Rem(x, y), ex)
}

// computeInts is arithmetic within int64; ok is false where the result does not fit or is not whole.
func computeInts(o op, a, b int64) (v int64, ok bool) {
	switch o {
	case opAdd:
		v = a + b
		return v, (v > a) == (b > 0)
	case opSubtract:
		v = a - b
		return v, (v < a) == (b > 0)
	case opMultiply:
		const half = 1 << 31
		return a * b, a > -half && a < half && b > -half && b < half
	case opDivide:
		if b == 0 || b == -1 || a%b != 0 {
			return 0, false
		}
		return a / b, true
	}
	if b == 0 || b == -1 {
		return 0, false
	}
	return a % b, true
}

func negate(v value) (value, error) { return compute(opSubtract, value{kind: integer}, v) }

func divide(x *big.Int, ex int64, y *big.Int, ey int64) (value, error) {
	if y.Sign() == 0 {
		return value{}, nil
	}
	nx, ny := len(x.Text(10)), len(y.Text(10))
	keep := max(quotient, nx)
	shift := int64(max(keep+ny-nx+2, 0))
	neg := x.Sign()*y.Sign() < 0
	x.Abs(x).Mul(x, ten(shift)).Quo(x, y.Abs(y))
	exp := ex - ey - shift
	if extra := int64(len(x.Text(10)) - keep); extra > 0 { // half away from zero
		unit := ten(extra)
		x.Add(x, new(big.Int).Rsh(unit, 1)).Quo(x, unit)
		exp += extra
	}
	if neg {
		x.Neg(x)
	}
	return fromBig(x, exp)
}

func ten(n int64) *big.Int { return new(big.Int).Exp(big.NewInt(10), big.NewInt(n), nil) }

// big returns v as n × 10^exp.
func (v value) big() (n *big.Int, exp int64, err error) {
	if v.kind == integer {
		return big.NewInt(v.i), 0, nil
	}
	if len(v.s) > maxDigits {
		return nil, 0, errDigit
	}
	digits := strings.Replace(v.s, ".", "", 1)
	n, ok := new(big.Int).SetString(digits, 10)
	if !ok {
		return nil, 0, errDigit
	}
	if v.b {
		n.Neg(n)
	}
	return n, v.i - int64(len(digits)), nil
}

func fromBig(n *big.Int, exp int64) (value, error) {
	neg := n.Sign() < 0
	digits := n.Abs(n).Text(10)
	v := makeNumber(neg, digits, exp)
	if len(digits) > 3*maxDigits || v.kind == decimal && (v.i > maxExponent || v.i < -maxExponent) {
		return value{}, errDigit
	}
	return v, nil
}
