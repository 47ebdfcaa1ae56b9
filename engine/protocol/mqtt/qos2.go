package mqtt

// An inbox is what a session knows of messages of QoS 2 from its client that are not released yet.
type inbox struct{}
