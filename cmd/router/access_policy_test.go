package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A policy that is edited while it is read is read again, and so is one that was not good once a file that it names is.
func TestPolicyEditedWhileItIsRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.yaml")
	write := func(path, text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const text = "version: 1\njwt: {corp: {issuer: i, audience: a, secret: \"${env:SECRET}\", algorithms: [HS256], roles: {claim: roles}}}\n"
	write(path, text)
	edited := false
	f := newPolicyFile(path, func(string) (string, bool) {
		if !edited {
			write(path, text+"# edited\n")
			edited = true
		}
		return strings.Repeat("x", 32), true
	})
	if _, err := f.load(); err != nil {
		t.Fatal(err)
	}
	if f.stamp == stampsOf(f.files) {
		t.Error("what was edited meanwhile is not seen")
	}
	if _, err := f.load(); err != nil || f.stamp != stampsOf(f.files) {
		t.Errorf("what was not edited is read again: %v", err)
	}
	keys := filepath.Join(filepath.Dir(path), "keys.json")
	write(path, "version: 1\njwt: {corp: {issuer: i, audience: a, jwks: keys.json, algorithms: [RS256], roles: {claim: roles}}}\n")
	if _, err := f.load(); err == nil || f.stamp != stampsOf(f.files) {
		t.Fatalf("without its keys: %v", err)
	}
	write(keys, "{}")
	if f.stamp == stampsOf(f.files) {
		t.Error("the file that it lacked is not seen")
	}
}
