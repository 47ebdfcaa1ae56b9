package rules

import (
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/millrace/millrace/engine/event"
)

// The examples of the documents are read; those that are marked are refused with the lines below them.
func TestDocs(t *testing.T) {
	var text []byte
	for _, name := range []string{"rules.md", "webhooks.md", "bridges.md"} {
		doc, err := os.ReadFile("../../docs/" + name)
		if err != nil {
			t.Fatal(err)
		}
		text = append(text, doc...)
	}
	fence := regexp.MustCompile("(?s)(<!-- refused -->\n)?```yaml\n(.*?)```\n(?:\n```text\n(.*?)```\n)?")
	examples := fence.FindAllStringSubmatch(string(text), -1)
	if n := strings.Count(string(text), "```yaml"); len(examples) != n || n < 6 {
		t.Fatalf("%d of %d examples", len(examples), n)
	}
	o := testOptions()
	delete(o.Sinks, "box")
	for _, m := range examples {
		_, err := ParseBytes("rules.yaml", []byte(m[2]), o)
		switch {
		case m[1] == "" && err != nil:
			t.Errorf("%v in\n%s", err, m[2])
		case m[1] != "" && (err == nil || err.Error()+"\n" != m[3]):
			t.Errorf("got\n%v\nthe documents say\n%s", err, m[3])
		}
	}
	// The last that is refused is also shown with its excerpts.
	faults := &event.Faults{}
	for _, m := range examples {
		if _, err := ParseBytes("rules.yaml", []byte(m[2]), o); err != nil {
			errors.As(err, &faults)
		}
	}
	if !strings.Contains(string(text), strings.Join(strings.SplitAfter(faults.Long(), "\n")[:3], "")) {
		t.Errorf("the documents do not show\n%v", faults.Long())
	}
	for _, s := range []shape{rulesShape, topicShape, functionShape, limitsShape, subscriptionShape, retryShape, hostShape, scheduleShape, bridgeShape} {
		for _, key := range s.keys {
			if !strings.Contains(string(text), key) {
				t.Errorf("key %s is not in the documents", key)
			}
		}
	}
}
