package engine

type shadow struct{ digest string }
