package mqtt

import "sync/atomic"

// counters are a server's figures.
type counters struct {
	connections atomic.Int64
	received    [16]atomic.Uint64 // packets, by type
	sent        [16]atomic.Uint64
	refused     [256]atomic.Uint64 // messages of clients that were not stored, by reason code
	ended       [256]atomic.Uint64 // connections that the server ended, by reason code
	oversize    atomic.Uint64      // packets that were larger than their client takes
	slow        atomic.Uint64      // connections that ended because the client did not read
}

// Stats are a server's figures.
type Stats struct {
	Connections int // open ones, those without a CONNECT too
	Sessions    int
	Retained    int
	Wills       int
	WillBytes   int64           // that they take in memory
	Received    [16]uint64      // packets by type, since the start
	Sent        [16]uint64      // likewise
	Refused     map[byte]uint64 // messages of clients that were not stored, by reason code
	Ended       map[byte]uint64 // connections that were ended or not let in, by reason code
	Oversize    uint64          // packets that were not sent: their client takes no such large ones
	Slow        uint64          // connections that were ended because their client did not read

	Waiting     int64  // bytes that wait for clients
	Dropped     uint64 // messages of QoS 0 for which their client had no room
	Overtaken   uint64 // events that the ring dropped before a session had read them
	Expired     uint64 // messages that were past their expiry when it was their turn
	NotRetained uint64 // messages with RETAIN for which there was no room
}

// Stats returns the figures of now.
func (s *Server) Stats() Stats {
	c := &s.stats
	out := Stats{Connections: int(c.connections.Load()), Sessions: s.sessions.count(), Retained: s.retained.count(),
		Refused: map[byte]uint64{}, Ended: map[byte]uint64{}, Oversize: c.oversize.Load(), Slow: c.slow.Load(),
		Waiting: s.fan.queued.Load(), Dropped: s.fan.dropped.Load(), Overtaken: s.fan.overtaken.Load(), Expired: s.fan.expired.Load(), NotRetained: s.retained.refused.Load()}
	out.Wills, out.WillBytes = s.wills.count()
	for i := range c.received {
		out.Received[i], out.Sent[i] = c.received[i].Load(), c.sent[i].Load()
	}
	for i := range c.refused {
		if n := c.refused[i].Load(); n > 0 {
			out.Refused[byte(i)] = n
		}
		if n := c.ended[i].Load(); n > 0 {
			out.Ended[byte(i)] = n
		}
	}
	return out
}
