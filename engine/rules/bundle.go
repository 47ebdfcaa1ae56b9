package rules

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// MaxBundle bounds a bundle, in bytes.
const MaxBundle = maxAttached

// The folders of a bundle for files that rules name by a path that leaves their own folder.
const (
	bundleAbove    = ".up"  // then how many folders up, then the rest: ../../a.wasm is .up/2/a.wasm
	bundleAbsolute = ".abs" // then the path
)

// isToken reports whether a variable is one of the router's own secrets, such as MILLRACE_TOKEN and
// MILLRACE_RULES_TOKEN: rules that came over the network must not pass them on.
func isToken(name string) bool {
	name = strings.ToUpper(name) // some systems take any case for the same
	return strings.HasPrefix(name, "MILLRACE_") && strings.HasSuffix(name, "TOKEN")
}

// Pack puts a rules file, or a folder of them, into one tar with the modules, scripts and schemas that they name.
// The same files make the same bytes, wherever they lie. The set is what they define as far as it is known here:
// references to the environment stay references in the bundle, for variables are those of the router that takes it,
// and one whose variable is not set here is left out of the set. ${file:…} is refused. Errors are those of Parse.
func Pack(ctx context.Context, path string, o Options) (bundle []byte, set *Set, err error) {
	p := newParser(o)
	p.packing, p.bundled, p.whole = true, true, true
	if set, err = p.parse(ctx, path); err != nil {
		return nil, nil, err
	}
	if bundle, err = tarOf(set.Sources); err != nil {
		return nil, nil, event.At(path, err)
	}
	return bundle, set, nil
}

// tarOf is what ParseBundle reads.
func tarOf(files map[string][]byte) ([]byte, error) {
	total := 0
	for _, b := range files {
		total += len(b)
	}
	if len(files) > maxFiles {
		return nil, event.Bad(event.ErrTooLarge, "", fmt.Sprintf("the rules, their modules and schemas are %d files; a bundle has at most %d", len(files), maxFiles))
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if total > MaxBundle {
			break // said below
		}
		h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(files[name])), Mode: 0o644, ModTime: time.Unix(0, 0)}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("rules: packing %s: %w", quote(name), err)
		}
		if _, err := w.Write(files[name]); err != nil {
			return nil, fmt.Errorf("rules: packing %s: %w", quote(name), err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("rules: %w", err)
	}
	if total > MaxBundle || b.Len() > MaxBundle {
		return nil, event.Bad(event.ErrTooLarge, "", fmt.Sprintf("the rules with their modules and schemas have over %s; a bundle has at most that", formatSize(MaxBundle)))
	}
	return b.Bytes(), nil
}

// ParseBundle reads what Pack made, or a tar made by hand: the *.yaml and *.yml at its top are the rules, and the
// paths in them lead to its other files. Anything else than a tar is taken as the text of one rules file. Nothing is
// read that is not in it: ${file:…} is refused, and ${env:…} for the router's tokens, MILLRACE_…TOKEN, and where
// o.Getenv is nil, unless o.Unresolved. bundle is not kept, but the modules in the set point into it. The error is a *event.Faults.
func ParseBundle(ctx context.Context, bundle []byte, o Options) (*Set, error) {
	files, err := unpack(bundle)
	if err != nil {
		return nil, err
	}
	return ParseSources(ctx, files, o)
}

// ParseSources is ParseBundle of files that are taken out of their tar, as Set.Sources has them.
func ParseSources(ctx context.Context, files map[string][]byte, o Options) (*Set, error) {
	p := newParser(o)
	p.bundled = true
	if o.Getenv != nil {
		p.o.Getenv = func(name string) (string, bool) {
			if isToken(name) {
				return "", false
			}
			return o.Getenv(name)
		}
	}
	p.o.ReadFile = func(path string) ([]byte, error) {
		if b, ok := files[bundleName(path)]; ok {
			return b, nil
		}
		return nil, &fs.PathError{Op: "open", Path: path, Err: errNotBundled}
	}
	p.siblings = func(path string) (names []string) {
		dir := filepath.Dir(bundleName(path))
		for name := range files {
			if filepath.Dir(name) == dir {
				names = append(names, filepath.Base(name))
			}
		}
		return names
	}
	total := 0
	for _, name := range bundleRules(files) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if total += len(files[name]); total > maxSources {
			return nil, event.Bad(event.ErrTooLarge, name, fmt.Sprintf("the rules have over %d bytes; at most %d are allowed in all", total, maxSources))
		}
		p.files[name], p.sources[name] = true, files[name]
		p.file(&source{name: name, text: files[name]})
	}
	if len(p.files) == 0 {
		return nil, event.Invalid("bundle", "it has no *.yaml or *.yml file at its top; make it with `router rules apply`, or with `tar -C FOLDER -cf rules.tar .`")
	}
	return p.finish()
}

// errNotBundled is fs.ErrNotExist, said of a bundle.
var errNotBundled error = notBundled{}

type notBundled struct{}

func (notBundled) Error() string        { return "is not in the bundle" }
func (notBundled) Is(target error) bool { return target == fs.ErrNotExist }

// bundleName is where a bundle has a file that rules name. Equal paths have equal names, and none leaves the bundle.
func bundleName(name string) string {
	name = path.Clean(filepath.ToSlash(name))
	if path.IsAbs(name) {
		return bundleAbsolute + name
	}
	up := 0
	for strings.HasPrefix(name, "../") {
		name, up = name[3:], up+1
	}
	if up > 0 {
		return fmt.Sprintf("%s/%d/%s", bundleAbove, up, name)
	}
	return name
}

