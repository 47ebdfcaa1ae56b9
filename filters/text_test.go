package filters

import (
	"strings"
	"testing"

	"github.com/millrace/millrace/engine/event"
)

func hook() *event.Hook {
	return &event.Hook{
		Query: "tenant=a%20b&twice=1&twice=2&n=7",
		Headers: []event.HookHeader{{Name: "X-Github-Event", Value: "push"}, {Name: "X-Twice", Value: "a"}, {Name: "x-twice", Value: "b"},
			{Name: "X-N", Value: "41"}},
		Data: []byte(`{"id":"evt_1","created":1700000000,"n":1.50,"big":12345678901234567890123,"small":1e-7,"ok":true,"none":null,"list":["a",{"b":"c"}],"o":{"p":"q"},"esc":"a\u00e9\"b"}`),
		JSON: true,
	}
}

// What an expression comes to over a webhook; "-" is no text.
func TestText(t *testing.T) {
	s := &Scratch{}
	for src, want := range map[string]string{
		`headers["x-github-event"]`:             "push",
		`headers["X-GitHub-Event"]`:             "push",
		`"github." + headers["x-github-event"]`: "github.push",
		`upper(headers["x-github-event"])`:      "PUSH",
		`headers["x-twice"]`:                    "-",
		`headers["x-none"]`:                     "-",
		`query["tenant"]`:                       "a b",
		`query["twice"]`:                        "-",
		`query.n`:                               "7",
		`headers["x-n"] + 1`:                    "42",
		`data.id`:                               "evt_1",
		`data.created`:                          "1700000000",
		`data.n`:                                "1.5",
		`data.big`:                              "12345678901234567890123",
		`data.small`:                            "0.0000001",
		`-data.n`:                               "-1.5",
		`data.ok`:                               "true",
		`data.none`:                             "-",
		`data.list`:                             "-",
		`data.list[1].b`:                        "c",
		`data.o`:                                "-",
		`data.esc`:                              `aé"b`,
		`data.created / 0`:                      "-",
		`len(data.list)`:                        "2",
		`has(data.id) && data.ok ? "yes." + data.id : "no"`:     "yes.evt_1",
		`any(data.list, # == "a") ? "a" : "b"`:                  "a",
		`has(headers["x-none"]) ? headers["x-none"] : data.o.p`: "q",
		`"constant"`: "constant",
		`""`:         "-",
		`headers["x-github-event"] in ["push", "pull"] ? "y" : "n"`: "y",
	} {
		p, err := CompileText(src)
		if err != nil {
			t.Errorf("%s: %v", src, err)
			continue
		}
		got, ok := p.Of(hook(), s)
		if !ok {
			got = "-"
		}
		if got != want {
			t.Errorf("%s: %q; want %q", src, got, want)
		}
	}
	if s.Errors != 0 {
		t.Errorf("%d errors", s.Errors)
	}
}

// A text that is not JSON has no paths, whatever it looks like.
func TestTextOfOtherData(t *testing.T) {
	p, err := CompileText(`data.id`)
	if err != nil {
		t.Fatal(err)
	}
	h := hook()
	h.JSON = false
	if got, ok := p.Of(h, &Scratch{}); ok {
		t.Errorf("%q", got)
	}
	h.JSON, h.Data = true, []byte(`{"id":"a"`)
	if got, ok := p.Of(h, &Scratch{}); ok {
		t.Errorf("%q", got)
	}
}

func TestTextRefusals(t *testing.T) {
	for src, want := range map[string]string{
		`type`:                             `unknown name "type"; the names are headers, query and data`,
		`header["x"]`:                      `did you mean "headers"?`,
		`headers`:                          `write headers["name"]`,
		`headers["a"]["b"]`:                `write headers["name"]`,
		`headers[0]`:                       `write headers["name"]`,
		`map(data.list, #)`:                `goes through a list`,
		`"n" + count(data.list, # == "a")`: `goes through a list`,
		`nil`:                              `nil is no text`,
		`data.a == "b"`:                    `is a condition`,
		`ext.a`:                            `unknown name "ext"`,
		``:                                 `empty`,
		strings.Repeat("a", MaxSource+1):   `at most 4096`,
		`headers["x"] matches data.y ? "a" : "b"`: `constant string`,
	} {
		if _, err := CompileText(src); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60s: %v; want %q", src, err, want)
		}
	}
	if _, err := Compile(`headers["x"] == "y"`); err == nil {
		t.Error("a filter reads headers")
	}
}

// Reading a header and two paths of the data allocates nothing.
func TestTextAllocates(t *testing.T) {
	h, s := hook(), &Scratch{}
	var texts []*Text
	for _, src := range []string{`headers["x-github-event"]`, `data.id`, `data.list[1].b`} {
		p, err := CompileText(src)
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, p)
	}
	if n := testing.AllocsPerRun(100, func() {
		for _, p := range texts {
			if _, ok := p.Of(h, s); !ok {
				t.Fatal("no text")
			}
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzText(f *testing.F) {
	for _, src := range []string{`headers["x-github-event"]`, `"a" + data.id`, `query.n + 1`, `has(data.n) ? data.n : data.list[0]`, `-data.n / 3`} {
		f.Add(src, []byte(`{"id":1e400,"n":[1]}`))
	}
	s := &Scratch{}
	f.Fuzz(func(t *testing.T, src string, data []byte) {
		p, err := CompileText(src)
		if err != nil {
			return
		}
		h := hook()
		h.Data = data
		p.Of(h, s)
	})
}
