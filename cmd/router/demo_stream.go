package main

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"strings"
)

// demoStream reads the data lines of a Server-Sent Events stream.
type demoStream struct {
	resp *http.Response
	scan *bufio.Scanner
}

func (d *demo) openStream(ctx context.Context) (*demoStream, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.base+"/v1/topics/audit/stream", nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("stream of topic audit: %s", resp.Status)
	}
	return &demoStream{resp, bufio.NewScanner(resp.Body)}, nil
}

func (s *demoStream) next() (string, error) {
	for s.scan.Scan() {
		if data, ok := strings.CutPrefix(s.scan.Text(), "data: "); ok {
			return data, nil
		}
	}
	if err := s.scan.Err(); err != nil {
		return "", err
	}
	return "", fmt.Errorf("the stream ended")
}

// Close ends the stream.
func (s *demoStream) Close() { s.resp.Body.Close() }
