package mqtt

import (
	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/event"
)

// Names are the mappings and sources in force. They do not change: a reload puts others in their place and closes Changed.
type Names interface {
	// Route returns what the most specific mapping that fits a name says, and what its wildcards took.
	Route(name string) (m Mapping, captures []string, ok bool)
	// Sources are what MQTT clients may read.
	Sources() []Source
	// Changed is closed once others are in force.
	Changed() <-chan struct{}
}

// A Mapping says what a message becomes that comes under a name which fits Filter.
type Mapping struct{ Filter, Topic, Type, Subject, Key, Source string }

// A Source is something that MQTT clients read.
type Source struct {
	ID       string      // tells it from every other
	Kind     access.Kind // of what access is asked for
	Name     string
	Topic    string   // of the router, to be read
	Patterns []string // filters that its events' names lie in
	// NameOf appends the name under which clients read an event; false: it has none.
	NameOf func(dst []byte, rec event.Record) (name []byte, ok bool)
}
