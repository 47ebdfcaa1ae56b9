package extism_test

import (
	"testing"

	"github.com/millrace/millrace/plugins/abi/extism"
	"github.com/millrace/millrace/plugins/abitest"
)

// The example of the documents says what they show.
func TestDocumentedPlugin(t *testing.T) {
	const page = "../../../docs/abi-others.md"
	module := abitest.Go(t, abitest.Source(t, abitest.Part(t, page, "plugin"), "testdata/enrich"))
	got := abitest.Says(t, extism.ABI{}, module, map[string]string{"extism.input": "data", "greeting": "Hello"}, []byte("World"))
	if want := abitest.Part(t, page, "plugin-says"); got != want {
		t.Errorf("got\n%s\nthe documents say\n%s", got, want)
	}
}
