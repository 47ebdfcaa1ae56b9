package rules

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// writeFiles writes files below dir, by their paths.
func writeFiles(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

const bundled = `version: 1
topics:
  orders: {schema: ../schemas/order.json}
functions:
  one: {wasm: functions/one.wasm}
  two: {wasm: ../../shared/./one.wasm}
subscriptions:
  hook:
    topic: orders
    functions: [one, two]
    deliver: {webhook: {url: "https://${env:BUNDLE_HOST}/x", headers: {authorization: "Bearer ${env:BUNDLE_KEY}"}}}
`

func bundleFiles() map[string]string {
	return map[string]string{
		"a/rules/r.yaml":             bundled,
		"a/rules/functions/one.wasm": "\x00asm one",
		"shared/one.wasm":            "\x00asm two",
		"a/schemas/order.json":       `{"type": "object"}`,
	}
}

func TestPackIsRead(t *testing.T) {
	var bundles [][]byte
	for range 2 { // wherever it lies, it is the same bundle
		dir := t.TempDir()
		writeFiles(t, dir, bundleFiles())
		o := testOptions()
		o.Getenv = func(string) (string, bool) { return "", false } // of whoever packs
		b, set, err := Pack(t.Context(), filepath.Join(dir, "a/rules"), o)
		if err != nil {
			t.Fatal(err)
		}
		if text, err := set.Show(true); err != nil || !strings.Contains(string(text), "https://${env:BUNDLE_HOST}/x") {
			t.Errorf("%v in\n%s", err, text)
		}
		bundles = append(bundles, b)
	}
	if !bytes.Equal(bundles[0], bundles[1]) {
		t.Error("the same files made different bundles")
	}

	o := testOptions()
	o.Getenv = func(name string) (string, bool) { return "value-of-" + name, strings.HasPrefix(name, "BUNDLE_") }
	set, err := ParseBundle(t.Context(), bundles[0], o)
	if err != nil {
		t.Fatal(err)
	}
	if f := set.Functions; len(f) != 2 || string(f[0].Module) != "\x00asm one" || string(f[1].Module) != "\x00asm two" {
		t.Errorf("functions %+v", f)
	}
	if s := set.Topics[0].Schema; string(s) != `{"type": "object"}` {
		t.Errorf("schema %s", s)
	}
	if s := set.Subscriptions[0]; s.OpenSink == nil || s.Owner.File != "r.yaml" {
		t.Errorf("subscription %+v", s)
	}
	if _, err := ParseBundle(t.Context(), bundles[0], Options{Sinks: testOptions().Sinks}); err == nil || !strings.Contains(err.Error(), "r.yaml:11:") {
		t.Errorf("without variables: %v", err)
	}
}

func TestPackOneFile(t *testing.T) {
	dir := t.TempDir()
	writeFiles(t, dir, bundleFiles())
	writeFiles(t, dir, map[string]string{"a/rules/other.yaml": "nonsense", "a/rules/millrace.conf": "topics: {t: }"})
	b, _, err := Pack(t.Context(), filepath.Join(dir, "a/rules/millrace.conf"), testOptions())
	if err != nil {
		t.Fatal(err)
	}
	set, err := ParseBundle(t.Context(), b, testOptions())
	if err != nil || len(set.Topics) != 1 || set.Topics[0].Name != "t" {
		t.Errorf("%+v, %v", set, err)
	}
	abs := filepath.Join(dir, "shared/one.wasm")
	writeFiles(t, dir, map[string]string{"abs.yaml": "functions: {f: {wasm: " + abs + "}}"})
	if b, _, err = Pack(t.Context(), filepath.Join(dir, "abs.yaml"), testOptions()); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(abs); err != nil {
		t.Fatal(err)
	}
	if set, err := ParseBundle(t.Context(), b, testOptions()); err != nil || string(set.Functions[0].Module) != "\x00asm two" {
		t.Errorf("%+v, %v", set, err)
	}
}

func TestPackRefuses(t *testing.T) {
	for name, x := range map[string]struct{ rules, want string }{
		"file":         {`functions: {f: {wasm: pushed, secrets: {a: "${file:/etc/hostname}"}}}`, "r.yaml:1:45: functions.f.secrets.a: ${file:…} reads the files of the machine"},
		"module unset": {`functions: {f: {wasm: "${env:BUNDLE_NOTHING}"}}`, "set it: a bundle holds the file that it names"},
		"missing":      {`functions: {f: {wasm: nothing.wasm}}`, "no such file"},
		"ending":       {`topics: {t: {schema: s.yaml}}`, "would be one of the rules in a bundle"},
		"wrong":        {`topics: {t: {partition: 1}}`, `did you mean "partitions"`},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			writeFiles(t, dir, map[string]string{"r.yaml": x.rules, "s.yaml": "{}"})
			o := testOptions()
			o.Getenv = func(string) (string, bool) { return "", false }
			if _, _, err := Pack(t.Context(), filepath.Join(dir, "r.yaml"), o); err == nil || !strings.Contains(err.Error(), x.want) {
				t.Errorf("%v; want %q", err, x.want)
			}
		})
	}
}

