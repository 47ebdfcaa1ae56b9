package meter

// InstrumentExactly charges for every instruction when it is executed: what fuel is measured against.
func InstrumentExactly(module []byte) ([]byte, error) { return instrument(module, Options{}, 0, -1) }
