package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/engine/rules"
)

// A password that stands in the URL of another side, where none may, is in nothing that is said of it: what is wrong with
// the URL, the line that is quoted, the rules as they are shown and compared.
func TestBridgeURLsHideWhatIsInThem(t *testing.T) {
	const password = "hunter2hunter2"
	o := rules.Options{Sinks: sinkKinds(nil), Bridges: bridgeKinds(linkProcess{})}
	parse := func(text, value string) (*rules.Set, string) {
		o := o
		o.Getenv = func(string) (string, bool) { return value, true }
		set, err := rules.ParseBytes("rules.yaml", []byte("version: 1\nbridges:\n  b: "+text+"\n"), o)
		var f *event.Faults
		if errors.As(err, &f) {
			return set, f.Long()
		}
		return set, fmt.Sprint(err)
	}
	checked, file := 0, filepath.Join(t.TempDir(), "rules.yaml")
	for _, url := range []string{
		"https://me:" + password + "@hq.example.com", "https://me:" + password + "@hq.example.com:99999", "https://me:" + password + "%zz@hq.example.com",
		"https://" + password + "@hq.example.com/", "https://me:" + password + "@", "me:" + password + "@hq.example.com", "https://me:" + password + "@hq example.com",
		"https://hq.example.com/?token=" + password, "https://hq.example.com/?" + password, "ftp://me:" + password + "@hq.example.com", "//me:" + password + "@hq.example.com",
		"https://me:" + password + "@[::1", "https:me:" + password + "@hq.example.com", "https://hq.example.com#" + password, "https://me:" + password + "@hq.example.com/\x01",
		"mqtt://me:" + password + "@broker", "mqtts://me:" + password + "@broker:99999", "mqtt://me:" + password + "%zz@broker", "mqtt://broker/?password=" + password,
		"mqtt://broker:1883#" + password, "mqtt://me:" + password + "@[::1", "mqtt:me:" + password + "@broker", "mqtt://me:" + password + "@", "mqtt://me:" + password + "@bro ker",
		"https://me:p@" + password + "@hq.example.com", "https://me:p/" + password + "@hq.example.com", "mqtt://me:p/" + password + "@broker", "mqtt://me:p#" + password + "@broker",
		"https://me:p?" + password + "@hq.example.com", "MQTT://me:" + password + "@broker",
		"hq.example.com?token=" + password, "hq.example.com#" + password, "//hq.example.com?token=" + password, "https:hq.example.com?token=" + password, "mqtt:broker?password=" + password,
		" https://me:" + password + "@hq", "'https://me:" + password + "@hq'", "me:pa'" + password + "@hq", "me/" + password + "@hq", password + "@hq", "https://me:" + password, "mqtt://me:" + password,
	} {
		for _, side := range []string{"to: {router: %q, topic: t", "from: {router: %q, topic: t", "to: {mqtt: %q, topic: t", "from: {mqtt: %q, filters: [a]"} {
			text := "{topic: t, " + fmt.Sprintf(side, url)
			if _, said := parse(text+"}}", ""); strings.Contains(said, password) || !strings.Contains(said, "rules.yaml:3:") {
				t.Errorf("%s\nanswers %s", text, said)
			}
			if _, said := parse("{topic: t, "+fmt.Sprintf(side, "${env:FAR}")+"}}", url); strings.Contains(said, password) || !strings.Contains(said, "rules.yaml:3:") {
				t.Errorf("%s by reference\nanswers %s", text, said)
			}
			// Where another value is not known nothing is checked, and what is a URL is shown and compared without it. What is none
			// may be anything, such as a subject: it is refused as soon as all is known.
			if !strings.Contains(url, "://") || strings.Contains(url, "#") || strings.ContainsAny(url[:1], "' ") {
				continue
			}
			if err := os.WriteFile(file, []byte("version: 1\nbridges:\n  b: "+text+", tls: {ca: [\"${file:/ca.pem}\"]}}}\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			loose := o
			loose.Unresolved = true
			_, set, err := rules.Pack(t.Context(), file, loose)
			if err != nil {
				if strings.Contains(err.Error(), password) {
					t.Error(err)
				}
				continue
			}
			checked++
			shown, err := set.Show(true)
			if err != nil {
				t.Fatal(err)
			}
			if all := fmt.Sprintf("%s %+v", shown, rules.Diff(nil, set)); strings.Contains(all, password) {
				t.Errorf("%s is shown as\n%s", text, all)
			}
		}
	}
	if checked == 0 {
		t.Error("nothing was shown")
	}
	if _, said := parse("{topic: t, to: {router: \"https://me:"+password+"@hq.example.com\", topic: t}}", ""); !strings.Contains(said, "bridges.b.to.router: has a user or password in it; give token beside it") {
		t.Error(said)
	}
	for url, want := range map[string]string{"mqtt://broker:99999": "has the port", "mqtt://127.1": "host", "mqtts://a:b:1883": "cannot be read", "MQTTS://broker": "<nil>", "mqtt://[::1]:1884": "<nil>"} {
		if _, said := parse(fmt.Sprintf("{topic: t, to: {mqtt: %q, topic: t}}", url), ""); !strings.Contains(said, want) {
			t.Errorf("%s: %s; want %s", url, said, want)
		}
	}
}
