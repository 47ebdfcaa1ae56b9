// Package host is what the packages that call the router have in common.
package host

// An Error is why the router did not do what it was asked for.
type Error int64

// The errors.
const (
	NotFound    Error = -1
	Denied      Error = -2
	TooBig      Error = -3
	Deadline    Error = -4
	IO          Error = -5
	BadArgument Error = -6
)

func (e Error) Error() string {
	switch e {
	case NotFound:
		return "millrace: not found"
	case Denied:
		return "millrace: denied to this function"
	case TooBig:
		return "millrace: too big"
	case Deadline:
		return "millrace: the call's time is over"
	case IO:
		return "millrace: the other side could not be reached or failed"
	case BadArgument:
		return "millrace: an argument that the router does not take"
	}
	return "millrace: an error that this SDK does not know"
}

// Read calls read with a buffer, and again with a larger one if the answer is larger.
func Read(read func(buf []byte) int64) ([]byte, error) {
	buf := make([]byte, 256)
	for {
		n := read(buf)
		switch {
		case n < 0:
			return nil, Error(n)
		case n <= int64(len(buf)):
			return buf[:n], nil
		}
		buf = make([]byte, n)
	}
}

// Code is an error of a call that answers with 0 or a code.
func Code(n int32) error {
	if n == 0 {
		return nil
	}
	return Error(n)
}
