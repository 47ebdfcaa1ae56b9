package plugins

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestVeilHidesWhatAFunctionSaysOfItsSecrets(t *testing.T) {
	v := veilOf(map[string]string{"a": "canary/1", "short": "abc", "empty": ""})
	out := Outcome{
		Results:  []Result{{Verdict: Reject, Data: []byte("bad canary/1")}, {Verdict: Emit, Data: []byte("canary/1")}},
		Failures: []Failure{{Err: errors.New("trap at canary/1")}, {Err: errors.New("trap")}},
	}
	kept := out.Failures[1].Err
	v.outcome(&out)
	if got := string(out.Results[0].Data) + "," + string(out.Results[1].Data) + "," + out.Failures[0].Err.Error(); got != "bad ***,canary/1,trap at ***" || out.Failures[1].Err != kept {
		t.Errorf("%s", got)
	}
	if got := v.text("abc canary/1"); got != "abc ***" {
		t.Errorf("%s", got)
	}
	f := &Function{veil: v}
	f.logs.now = time.Now
	f.say = func(_ int, message string) {
		if strings.Contains(message, "canary") {
			t.Errorf("logged %s", message)
		}
	}
	f.log(1, []byte(strings.Repeat("x", maxMessage-4)+"canary/1")) // cut in its middle
}
