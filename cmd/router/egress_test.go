package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/egress"
	"github.com/millrace/millrace/engine/rules"
)

// testDialer connects to the public Internet, and for the operator anywhere.
func testDialer(t *testing.T) *egress.Dialer {
	t.Helper()
	d, err := egress.New(egress.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// What docs/egress.md shows is what egress.txtar runs: commands, and files as they stand.
func TestEgressDocument(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "egress.md"))
	if err != nil {
		t.Fatal(err)
	}
	script, err := os.ReadFile(filepath.Join("testdata", "script", "egress.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^ *\$ (router .*)$`).FindAllStringSubmatch(string(text), -1) {
		if !strings.Contains(string(script), m[1]+"\n") {
			t.Errorf("it shows %q, which the script does not run", m[1])
		}
	}
	blocks := regexp.MustCompile("(?ms)^```yaml\\n(.*?)^```$").FindAllStringSubmatch(string(text), -1)
	for _, block := range blocks {
		if strings.Contains(block[1], "${file:client.key}") {
			readRulesOfTLS(t, block[1])
			continue
		}
		if !strings.Contains(string(script), block[1]) {
			t.Errorf("it shows what the script has not:\n%s", block[1])
		}
	}
	if len(blocks) != 4 {
		t.Errorf("%d files", len(blocks))
	}
}

// readRulesOfTLS reads rules that name certificates, which are made here.
func readRulesOfTLS(t *testing.T, text string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	of := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, of, of, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
	dir := t.TempDir()
	for name, b := range map[string][]byte{"rules.yaml": []byte(text), "ca.pem": certPEM, "client.pem": certPEM,
		"client.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := rules.Parse(t.Context(), filepath.Join(dir, "rules.yaml"), rules.Options{Sinks: sinkKinds(nil)}); err != nil {
		t.Error(err)
	}
}
