package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Every recipe of the cookbook holds what its own tests say of it, and the page shows the files as they are.
func TestCookbook(t *testing.T) {
	dir := filepath.Join("..", "..", "examples", "cookbook")
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "cookbook.md"))
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil || len(files) != 12 {
		t.Fatalf("%d recipes (%v), want twelve", len(files), err)
	}
	variables := map[string]string{"CHAT_URL": "https://chat.example.com/hook", "PRICE_NEXT": "sha256:9f86d081"}
	script := regexp.MustCompile(`js: (functions/\S+)`)
	for _, file := range files {
		name := filepath.Base(file)
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		rules, _, tested := strings.Cut(string(text), "\ntests:\n")
		if !tested {
			t.Errorf("%s has no tests", name)
		}
		shown := rules[strings.Index(rules, "version:"):]
		if !strings.Contains(string(page), "```yaml\n"+strings.TrimRight(shown, "\n")+"\n```") {
			t.Errorf("docs/cookbook.md does not show %s as it is", name)
		}
		for _, m := range script.FindAllStringSubmatch(rules, -1) {
			js, err := os.ReadFile(filepath.Join(dir, m[1]))
			if err != nil || !strings.Contains(string(page), "```js\n"+string(js)+"```") {
				t.Errorf("docs/cookbook.md does not show %s as it is (%v)", m[1], err)
			}
		}
		t.Run(name, func(t *testing.T) {
			env := func(v string) string {
				switch {
				case v == "XDG_CACHE_HOME":
					return os.Getenv(v)
				case variables[v] != "":
					return variables[v]
				case strings.HasSuffix(v, "_SECRET"):
					return "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
				case strings.HasSuffix(v, "_TOKEN"):
					return "token"
				}
				return ""
			}
			args := []string{"rules", "test", file}
			if name == "shadow.yaml" { // whose function is pushed
				var out bytes.Buffer
				if code := run(context.Background(), "", args, strings.NewReader(""), &out, &out, env); code != exitFailed || !strings.Contains(out.String(), "--function price=FILE") {
					t.Errorf("without the function it ends with %d:\n%s", code, out.String())
				}
				args = append(args, "--function", "price="+filepath.Join(dir, "functions", "redact.js"))
			}
			var out bytes.Buffer
			if code := run(context.Background(), "", args, strings.NewReader(""), &out, &out, env); code != exitDone {
				t.Errorf("router rules test %s ends with %d:\n%s", name, code, out.String())
			}
			if want := strings.Count(string(text), "\n  - name: "); want == 0 || strings.Count(out.String(), "\nok  ")+strings.Count(out.String()[:min(4, out.Len())], "ok  ") != want {
				t.Errorf("%s has %d tests, and says\n%s", name, want, out.String())
			}
		})
	}
}
