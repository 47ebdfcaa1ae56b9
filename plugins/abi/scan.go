package abi

import "encoding/json"

// This file walks JSON that event.CheckJSON has found whole.

func space(b []byte, at int) int {
	for b[at] == ' ' || b[at] == '\n' || b[at] == '\r' || b[at] == '\t' {
		at++
	}
	return at
}

// valueEnd is the end of the value that begins at b[at].
func valueEnd(b []byte, at int) int {
	switch b[at] {
	case '"':
		return stringEnd(b, at)
	case '{', '[':
		for depth := 0; ; at++ {
			switch b[at] {
			case '"':
				at = stringEnd(b, at) - 1
			case '{', '[':
				depth++
			case '}', ']':
				if depth--; depth == 0 {
					return at + 1
				}
			}
		}
	}
	for at < len(b) && b[at] != ',' && b[at] != '}' && b[at] != ']' && b[at] > ' ' {
		at++
	}
	return at
}

func stringEnd(b []byte, at int) int {
	for at++; b[at] != '"'; at++ {
		if b[at] == '\\' {
			at++
		}
	}
	return at + 1
}

// elements yields the values of an array.
func elements(array []byte, yield func(value []byte) error) error {
	for at := space(array, 1); array[at] != ']'; {
		end := valueEnd(array, at)
		if err := yield(array[at:end:end]); err != nil {
			return err
		}
		if at = space(array, end); array[at] == ',' {
			at = space(array, at+1)
		}
	}
	return nil
}

// members yields the members of an object.
func members(object []byte, yield func(name string, value []byte) error) error {
	for at := space(object, 1); object[at] != '}'; {
		end := stringEnd(object, at)
		name := text(object[at:end])
		at = space(object, space(object, end)+1) // past the colon
		end = valueEnd(object, at)
		if err := yield(name, object[at:end:end]); err != nil {
			return err
		}
		if at = space(object, end); object[at] == ',' {
			at = space(object, at+1)
		}
	}
	return nil
}

// text is what a JSON string means.
func text(raw []byte) string {
	for _, c := range raw {
		if c == '\\' {
			var s string
			_ = json.Unmarshal(raw, &s) // it is a string
			return s
		}
	}
	return string(raw[1 : len(raw)-1])
}
