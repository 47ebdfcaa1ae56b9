package event

// A Shelf is one of the tables in which protocols keep what must outlive a connection or the process. They are
// counted, backed up and restored as all tables are.
type Shelf uint8

// The shelves.
const (
	ShelfSessions Shelf = iota // who comes back, what he subscribed to and how far he came
	ShelfPackets               // packet ids under way, each with what it stands for
	ShelfRetained              // the last event under each name that kept one
	Shelves                    // how many there are
)

// Bounds of a row of a shelf and of one write to them.
const (
	MaxShelfKey   = 4 << 10 // bytes
	MaxShelfValue = 4 << 20 // bytes
	MaxShelfRows  = 10_000
)

// A ShelfRow is one change of a shelf: Value is put under Key, nil removes it. With Under all that begins with Key is
// removed, and Value must be nil.
type ShelfRow struct {
	Shelf Shelf
	Key   string
	Value []byte
	Under bool
}
