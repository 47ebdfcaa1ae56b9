package mqtt

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// An input reads a connection's packets. It keeps next to nothing while its client is silent, and nothing that a client has
// only said it would send.
type input struct {
	nc    net.Conn
	small [smallRead]byte // what a silent client's next bytes come into
	buf   []byte          // what packets are read into: small, one of pool, or memory of a large packet's own
	pool  *sync.Pool      // of *[readSize]byte
	block *[readSize]byte // buf is this one's, if any
	r, w  int             // buf[r:w] is read and not taken
	own   bool            // buf is memory of one large packet's own, which whoever takes that may keep
}

const (
	strangerFree = 4 << 10 // bytes of a CONNECT that are read without asking for room

	smallRead = 64
	readSize  = 16 << 10
	lull      = time.Second // of silence, after which memory is given back

	look = 50 * time.Millisecond // for what is there already when a deadline has passed
)

func newReadPool() *sync.Pool { return &sync.Pool{New: func() any { return new([readSize]byte) }} }

// rest gives memory back. Nothing may have been read that is not taken.
func (in *input) rest() {
	if in.block != nil {
		in.pool.Put(in.block)
	}
	in.block, in.buf, in.r, in.w, in.own = nil, in.small[:], 0, 0, false
}

// errLull says that a client has been silent until a deadline.
var errLull = errors.New("the client is silent")

// fill reads what is there, at least a byte; errLull if none came by the connection's deadline.
func (in *input) fill() error {
	n, err := in.nc.Read(in.buf[in.w:])
	in.w += n
	switch {
	case n > 0:
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return errLull
	case err == nil:
		return io.ErrNoProgress
	}
	return err
}

// room makes room for need bytes from r on. Before a client is known its packet's memory grows as it comes: what it only says
// it would send costs nothing.
func (in *input) room(need int, known bool) {
	filled := in.block == nil && in.w == len(in.buf) && len(in.buf) == smallRead // there is more than trickles in
	if need <= len(in.buf)-in.r && !filled {
		return
	}
	have := in.buf[in.r:in.w]
	last := in.block
	in.own = known && need > readSize
	switch {
	case !known:
		size := min(need, max(2*len(have), 4*smallRead))
		if size <= len(in.buf)-in.r {
			return
		}
		in.buf, in.block = make([]byte, size), nil
	case need <= smallRead && last == nil && len(in.buf) == smallRead && !filled:
	case need <= readSize:
		if last == nil {
			in.block = in.pool.Get().(*[readSize]byte)
		}
		in.buf = in.block[:]
	default:
		in.buf, in.block = make([]byte, need), nil
	}
	copy(in.buf, have)
	in.r, in.w = 0, len(have)
	if last != nil && in.block == nil {
		in.pool.Put(last)
	}
}

// next cuts the next packet off what has been read; ok is false where not all of it is there, and need is then how many bytes
// it has with its header, as far as that is known. body borrows buf until fill or room.
func (in *input) next(limit int) (h header, body []byte, need int, ok bool, bad *violation) {
	have := in.buf[in.r:in.w]
	h, n, bad := cutHeader(have)
	switch {
	case bad != nil:
		return h, nil, 0, false, bad
	case n == 0:
		return h, nil, len(have) + 1, false, nil
	}
	if need = n + h.size; need > limit {
		return h, nil, 0, false, &violation{packets.ErrPacketTooLarge.Code, fmt.Sprintf("a packet of %d bytes; the limit is %d", need, limit)}
	}
	if len(have) < need {
		return h, nil, need, false, nil
	}
	in.r += need
	return h, have[n:need:need], need, true, nil
}