// isRules reports whether a bundle's file is one of rules: where folders in a folder are not read, those in a bundle
// are not either.
func isRules(name string) bool {
	ext := path.Ext(name)
	return (ext == ".yaml" || ext == ".yml") && !strings.Contains(name, "/") && !strings.HasPrefix(name, ".")
}

func bundleRules(files map[string][]byte) []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(files)), func(name string) bool { return !isRules(name) })
}

// rulesName is the name of a rules file in a bundle.
func rulesName(path string) string {
	if name := filepath.Base(path); isRules(name) {
		return name
	}
	return "rules.yaml" // a single file may have any name
}

// include reads a file that a definition names, which a bundle has with it.
func (p *parser) include(n *node, name string) ([]byte, error) {
	b, err := p.attached(n, name)
	if err != nil {
		return nil, err
	}
	name = bundleName(name)
	switch {
	case !isRules(name):
		p.sources[name] = b
	case p.packing:
		return nil, fmt.Errorf("file %s would be one of the rules in a bundle; give it another ending, or put it into a folder", quote(name))
	}
	return b, nil
}

func unpack(bundle []byte) (map[string][]byte, error) {
	bad := func(format string, args ...any) (map[string][]byte, error) {
		return nil, event.Invalid("bundle", fmt.Sprintf(format, args...))
	}
	if len(bundle) > MaxBundle {
		return nil, event.Bad(event.ErrTooLarge, "bundle", fmt.Sprintf("has %d bytes; at most %d are allowed", len(bundle), MaxBundle))
	}
	if len(bytes.TrimSpace(bundle)) == 0 {
		return plainRules(bundle)
	}
	files, left := map[string][]byte{}, int64(len(bundle))
	r := bytes.NewReader(bundle)
	archive := tar.NewReader(r)
	for count := 0; ; {
		h, err := archive.Next()
		if err == io.EOF {
			break
		}
		if err != nil && count == 0 {
			return plainRules(bundle)
		}
		if err != nil {
			return bad("is broken or truncated after file %d of the tar: %v", count, err)
		}
		if h.Typeflag == tar.TypeXGlobalHeader { // what `git archive` begins with
			continue
		}
		if count++; count > maxFiles {
			return nil, event.Bad(event.ErrTooLarge, "bundle", fmt.Sprintf("has over %d files and folders; more are not allowed", maxFiles))
		}
		name := path.Clean(h.Name)
		switch {
		case h.Typeflag == tar.TypeDir && (name == "." || filepath.IsLocal(name)):
			continue
		case h.Name == "" || path.IsAbs(name) || !filepath.IsLocal(name) || strings.ContainsAny(name, "\\\x00"):
			return bad("has file %s, whose path leaves the bundle; want paths below its top, with /", quote(h.Name))
		case h.Typeflag == tar.TypeSymlink, h.Typeflag == tar.TypeLink:
			return bad("has %s, which is a link to %s; want the file itself (`tar -h`)", quote(h.Name), quote(h.Linkname))
		case h.Typeflag != tar.TypeReg:
			return bad("has %s, which is no plain file (a tar's type %q); want files and folders only", quote(h.Name), h.Typeflag)
		case files[name] != nil:
			return bad("has file %s twice; keep one", quote(name))
		case h.Size > left: // a sparse file may say any size
			return bad("is truncated: file %s has %d bytes, and %d are left", quote(h.Name), h.Size, left)
		}
		left -= h.Size
		// What a plain file says lies in the bundle as it is; one with holes is made.
		b, err := io.ReadAll(io.LimitReader(archive, h.Size))
		if err != nil || int64(len(b)) != h.Size {
			return bad("is truncated in file %s, which has %d bytes: %d are there", quote(h.Name), h.Size, len(b))
		}
		files[name] = b
	}
	// Without its end a tar reads as one that has fewer files, and what is in none of them would be removed.
	if end := make([]byte, 1024); !bytes.HasSuffix(bundle, end) {
		return bad("is truncated: the two empty blocks at a tar's end are missing")
	}
	return files, nil
}

// plainRules is the text of one rules file as a bundle.
func plainRules(text []byte) (map[string][]byte, error) {
	var is string
	switch {
	case len(bytes.TrimSpace(text)) == 0:
		return nil, event.Invalid("bundle", "is empty; want a tar of rules files and what they name, or the YAML text of one")
	case bytes.HasPrefix(text, []byte{0x1f, 0x8b}):
		is = "compressed with gzip"
	case bytes.HasPrefix(text, []byte("PK\x03\x04")):
		is = "a ZIP"
	case bytes.HasPrefix(text, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		is = "compressed with zstd"
	case bytes.IndexByte(text, 0) >= 0:
		is = "neither a tar nor YAML text, or a tar that is truncated in its first block"
	default:
		return map[string][]byte{"rules.yaml": text}, nil
	}
	return nil, event.Invalid("bundle", "is "+is+"; want a plain tar of rules files and what they name, or the YAML text of one")
}

// errBundledFile is why ${file:…} is refused in a bundle.
var errBundledFile = errors.New("${file:…} reads the files of the machine, which a bundle cannot; use ${env:NAME}, whose variables are the router's")
