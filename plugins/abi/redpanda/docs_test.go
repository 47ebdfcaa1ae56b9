package redpanda_test

import (
	"testing"

	"github.com/millrace/millrace/plugins/abi/redpanda"
	"github.com/millrace/millrace/plugins/abitest"
)

// The example of the documents says what they show.
func TestDocumentedTransform(t *testing.T) {
	const page = "../../../docs/abi-others.md"
	module := abitest.GoCommand(t, abitest.Source(t, abitest.Part(t, page, "transform"), "testdata/enrich"))
	got := abitest.Says(t, redpanda.ABI{}, module, nil, []byte("abc"), nil)
	if want := abitest.Part(t, page, "transform-says"); got != want {
		t.Errorf("got\n%s\nthe documents say\n%s", got, want)
	}
}
