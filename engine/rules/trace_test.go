package rules

import (
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
)

func TestTraceOfATopic(t *testing.T) {
	off := event.Trace{Keep: event.NoTrace, Sample: 1}
	for _, c := range []struct {
		text  string
		want  event.Trace
		shown string
		bad   string
	}{
		{"{}", event.Trace{Keep: 24 * time.Hour, Sample: 1}, `"trace":{"keep":"1d","sample":1}`, ""},
		{"{trace: {keep: 1h, sample: 0.25}}", event.Trace{Keep: time.Hour, Sample: 0.25}, `"trace":{"keep":"1h","sample":0.25}`, ""},
		{"{trace: none}", off, `"trace":"none"`, ""},
		{"{trace: {keep: 0s}}", off, "", ""},
		{"{trace: {sample: 0}}", off, "", ""},
		{"{trace: {sample: 0, keep: 1h}}", off, "", ""},
		{"{trace: never}", off, "", `is "never"; want none, or a mapping such as {keep: 24h, sample: 1}`},
		{"{trace: {keep: 10ms}}", off, "", `is "10ms"; want 1s to 30d, or 0s for none`},
		{"{trace: {keep: 31d}}", off, "", `is "31d"; want a duration of 0s to 30d`},
		{"{trace: {sample: 2}}", off, "", `is "2"; want the share of events that is traced, 0 to 1`},
		{"{trace: {sample: NaN}}", off, "", "want the share of events"},
		{"{trace: {share: 1}}", off, "", "allowed: keep, sample"},
	} {
		set, err := ParseBytes("r.yaml", []byte("version: 1\ntopics:\n  a: "+c.text+"\n"), Options{})
		if c.bad != "" {
			if err == nil || !strings.Contains(err.Error(), c.bad) {
				t.Errorf("%s: %v\nwant %s", c.text, err, c.bad)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		if got := set.Topics[0].Trace; got != c.want {
			t.Errorf("%s: %+v, want %+v", c.text, got, c.want)
		}
		if got := string(set.JSON(true)); !strings.Contains(got, c.shown) {
			t.Errorf("%s is shown as %s", c.text, got)
		}
	}
}
