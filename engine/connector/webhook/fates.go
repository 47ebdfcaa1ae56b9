package webhook

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// A fate is what a receiver says of one event of a batch that it has answered 2xx.
type fate struct {
	index  int
	status int // 0: not said, it failed
	says   string
	wait   time.Duration
}

// tells reports whether the body of an answer of 2xx may speak of single events.
func (l *lane) tells() bool {
	return l.resp.StatusCode() == http.StatusMultiStatus || event.IsJSON(string(l.resp.Header.ContentType()))
}

// fates reads which of a batch's n events an answer of 2xx says to have failed; nil: none. What might speak of
// failures and cannot be read means that all have failed: sent twice is better than lost.
func (s *Sink) fates(l *lane, n int) (failed []error, err error) {
	if !l.tells() {
		return nil, nil
	}
	multi := l.resp.StatusCode() == http.StatusMultiStatus
	enc := string(l.resp.Header.ContentEncoding())
	var list []fate
	switch {
	case len(l.answer) > answerLimit:
		err = fmt.Errorf("over %d bytes", answerLimit)
	case !l.whole:
		err = errors.New("it broke off")
	case enc != "" && !strings.EqualFold(enc, "identity"):
		err = fmt.Errorf("it is encoded (%.20q) although no encoding was asked for", enc)
	case len(bytes.TrimSpace(l.answer)) == 0 && !multi:
	default:
		var known bool
		if list, known, err = parseFates(l.answer, n); err == nil && multi && !known {
			err = errors.New("it is neither a list nor an object with a list under \"failed\"")
		}
	}
	if err != nil {
		text := fmt.Sprintf("webhook %s answered %s to a batch of %d, and what it says of single events cannot be read, so all count as failed: %v",
			s.target.name, statusText(l.resp.StatusCode()), n, err)
		if len(l.answer) > 0 {
			text += "; it begins " + s.quote(l, string(l.answer))
		}
		return nil, &event.RetryAfter{Err: errors.New(text), Code: l.resp.StatusCode(),
			Wait: retryAfter(string(l.resp.Header.Peek("Retry-After")), s.o.Now())}
	}
	for _, f := range list {
		if f.status >= 200 && f.status <= 299 {
			continue
		}
		if failed == nil {
			failed = make([]error, n)
		}
		failed[f.index] = s.refused(l, f)
	}
	return failed, nil
}

// parseFates reads a list of indexes and objects, or an object that has one under "failed". known is false if the
// document is something else, such as {"ok":true}.
func parseFates(doc []byte, n int) (list []fate, known bool, err error) {
	if !json.Valid(doc) {
		return nil, false, errors.New("it is not JSON")
	}
	doc = bytes.TrimSpace(doc)
	named := doc[0] == '{'
	if named {
		var o struct {
			Failed json.RawMessage `json:"failed"`
		}
		if err := json.Unmarshal(doc, &o); err != nil {
			return nil, false, err
		}
		doc = o.Failed
	}
	if len(doc) == 0 || doc[0] != '[' {
		return nil, false, nil
	}
	var items []json.RawMessage
	if err := json.Unmarshal(doc, &items); err != nil {
		return nil, false, err
	}
	for i, item := range items {
		f, ours, err := parseFate(item, n)
		if !ours && !named && i == 0 {
			return nil, false, nil // a list of something else
		}
		if err != nil {
			return nil, false, fmt.Errorf("[%d]: %w", i, err)
		}
		list = append(list, f)
	}
	return list, true, nil
}

// parseFate reads an index, or an object with one. ours is false for what looks like neither.
func parseFate(item json.RawMessage, n int) (f fate, ours bool, err error) {
	var o struct {
		Index      json.RawMessage `json:"index"`
		Status     json.RawMessage `json:"status"`
		Error      json.RawMessage `json:"error"`
		RetryAfter json.RawMessage `json:"retryAfter"`
	}
	switch c := item[0]; {
	case c == '-' || c >= '0' && c <= '9':
		o.Index = item
	case c == '{':
		if err := json.Unmarshal(item, &o); err != nil {
			return f, false, err
		}
	}
	if o.Index == nil {
		return f, false, fmt.Errorf("%.60q; want an index, or an object with one under \"index\"", item)
	}
	index, err := strconv.Atoi(string(o.Index))
	if err != nil {
		return f, true, fmt.Errorf("index %.40s; want a whole number", o.Index)
	}
	if index < 0 || index >= n {
		return f, true, fmt.Errorf("index %d; the batch has 0 to %d", index, n-1)
	}
	f.index = index
	if o.Status != nil && string(o.Status) != "null" {
		if f.status, err = strconv.Atoi(string(o.Status)); err != nil || f.status < 100 || f.status > 599 {
			return f, true, fmt.Errorf("status %.40s; want an HTTP status, 100 to 599", o.Status)
		}
	}
	if o.RetryAfter != nil && string(o.RetryAfter) != "null" {
		seconds, err := strconv.ParseUint(string(o.RetryAfter), 10, 63)
		if err != nil && !errors.Is(err, strconv.ErrRange) {
			return f, true, fmt.Errorf("retryAfter %.40s; want whole seconds, 0 or more", o.RetryAfter)
		}
		f.wait = time.Duration(min(seconds, uint64(maxWait/time.Second))) * time.Second
	}
	if o.Error != nil && json.Unmarshal(o.Error, &f.says) != nil {
		f.says = string(o.Error)
	}
	return f, true, nil
}
