package mqtt

// A will is what is published for a client that goes without saying so (3.1.2.5).
type will struct{}
