package edge

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
)

// orders tells x/crypto/acme where an order is, which it wants to know from every answer about it: a server need not
// repeat that when it is asked to finalize one (RFC 8555, 7.4), and some do not. It also bounds what is read of any answer, which x/crypto/acme does
// not. It is an http.RoundTripper.
type orders struct {
	next http.RoundTripper

	mu sync.Mutex
	at map[string]string // finalize URL → the order's; of orders under way
}

// maxAnswer bounds an answer in bytes, and maxOrders how many orders are remembered.
const (
	maxAnswer = 1 << 20
	maxOrders = 64
)

func (o *orders) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := o.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	res.Body = &bounded{ReadCloser: res.Body, left: maxAnswer}
	if res.Header.Get("Location") == "" {
		o.mu.Lock()
		if at, ok := o.at[r.URL.String()]; ok {
			res.Header.Set("Location", at)
		}
		o.mu.Unlock()
		return res, nil
	}
	if res.StatusCode != http.StatusCreated {
		return res, nil
	}
	text, err := io.ReadAll(res.Body)
	res.Body.Close()
	if err != nil {
		return nil, err
	}
	res.Body = io.NopCloser(bytes.NewReader(text))
	var order struct {
		Finalize string `json:"finalize"`
	}
	if json.Unmarshal(text, &order) == nil && order.Finalize != "" { // else it is an account
		o.mu.Lock()
		if len(o.at) >= maxOrders {
			clear(o.at)
		}
		o.at[order.Finalize] = res.Header.Get("Location")
		o.mu.Unlock()
	}
	return res, nil
}

// A bounded body fails where it is longer than it may be: one that was cut might be taken for whole.
type bounded struct {
	io.ReadCloser
	left int64 // bytes; below 0 once there were more
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left < 0 {
		return 0, errLong
	}
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.ReadCloser.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return n - 1, errLong
	}
	return n, err
}

var errLong = fmt.Errorf("the ACME authority's answer is longer than %d bytes", maxAnswer)
