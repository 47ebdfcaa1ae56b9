package wasi_test

import (
	"testing"

	"github.com/millrace/millrace/plugins/abi/wasi"
	"github.com/millrace/millrace/plugins/abitest"
)

// The example of the documents says what they show.
func TestDocumentedProgram(t *testing.T) {
	const page = "../../../docs/abi-others.md"
	module := abitest.GoCommand(t, abitest.Source(t, abitest.Part(t, page, "program"), "testdata/enrich"))
	got := abitest.Says(t, wasi.ABI{}, module, map[string]string{"secret": "xyzzy"}, []byte(`{"a":1}`), []byte(`{"a":"xyzzy"}`))
	if want := abitest.Part(t, page, "program-says"); got != want {
		t.Errorf("got\n%s\nthe documents say\n%s", got, want)
	}
}
