package httpapi

import (
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/valyala/fasthttp"
)

// answer sends JSON, which is copied.
func (c *call) answer(status int, body []byte) {
	c.ctx.SetStatusCode(status)
	c.ctx.Response.Header.SetContentTypeBytes(jsonType)
	c.ctx.Response.SetBody(body)
}

var jsonType = []byte("application/json")

// answerJSON sends v as JSON.
func (c *call) answerJSON(status int, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	c.ctx.SetStatusCode(status)
	c.ctx.Response.Header.SetContentTypeBytes(jsonType)
	c.ctx.Response.SetBodyRaw(append(body, '\n'))
	return nil
}

// empty answers 204.
func (c *call) empty() error {
	c.ctx.SetStatusCode(fasthttp.StatusNoContent)
	return nil
}

func appendInt(dst []byte, n int) []byte { return strconv.AppendInt(dst, int64(n), 10) }

// appendQuoted appends s as a JSON string.
func appendQuoted(dst []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < ' ' || c >= 0x7F || c == '"' || c == '\\' {
			q, _ := json.Marshal(s) // of a string: cannot fail
			return append(dst, q...)
		}
	}
	dst = append(dst, '"')
	dst = append(dst, s...)
	return append(dst, '"')
}
