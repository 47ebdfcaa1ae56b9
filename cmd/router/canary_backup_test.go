package main

import (
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"github.com/millrace/millrace/engine/access"
)

// TestCanariesInABackup looks for secrets in every file of a backup, and in every row of the store that is in it: there are
// literals that were sent over the API, which a restored router needs, and those of rules files, in their kept revisions;
// no value of a reference and no key.
func TestCanariesInABackup(t *testing.T) {
	f := &flock{t: t, secrets: map[string]string{}, env: map[string]string{}}
	dir := t.TempDir()
	path := filepath.Join(dir, "rules.yaml")
	ruled := f.plant("a literal in a rules file")
	rules := `version: 1
topics: {orders: {}}
subscriptions:
  ruled: {topic: orders, deliver: {webhook: {url: "http://127.0.0.1:1/", headers: {X-A: ` + inQuotes(ruled) + `, X-B: "` + f.variable("RULED") + `"}}}}
`
	if err := os.WriteFile(path, []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
	p := f.unstarted(path)
	p.o.auditTopic = "audit"
	p.start()
	t.Cleanup(func() { p.stop() })
	sent := f.plant("a literal over the API")[:20]
	if status, text := f.ask(p, "POST", "/v1/subscriptions", "application/json", `{"name":"sent","topic":"orders","deliver":{"webhook":{"url":"http://127.0.0.1:1/","headers":{"X-A":"`+sent+`"}}}}`); status != 201 {
		t.Fatal(status, text)
	}
	_, key, err := p.r.guard.CreateKey(t.Context(), nil, access.Key{Name: "ci", Roles: []string{"reader"}})
	if err != nil {
		t.Fatal(err)
	}
	f.secrets["an API key"] = key[len(key)-30:]
	f.ask(p, "POST", "/v1/publish", "application/json", `{"topic": "orders", "payload": 1}`)

	req, err := http.NewRequestWithContext(t.Context(), "GET", p.base+"/v1/backup", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+p.o.token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	tar, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		t.Fatal(resp.StatusCode, err)
	}
	file, data := filepath.Join(dir, "backup.tar"), filepath.Join(dir, "restored")
	if err := os.WriteFile(file, tar, 0o600); err != nil {
		t.Fatal(err)
	}
	if said := f.run(p, "", "restore", file, "--data", data); !strings.Contains(f.out[len(f.out)-1], "exit 0") {
		t.Fatal(said)
	}
	texts := []string{string(tar)}
	db, err := pebble.Open(filepath.Join(data, storeDir, "pebble"), &pebble.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	rows, err := db.NewIterWithContext(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.First(); rows.Valid(); rows.Next() { // tables are compressed: the file alone shows little
		texts = append(texts, string(rows.Key())+" "+string(rows.Value()))
	}
	for what, literal := range map[string]string{"a literal over the API": sent, "a literal in a rules file": ruled[:20]} {
		if !slices.ContainsFunc(texts, func(s string) bool { return strings.Contains(s, literal) }) {
			t.Errorf("%s is in none of %d rows: it is not looked for where it would be", what, len(texts))
		}
		delete(f.secrets, what)
	}
	for what, secret := range f.secrets {
		for _, form := range forms(secret) {
			for _, text := range texts {
				if i := strings.Index(text, form); i >= 0 {
					t.Errorf("%s is in the backup: …%q", what, text[max(0, i-100):min(len(text), i+len(form)+20)])
					break
				}
			}
		}
	}
}
