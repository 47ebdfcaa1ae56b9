package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/millrace/millrace/engine"
	"github.com/millrace/millrace/plugins"
	"github.com/millrace/millrace/storage/pebblestore"
)

// endOf is when the first certificate in a PEM file ends; zero if there is none in it.
func endOf(path string) (time.Time, error) {
	rest, err := os.ReadFile(path)
	if err != nil {
		return time.Time{}, err
	}
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return time.Time{}, nil
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return time.Time{}, fmt.Errorf("its certificate cannot be read: %w", err)
		}
		return c.NotAfter, nil
	}
}

// modules looks for function modules that nobody needs, in a data directory that no router has open.
func (e *examination) modules(ctx context.Context, data string) {
	stale, err := plugins.StaleModules(filepath.Join(data, "functions"), time.Now().Add(-staleAfter))
	if err != nil {
		e.find("modules", "note", "run doctor as the user that the router runs as", "%v", err)
	}
	if len(stale) == 0 {
		return
	}
	store, err := pebblestore.OpenReadOnly(ctx, filepath.Join(data, storeDir))
	if err != nil {
		return // the store's own finding says it
	}
	named, err := engine.NamedModules(ctx, store)
	if err = errors.Join(err, store.Close()); err != nil {
		e.find("modules", "note", "", "%v", err)
		return
	}
	e.litter(named, stale)
}
