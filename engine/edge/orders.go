package edge

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"sync"
)

// orders tells x/crypto/acme where an order is, which it wants to know from every answer about it: a server need not
// repeat that when it is asked to finalize one (RFC 8555, 7.4), and some do not. It is an http.RoundTripper.
type orders struct {
	next http.RoundTripper

	mu sync.Mutex
	at map[string]string // finalize URL → the order's; of orders under way
}

// maxOrder bounds an answer, and maxOrders how many are remembered.
const (
	maxOrder  = 1 << 20
	maxOrders = 64
)

func (o *orders) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := o.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
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
	text, err := io.ReadAll(io.LimitReader(res.Body, maxOrder))
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