func TestBundleOfText(t *testing.T) {
	set, err := ParseBundle(t.Context(), []byte("topics: {t: }"), testOptions())
	if err != nil || len(set.Topics) != 1 {
		t.Fatalf("%+v, %v", set, err)
	}
	o := testOptions()
	o.Getenv = func(string) (string, bool) { return "the token", true }
	for text, want := range map[string]string{
		"topics: {t: {partition: 1}}":                                                 "rules.yaml:1:14",
		`functions: {f: {wasm: pushed, secrets: {a: "${env:MILLRACE_TOKEN}"}}}`:       "a token of the router's own",
		`functions: {f: {wasm: pushed, secrets: {a: "${env:MILLRACE_RULES_TOKEN}"}}}`: "a token of the router's own",
		`functions: {f: {wasm: pushed, secrets: {a: "${file:/etc/passwd}"}}}`:         "reads the files of the machine",
		"functions: {f: {wasm: /etc/passwd}}":                                         "is not in the bundle",
		"functions: {f: {js: ../../../etc/passwd}}":                                   "is not in the bundle",
		"":                 "is empty",
		"\x1f\x8b\x08\x00": "compressed with gzip",
		"PK\x03\x04":       "a ZIP",
		"a\x00b":           "neither a tar nor YAML",
	} {
		if _, err := ParseBundle(t.Context(), []byte(text), o); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "the token") {
			t.Errorf("%q: %v; want %q", text, err, want)
		}
	}
}

func tarFor(t *testing.T, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		text := ""
		if h.Typeflag == tar.TypeReg {
			text = "topics: {t: }"
		}
		h.Size = int64(len(text))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestHostileBundles(t *testing.T) {
	good := tarFor(t, tar.Header{Name: "./", Typeflag: tar.TypeDir}, tar.Header{Name: "./r.yaml"}, tar.Header{Name: "._r.yaml"}, tar.Header{Name: "x/y.yaml"})
	if set, err := ParseBundle(t.Context(), good, testOptions()); err != nil || len(set.Topics) != 1 {
		t.Fatalf("%+v, %v", set, err)
	}
	many := make([]tar.Header, maxFiles+1)
	for i := range many {
		many[i] = tar.Header{Name: strings.Repeat("d/", i%50) + "f" + string(rune('a'+i%26)), Typeflag: tar.TypeDir}
	}
	sized := func(size string) []byte { // of the first file, whose header is made good again
		b := bytes.Clone(tarFor(t, tar.Header{Name: "r.yaml"}))
		copy(b[124:136], size)
		copy(b[148:156], "        ")
		sum := 0
		for _, c := range b[:512] {
			sum += int(c)
		}
		copy(b[148:156], []byte{'0' + byte(sum>>15&7), '0' + byte(sum>>12&7), '0' + byte(sum>>9&7), '0' + byte(sum>>6&7), '0' + byte(sum>>3&7), '0' + byte(sum&7), 0, ' '})
		return b
	}
	for name, x := range map[string]struct {
		tar  []byte
		want string
	}{
		"absolute":  {tarFor(t, tar.Header{Name: "/etc/r.yaml"}), "leaves the bundle"},
		"above":     {tarFor(t, tar.Header{Name: "x/../../r.yaml"}), "leaves the bundle"},
		"above dir": {tarFor(t, tar.Header{Name: "../x/", Typeflag: tar.TypeDir}), "leaves the bundle"},
		"backslash": {tarFor(t, tar.Header{Name: `..\r.yaml`}), "leaves the bundle"},
		"link":      {tarFor(t, tar.Header{Name: "r.yaml", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"}), "is a link"},
		"hard link": {tarFor(t, tar.Header{Name: "r.yaml", Typeflag: tar.TypeLink, Linkname: "/etc/passwd"}), "is a link"},
		"device":    {tarFor(t, tar.Header{Name: "r.yaml", Typeflag: tar.TypeChar}), "no plain file"},
		"pipe":      {tarFor(t, tar.Header{Name: "r.yaml", Typeflag: tar.TypeFifo}), "no plain file"},
		"twice":     {tarFor(t, tar.Header{Name: "r.yaml"}, tar.Header{Name: "./r.yaml"}), "twice"},
		"many":      {tarFor(t, many...), "over 1000 files"},
		"no rules":  {tarFor(t, tar.Header{Name: "rules/r.yaml"}), "no *.yaml or *.yml file at its top"},
		"empty":     {make([]byte, 1024), "no *.yaml"},
		"cut":       {good[:700], "truncated"},
		"no end":    {good[:len(good)-1024], "truncated"},
		"half":      {good[:len(good)-1024-512-7], "truncated"},
		"huge":      {sized("77777777777\x00"), "truncated"},
		"negative":  {sized("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), ""},
		"too large": {make([]byte, MaxBundle+1), "at most"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := ParseBundle(t.Context(), x.tar, testOptions()); err == nil || !strings.Contains(err.Error(), x.want) {
				t.Errorf("%v; want %q", err, x.want)
			}
		})
	}
}

func FuzzParseBundle(f *testing.F) {
	f.Add([]byte("topics: {t: }"))
	f.Add(make([]byte, 1024))
	o := testOptions()
	f.Fuzz(func(t *testing.T, bundle []byte) {
		if set, err := ParseBundle(t.Context(), bundle, o); err == nil && len(set.Files) == 0 {
			t.Error("rules of no file")
		}
	})
}
