package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// What is packed is the same whoever packs it: neither owner nor time of a file is in it.
func TestArchivesAreReproducible(t *testing.T) {
	at := time.Unix(1_700_000_000, 0).UTC()
	for name, pack := range map[string]func(string, []packed, time.Time) ([]byte, error){"tar": packTar, "zip": packZip} {
		var made [2][]byte
		for i := range made {
			path := filepath.Join(t.TempDir(), "f")
			if err := os.WriteFile(path, []byte("text"), os.FileMode(0o600+i*0o44)); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(path, time.Time{}, time.Unix(int64(i), 0)); err != nil {
				t.Fatal(err)
			}
			b, err := pack("d", []packed{{name: "router", from: path, mode: 0o755}, {name: "note", text: []byte("n"), mode: 0o644}}, at)
			if err != nil {
				t.Fatal(err)
			}
			made[i] = b
		}
		if !bytes.Equal(made[0], made[1]) {
			t.Errorf("%s: two archives of the same differ", name)
		}
	}
}

func TestLicences(t *testing.T) {
	for text, want := range map[string]string{
		"Apache License\n   Version 2.0, January 2004":                                                "Apache-2.0",
		"Permission is hereby\ngranted, free of charge":                                               "MIT",
		"Redistribution and use in source and binary\nforms, with or without\n Neither the name of X": "BSD-3-Clause",
		"Redistribution and use in source and binary forms, with or without":                          "BSD-2-Clause",
		"all rights reserved": "",
	} {
		if got := spdx([]byte(text)); got != want {
			t.Errorf("%q is %q, want %q", text, got, want)
		}
	}
}

