package mqtt

import (
	"sync"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// A session is what a client and this server know of each other (4.1); it may outlive connections. At most one connection
// has it at a time: who takes it over waits until the one before has let go, so what only the connection's own goroutines
// touch needs no lock.
type session struct {
	owner    string // access.Principal.Identity of whose it is
	tenant   string
	clientID string
	out      *outbox
	in       inbox         // of QoS 2
	ending   chan struct{} // closed once it has ended or stays after all; nil: it is not being ended. sessions.mu guards it

	mu        sync.Mutex
	connected bool          // it has a connection
	left      time.Time     // when its last connection went; zero: it had none before this one
	stored    bool          // it has a row
	expiry    time.Duration // that it outlives its connection; 0: it ends with it
	caller    Caller        // of the connection that has it, or had it last
}

// persistent reports whether the session is to outlive its connection, and so a restart.
func (s *session) persistent() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.expiry > 0
}

// connectParams is what a client said in CONNECT that bounds what it is sent.
type connectParams struct {
	version        byte   // 4 or 5
	receiveMaximum uint16 // messages of QoS 1 and 2 that may be under way to it; 65,535 where it said nothing
	maxPacket      uint32 // bytes; 0: no bound
	problemInfo    bool   // it wants reason strings
	responseInfo   bool
	caller         Caller // whose access is asked
	present        bool   // the session was there before
}

// packetWriter is a connection's way out. Its methods may be called from several goroutines; an error means that the
// connection is over.
type packetWriter interface {
	// write takes a packet to be sent: with the next flush, or before if much has gathered. One that is larger than the
	// client takes is not sent and counted, which is no error, and is told by false (3.1.2.11.4: the server completes as if it
	// had sent it).
	write(pk *packets.Packet) (sent bool, err error)
	// flush sends what has gathered.
	flush() error
}
