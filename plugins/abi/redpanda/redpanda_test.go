package redpanda_test

import (
	"testing"

	"github.com/millrace/millrace/plugins"
	"github.com/millrace/millrace/plugins/abi/redpanda"
	"github.com/millrace/millrace/plugins/abitest"
)

func TestEnrichGo(t *testing.T) {
	abitest.Run(t, abitest.Guest{Name: "Redpanda's Go SDK", Module: abitest.GoCommand(t, "testdata/enrich"), ABIs: []plugins.ABI{redpanda.ABI{}},
		Lacks: abitest.Text | abitest.Reject | abitest.Reply | abitest.Pass})
}