// Go's licence is found where packages of it put it, is not taken for another's, and is not left out.
func TestTheLicenceOfGo(t *testing.T) {
	const text = "Redistribution and use in source and binary forms. Neither the name of X"
	for _, at := range []string{"go/libexec", "go", "share"} {
		top := t.TempDir()
		root, share := filepath.Join(top, "go", "libexec"), filepath.Join(top, "share")
		for _, dir := range []string{root, share} {
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := goLicence(root, share); err == nil || !strings.Contains(err.Error(), root) {
			t.Errorf("none: %v", err)
		}
		for _, f := range [][2]string{{"go/libexec", "all rights reserved"}, {at, text}} {
			if err := os.WriteFile(filepath.Join(top, f[0], "LICENSE"), []byte(f[1]), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := goLicence(root, share); err != nil || string(got) != text {
			t.Errorf("in %s: %q, %v", at, got, err)
		}
	}
}

// A release is built from the commit: what is written meanwhile in the folder that it was called in, or lies there
// ignored, is not in it.
func TestReleasesAreOfTheCommit(t *testing.T) {
	dir := t.TempDir()
	git := func(args ...string) {
		t.Helper()
		if _, err := ask(dir, append([]string{"git", "-c", "user.name=t", "-c", "user.email=t@example.com"}, args...)...); err != nil {
			t.Fatal(err)
		}
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	git("init", "-q")
	write("main.go", "committed")
	write(".gitignore", "extra.go\n")
	git("add", ".")
	git("commit", "-q", "-m", "one")
	src, err := sourceOf(dir, false)
	if err != nil {
		t.Fatal(err)
	}
	write("main.go", "changed")
	write("extra.go", "ignored")
	if _, err := sourceOf(dir, false); err == nil || !strings.Contains(err.Error(), "main.go") {
		t.Errorf("a folder that differs from its commit: %v", err)
	}
	at, err := checkout(dir, filepath.Join(t.TempDir(), "a", "b"), src.revision)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(at, "main.go")); err != nil || string(b) != "committed" {
		t.Errorf("main.go is %q, %v", b, err)
	}
	if _, err := os.Stat(filepath.Join(at, "extra.go")); err == nil {
		t.Error("what git ignores came along")
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// The image is built from pinned bases, fetches nothing by itself, runs as nobody, on nothing, and asks after its health
// without a shell.
func TestDockerfile(t *testing.T) {
	text := read(t, "Dockerfile")
	text = regexp.MustCompile(`\\\n\s*`).ReplaceAllString(text, "")
	var stages [][]string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		word, rest, _ := strings.Cut(line, " ")
		switch word {
		case "FROM":
			stages = append(stages, nil)
			if image := strings.Fields(regexp.MustCompile(`--\S+ `).ReplaceAllString(rest, ""))[0]; image != "scratch" && image != "golang:${GO_VERSION}-bookworm" {
				t.Errorf("base %s", image)
			}
		case "ADD":
			t.Errorf("%s: COPY takes what is here; ADD fetches and unpacks", line)
		case "CMD", "ENTRYPOINT":
			if !strings.HasPrefix(rest, "[") {
				t.Errorf("%s: there is no shell to run it", line)
			}
		case "RUN":
			if strings.Contains(rest, "curl") || strings.Contains(rest, "wget") || strings.Contains(rest, "apt") {
				t.Errorf("%s: what it fetches is not pinned", line)
			}
		case "ARG", "COPY", "WORKDIR", "USER", "ENV", "VOLUME", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK":
		default:
			t.Errorf("%s is no instruction that is known here", word)
		}
		if len(stages) > 0 {
			stages[len(stages)-1] = append(stages[len(stages)-1], line)
		}
	}
	if !regexp.MustCompile(`(?m)^ARG GO_VERSION=1\.\d+\.\d+$`).MatchString(text) {
		t.Error("the version of Go is not pinned to a patch")
	}
	last := stages[len(stages)-1]
	copied := slices.DeleteFunc(slices.Clone(last), func(line string) bool { return !strings.HasPrefix(line, "COPY ") })
	if !slices.Equal(copied, []string{ // what a router was seen to run on
		"COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt",
		"COPY --from=build /out/router /router", "COPY --from=build --chown=65532:65532 /out/own/ /"}) ||
		!strings.Contains(text, "mkdir -m 0700 /out/own/data /out/own/tmp") {
		t.Errorf("the image holds other things than the program, authorities, and /data and /tmp of its user alone: %q", copied)
	}
	for _, want := range []string{"FROM scratch", "USER 65532:65532", "VOLUME /data", `ENTRYPOINT ["/router"]`, `CMD ["serve", "--listen", "0.0.0.0:8080"]`} {
		if !slices.Contains(last, want) {
			t.Errorf("the image lacks %q", want)
		}
	}
	if !strings.Contains(strings.Join(last, "\n"), `CMD ["/router", "health"]`) || strings.Contains(strings.Join(last, "\n"), "RUN ") {
		t.Error("the image runs something, or does not ask after its health")
	}
	for _, secret := range []string{".git", "**/node_modules"} {
		if !slices.Contains(strings.Fields(read(t, ".dockerignore")), secret) {
			t.Errorf(".dockerignore lets %s in", secret)
		}
	}
}

// The unit is hardened, and where systemd is, its own check finds nothing in it.
func TestUnit(t *testing.T) {
	unit := read(t, filepath.Join("packaging", "millrace.service"))
	for _, want := range []string{"Type=notify", "DynamicUser=yes", "StateDirectory=millrace", "StateDirectoryMode=0700", "ProtectSystem=strict", "NoNewPrivileges=yes",
		"SystemCallFilter=@system-service", "CapabilityBoundingSet=", "LimitNOFILE=65536", "Restart=on-failure", "WatchdogSec=60s", "ExecReload=/bin/kill -HUP $MAINPID"} {
		if !strings.Contains(unit, "\n"+want+"\n") {
			t.Errorf("the unit lacks %s", want)
		}
	}
	if strings.Contains(unit, "\nMemoryDenyWriteExecute=yes") {
		t.Error("functions are compiled to machine code, which MemoryDenyWriteExecute forbids")
	}
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		return // a machine without systemd checks what is above
	}
	path := filepath.Join(t.TempDir(), "millrace.service")
	if err := os.WriteFile(path, []byte(strings.Replace(unit, "ExecStart=/usr/local/bin/router", "ExecStart=/bin/true", 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(analyze, "verify", path).CombinedOutput(); err != nil || strings.Contains(string(out), "millrace.service:") {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	if out, err := exec.Command(analyze, "security", "--offline=true", "--threshold=25", path).CombinedOutput(); err != nil {
		t.Errorf("systemd-analyze security: %v\n%s", err, out)
	}
}
