package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// measureTLS is measureAccept over HTTPS: TLS 1.3, the connections kept. The generator's own share of the encryption is
// in the figure, as it is on one machine.
func measureTLS(n int) measurement {
	value := fmt.Sprintf("tls-%d", n)
	return measurement{name: fmt.Sprintf("durable accept over TLS, %d connections", n), gives: []string{value, value + "-cpu"},
		run: func(ctx context.Context, l *lab, _ func(string) float64, put func(string, float64)) error {
			r, err := l.secureRouter(ctx)
			if err != nil {
				return err
			}
			p, err := closed(ctx, n, window{l.length(), r.cpu}, func(i int) (worker, error) {
				p, err := newPoster(ctx, r.addr, postRequest(r.addr, published, "application/json", eventData(i)))
				if err != nil {
					return worker{}, err
				}
				nc := tls.Client(p.conn, &tls.Config{RootCAs: l.roots, ServerName: "localhost"})
				p.conn = nc
				if err := nc.HandshakeContext(ctx); err != nil {
					return worker{}, errors.Join(err, nc.Close())
				}
				return p.worker(), nil
			})
			put(value, p.perSecond)
			put(value+"-cpu", p.cpu)
			return errors.Join(err, r.gone())
		}}
}

// secureRouter starts, once, a router that speaks HTTPS.
func (l *lab) secureRouter(ctx context.Context) (*routerProcess, error) {
	if l.secure != nil {
		return l.secure, l.secure.gone()
	}
	cert, key, err := l.certificate()
	if err != nil {
		return nil, err
	}
	l.routers++
	args := []string{"serve", "--data", filepath.Join(l.dir, fmt.Sprintf("router-%d", l.routers)), "--listen", "127.0.0.1:0", "--tls-cert", cert, "--tls-key", key}
	c, err := l.start("the router over TLS", func(line string) (string, bool) {
		kind, rest, _ := strings.Cut(line, " ")
		addr, ok := strings.CutPrefix(strings.TrimSpace(rest), "https://")
		return addr, ok && kind == "listen"
	}, l.binary, args...)
	if err != nil {
		return nil, err
	}
	l.secure = &routerProcess{child: c, http: &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: l.roots}}}}
	return l.secure, nil
}

// certificate writes a certificate for localhost, ECDSA like those that ACME authorities give.
func (l *lab) certificate() (certFile, keyFile string, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", err
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(30 * 24 * time.Hour), DNSNames: []string{"localhost"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		return "", "", err
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		return "", "", err
	}
	l.roots = x509.NewCertPool()
	l.roots.AddCert(c)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", "", err
	}
	certFile, keyFile = filepath.Join(l.dir, "tls.crt"), filepath.Join(l.dir, "tls.key")
	err = errors.Join(os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600),
		os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600))
	return certFile, keyFile, err
}
