package httpapi

import (
	"time"

	"github.com/millrace/millrace/engine/admission"
)

// arriving is a large body that is being read.
type arriving struct {
	began   time.Time // zero while there is none
	until   time.Time
	got     int
	metered bool // its length is not known: it reserves as it comes

	stranger bool // nobody known sends it
}

// expect prepares a connection for a body of n bytes, -1 if nobody knows. Room for all of it is taken at once: that is
// how much memory the parser takes before it reads.
func (c *conn) expect(n int64, stranger bool) error {
	now := time.Now()
	c.incoming = arriving{began: now, until: now.Add(c.s.o.BodyTimeout), metered: n < 0, stranger: stranger}
	if share := c.s.door.ForStrangers(); stranger && n > share {
		c.s.door.Refused(admission.BodySize)
		return bodyTooLarge(int(share))
	}
	if n <= 0 {
		return nil
	}
	return c.s.door.Reserve(&c.room, n, stranger)
}

// readBody reads; a part of a large body at the rate that it must have, and within the budget.
func (c *conn) readBody(p []byte) (int, error) {
	in := &c.incoming
	if in.began.IsZero() {
		return c.Conn.Read(p)
	}
	if o := &c.s.o.Clients; o.BodyRate > 0 {
		at := in.began.Add(o.BodyGrace + time.Duration(float64(in.got)/float64(o.BodyRate)*float64(time.Second)))
		if at.After(in.until) {
			at = in.until
		}
		if err := c.SetReadDeadline(at); err != nil {
			return 0, err
		}
	}
	n, err := c.Conn.Read(p)
	in.got += n
	if in.metered && n > 0 {
		if c.refusal = c.s.door.Reserve(&c.room, int64(n), in.stranger); c.refusal != nil {
			return 0, c.refusal
		}
	}
	return n, err
}

// BodiesInFlight is the number of bytes of large bodies that are being read or answered, and how many may be.
func (s *Server) BodiesInFlight() (used, budget int64) {
	used, _, budget = s.door.InFlight()
	return used, budget
}
