package httpapi

// A stream is a reader whose events are sent as they come.
type stream struct {
	reader Reader
}
