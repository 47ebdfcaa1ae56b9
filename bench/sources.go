package main

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/engine/protocol/hooks"
)

const hookBody = 4 << 10 // bytes of a webhook

// measureSources measures what it costs to verify a webhook beside the hash that it cannot do without.
func measureSources() measurement {
	return measurement{name: "sources", gives: []string{"hook-verify", "hook-hash"},
		run: func(ctx context.Context, l *lab, _ func(string) float64, put func(string, float64)) error {
			const secret = "whsec_bench"
			now := time.Now()
			stamp := strconv.FormatInt(now.Unix(), 10)
			body := make([]byte, hookBody)
			signed := append([]byte(stamp+"."), body...)
			mac := hmac.New(sha256.New, []byte(secret))
			_, _ = mac.Write(signed)
			h := &event.Hook{Method: "POST", Body: body, Received: now, Headers: []event.HookHeader{{Name: "Host", Value: "hooks.example.com"},
				{Name: "Content-Type", Value: "application/json"}, {Name: "Content-Length", Value: "4096"}, {Name: "User-Agent", Value: "Stripe/1.0"},
				{Name: "Stripe-Signature", Value: "t=" + stamp + ",v1=" + hex.EncodeToString(mac.Sum(nil))}}}
			v, err := hooks.Stripe{Secret: secret}.Open()
			if err != nil {
				return err
			}
			// In turns, and the quickest of each: what else the machine does only adds.
			verify, hash := time.Hour, time.Hour
			var sum [sha256.Size]byte
			for end := now.Add(l.length() / 3); time.Now().Before(end) && ctx.Err() == nil; {
				begin := time.Now()
				for range 100 {
					if err := v.Verify(ctx, h, nil); err != nil {
						return fmt.Errorf("verify: %w", err)
					}
				}
				middle := time.Now()
				for range 100 {
					mac.Reset()
					_, _ = mac.Write(signed)
					mac.Sum(sum[:0])
				}
				verify, hash = min(verify, middle.Sub(begin)), min(hash, time.Since(middle))
			}
			put("hook-verify", float64(verify.Nanoseconds())/100/1000)
			put("hook-hash", float64(hash.Nanoseconds())/100/1000)
			return ctx.Err()
		}}
}

func sourceRows() []row {
	return []row{{key: "sources", name: "a webhook verified / its HMAC-SHA256 alone", values: []string{"hook-verify", "hook-hash"},
		figure: value("hook-verify"), limit: value("hook-hash"), show: micros, ratio: times, lower: true, floor: 1.2, aim: 1.1,
		note: "Stripe's scheme, a body of 4 KiB: headers are looked through, the signature is parsed and compared, the time is checked."}}
}
