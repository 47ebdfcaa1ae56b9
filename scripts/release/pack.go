package main

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// packed is one file of an archive.
type packed struct {
	name string
	from string // "": text is it
	text []byte
	mode os.FileMode
}

func (p packed) read() ([]byte, error) {
	if p.from == "" {
		return p.text, nil
	}
	return os.ReadFile(p.from)
}

// packTar makes a .tar.gz with nothing of the machine in it: no owner, one time for all.
func packTar(dir string, files []packed, at time.Time) ([]byte, error) {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	w := tar.NewWriter(z)
	for _, f := range files {
		text, err := f.read()
		if err != nil {
			return nil, err
		}
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: dir + "/" + f.name, Mode: int64(f.mode), Size: int64(len(text)), ModTime: at, Format: tar.FormatUSTAR}); err != nil {
			return nil, err
		}
		if _, err := w.Write(text); err != nil {
			return nil, err
		}
	}
	err = errors.Join(w.Close(), z.Close())
	return b.Bytes(), err
}

// packZip is packTar for Windows.
func packZip(dir string, files []packed, at time.Time) ([]byte, error) {
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, f := range files {
		text, err := f.read()
		if err != nil {
			return nil, err
		}
		h := &zip.FileHeader{Name: dir + "/" + f.name, Method: zip.Deflate, Modified: at.UTC()}
		h.SetMode(f.mode)
		to, err := w.CreateHeader(h)
		if err != nil {
			return nil, err
		}
		if _, err := to.Write(text); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return b.Bytes(), err
}

type component struct {
	Type     string    `json:"type"`
	BOMRef   string    `json:"bom-ref"`
	Name     string    `json:"name"`
	Version  string    `json:"version"`
	PURL     string    `json:"purl"`
	Licenses []license `json:"licenses,omitempty"`
}

type license struct {
	License struct {
		ID string `json:"id"`
	} `json:"license"`
}

// license notes the first licence that is known.
func (c *component) license(text []byte) {
	if id := spdx(text); id != "" && len(c.Licenses) == 0 {
		c.Licenses = make([]license, 1)
		c.Licenses[0].License.ID = id
	}
}

// inventory reads from a program that was built in dir what is in it: an SBOM, and the licences that have to go with it.
func inventory(dir, path, platform string, src source) (bom, notices []byte, err error) {
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	module := func(kind, name, version string) component {
		purl := "pkg:golang/" + name + "@" + version
		return component{Type: kind, BOMRef: purl, Name: name, Version: version, PURL: purl}
	}
	main := module("application", info.Main.Path, src.version)
	parts := []component{module("library", "std", strings.TrimPrefix(info.GoVersion, "go"))}
	var text bytes.Buffer
	root, err := ask(dir, "go", "env", "GOROOT") // of the toolchain that go.mod chose there
	if err != nil {
		return nil, nil, err
	}
	own, err := goLicence(root, "/usr/share/licenses/golang", "/usr/share/licenses/go")
	if err != nil {
		return nil, nil, err
	}
	parts[0].license(own)
	fmt.Fprintf(&text, "Go %s\n\n%s\n\n----\n\n", info.GoVersion, bytes.TrimSpace(own))
	for _, d := range info.Deps {
		if d.Replace != nil {
			if d.Replace.Version == "" { // a folder of this repository, under its licence
				parts = append(parts, module("library", d.Path, src.version))
				continue
			}
			d = d.Replace
		}
		c := module("library", d.Path, d.Version)
		files, err := licencesOf(d.Path, d.Version)
		if err != nil {
			return nil, nil, err
		}
		for _, f := range files {
			c.license(f)
			fmt.Fprintf(&text, "%s %s\n\n%s\n\n----\n\n", d.Path, d.Version, bytes.TrimSpace(f))
		}
		if len(files) == 0 {
			return nil, nil, fmt.Errorf("%s has no file LICENSE: what of it may be given away?", d.Path)
		}
		parts = append(parts, c)
	}
	slices.SortFunc(parts, func(a, b component) int { return strings.Compare(a.BOMRef, b.BOMRef) })
	all := make([]string, len(parts))
	for i, c := range parts {
		all[i] = c.BOMRef
	}
	program, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	sum := sha256.Sum256(program)
	bom, err = json.MarshalIndent(map[string]any{
		"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
		"metadata": map[string]any{
			"timestamp": src.time.Format(time.RFC3339), "component": main,
			"properties": []map[string]string{
				{"name": "millrace:platform", "value": platform}, {"name": "millrace:revision", "value": src.revision},
				{"name": "millrace:program-sha256", "value": hex.EncodeToString(sum[:])},
			},
		},
		"components":   parts,
		"dependencies": []map[string]any{{"ref": main.BOMRef, "dependsOn": all}},
	}, "", " ")
	return append(bom, '\n'), text.Bytes(), err
}

// goLicence reads the licence of the Go at root, whose runtime and library are in the program. A packaged Go may have it
// beside its root (Homebrew), or in one of the system's folders.
func goLicence(root string, folders ...string) ([]byte, error) {
	for _, dir := range append([]string{root, filepath.Dir(root)}, folders...) {
		if text, err := os.ReadFile(filepath.Join(dir, "LICENSE")); err == nil && spdx(text) == "BSD-3-Clause" {
			return text, nil
		}
	}
	return nil, fmt.Errorf("the Go in %s has no file LICENSE, which has to go with the program; build with the Go of go.dev/dl, which has one, or put it there", root)
}

// licencesOf reads the licence files of a module, which the build has downloaded.
func licencesOf(path, version string) ([][]byte, error) {
	b, err := exec.Command("go", "mod", "download", "-json", path+"@"+version).Output()
	if err != nil {
		return nil, fmt.Errorf("%s@%s: %w", path, version, err)
	}
	var mod struct{ Dir string }
	if err := json.Unmarshal(b, &mod); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(mod.Dir)
	if err != nil {
		return nil, err
	}
	var all [][]byte
	for _, e := range entries {
		name := strings.ToUpper(e.Name())
		if e.IsDir() || !strings.HasPrefix(name, "LICEN") && !strings.HasPrefix(name, "COPYING") && !strings.HasPrefix(name, "NOTICE") || strings.HasSuffix(name, ".GO") {
			continue
		}
		text, err := os.ReadFile(filepath.Join(mod.Dir, e.Name()))
		if err != nil {
			return nil, err
		}
		all = append(all, text)
	}
	return all, nil
}

// spdx names the licences that this module's dependencies have, by what stands in no other of them; "" if it is another.
func spdx(text []byte) string {
	flat := strings.Join(strings.Fields(string(text)), " ")
	switch {
	case strings.Contains(flat, "Apache License Version 2.0"):
		return "Apache-2.0"
	case strings.Contains(flat, "Permission is hereby granted, free of charge"):
		return "MIT"
	case strings.Contains(flat, "Mozilla Public License Version 2.0"):
		return "MPL-2.0"
	case strings.Contains(flat, "Redistribution and use in source and binary forms") && strings.Contains(flat, "Neither the name"):
		return "BSD-3-Clause"
	case strings.Contains(flat, "Redistribution and use in source and binary forms"):
		return "BSD-2-Clause"
	}
	return ""
}
