package httpapi

import (
	"bytes"
	"errors"
	"strings"
)

// chunks follows a chunked body as it comes in (RFC 9112, 7.1), and takes less than fasthttp does: every line ends with
// CRLF, also those of the trailers. Where a proxy in front and this server could see a body's end at two places, what
// lies between would be a request that the proxy never saw.
type chunks struct {
	at     chunkState
	size   int64 // of the chunk, then what is left of it
	digits int8
	over   int // bytes of extensions and trailers so far
}

type chunkState uint8

const (
	noChunks chunkState = iota // no chunked body is under way
	chunkSize
	chunkExtension
	chunkSizeLF
	chunkData
	chunkDataCR
	chunkDataLF
	trailerStart // of a line: a trailer, or the CR of the end
	trailerName
	trailerValue
	trailerLF
	chunksLF // the very last byte
	badChunks
)

var errChunks = errors.New("the chunked body is not well-formed")

// feed takes the next bytes of the connection. What follows the body's end is left alone. limit bounds what is not data.
func (c *chunks) feed(b []byte, limit int) error {
	for len(b) > 0 && c.at != noChunks {
		if c.at == chunkData {
			n := min(c.size, int64(len(b)))
			if c.size -= n; c.size == 0 {
				c.at = chunkDataCR
			}
			b = b[n:]
			continue
		}
		if c.at = c.next(b[0]); c.at == badChunks || c.over > limit {
			return errChunks
		}
		b = b[1:]
	}
	return nil
}

// next is the state behind one byte outside of data.
func (c *chunks) next(b byte) chunkState {
	then := func(want byte, next chunkState) chunkState {
		if b == want {
			return next
		}
		return badChunks
	}
	switch c.at {
	case chunkSize:
		if d := unhex(b); d < 16 {
			c.size, c.digits = c.size<<4|int64(d), c.digits+1
			if c.digits > 15 {
				return badChunks
			}
			return chunkSize
		}
		if c.digits == 0 {
			return badChunks
		}
		if b == ';' {
			return chunkExtension
		}
		return then('\r', chunkSizeLF)
	case chunkExtension:
		c.over++
		if b == '\r' {
			return chunkSizeLF
		}
		if isControl(b) {
			return badChunks
		}
		return chunkExtension
	case chunkSizeLF:
		c.digits = 0
		if c.size == 0 {
			return then('\n', trailerStart)
		}
		return then('\n', chunkData)
	case chunkDataCR:
		return then('\r', chunkDataLF)
	case chunkDataLF:
		return then('\n', chunkSize)
	case trailerStart:
		if b == '\r' {
			return chunksLF
		}
		if !isTokenByte(b) {
			return badChunks
		}
		c.over++
		return trailerName
	case trailerName:
		c.over++
		if b == ':' {
			return trailerValue
		}
		if !isTokenByte(b) {
			return badChunks
		}
		return trailerName
	case trailerValue:
		c.over++
		if b == '\r' {
			return trailerLF
		}
		if isControl(b) {
			return badChunks
		}
		return trailerValue
	case trailerLF:
		return then('\n', trailerStart)
	case chunksLF:
		return then('\n', noChunks)
	}
	return badChunks
}

func isControl(b byte) bool { return b < ' ' && b != '\t' || b == 0x7F }

// saysChunked reports whether one of the lines behind the first is a Transfer-Encoding. Which one it is, and whether it
// may be there, is found by headers.read.
func saysChunked(head []byte) bool {
	const name = "transfer-encoding"
	for {
		i := bytes.IndexByte(head, '\n')
		if i < 0 || len(head) < i+1+len(name) {
			return false
		}
		head = head[i+1:]
		if head[0]|0x20 == 't' && strings.EqualFold(borrow(head[:len(name)]), name) {
			return true
		}
	}
}
