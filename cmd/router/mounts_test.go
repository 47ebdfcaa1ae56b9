package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/millrace/millrace/engine/protocol/hooks"
	"github.com/millrace/millrace/engine/protocol/httpapi"
	"github.com/millrace/millrace/engine/protocol/ws"
)

// What is mounted beside HTTP's own calls is described where these are.
func TestMountsAreDescribed(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "engine", "protocol", "httpapi", "openapi.json"))
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Paths map[string]map[string]json.RawMessage
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts(&ws.Server{}, &hooks.Server{}, &mqttFace{}) {
		if doc.Paths[m.Path][strings.ToLower(m.Method)] == nil {
			t.Errorf("openapi.json does not describe %s %s", m.Method, m.Path)
		}
	}
}

// docs/access.md says of every call what it asks for.
func TestAccessPageListsEveryCall(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "access.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range httpapi.Routes() {
		asks := "`" + string(r.May) + "`"
		switch {
		case r.In == httpapi.Anyone:
			asks = "nothing"
		case r.In == httpapi.Known:
			asks = "a known caller"
		case r.Or != "":
			asks += " or `" + string(r.Or) + "`"
		}
		if row := "| `" + r.Method + " " + r.Path + "` | " + asks + " |\n"; !strings.Contains(string(text), row) {
			t.Errorf("docs/access.md has no row %s", row)
		}
	}
}
