package plugins

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/millrace/millrace/engine/event"
)

// HowToBuild is the command that makes a module of Go source with the SDK; errors quote it.
const HowToBuild = "GOOS=wasip1 GOARCH=wasm go build -buildmode=c-shared -o f.wasm ."

// preamble is how a core module begins; layered is how a component does.
var (
	preamble = []byte("\x00asm\x01\x00\x00\x00")
	layered  = []byte("\x00asm\x0d\x00\x01\x00")
)

// strangers are files that are sent by mistake, told by their first bytes.
var strangers = []struct{ begin, what string }{
	{string(layered), "is a WASM component, not a core module; build a core module: " + HowToBuild +
		` (Rust: --target wasm32-unknown-unknown or wasm32-wasip1 with crate-type "cdylib", without cargo-component)`},
	{"\x00asm", "is WASM of another version than 1; build it again with a current toolchain: " + HowToBuild},
	{"\x7fELF", "is an ELF program for this machine, not WASM; cross-compile it: " + HowToBuild},
	{"MZ", "is a Windows program, not WASM; cross-compile it: " + HowToBuild},
	{"\xcf\xfa\xed\xfe", "is a macOS program, not WASM; cross-compile it: " + HowToBuild},
	{"!<arch>\n", "is an archive of object files, not WASM: the main package is missing or -buildmode=c-shared is; " + HowToBuild},
	{"\x1f\x8b", "is gzip; unpack it first"},
	{"PK\x03\x04", "is a zip archive; unpack it first"},
	{"(module", "is WASM in text form; translate it first: wat2wasm f.wat -o f.wasm"},
	{"package ", "is Go source; build it first: " + HowToBuild},
}

// foreign are conventions that this build knows of but does not run, after those it has been given.
var foreign = []struct {
	speaks func(m *Module) bool
	what   string
}{
	{func(m *Module) bool { return m.ImportsFrom("extism:host/env") || m.ImportsFrom("extism:host/user") }, "is an Extism plug-in"},
	{func(m *Module) bool {
		return m.ImportsFrom("redpanda_transform") || m.Export(Func, "redpanda_transform_abi_version")
	}, "is a Redpanda data transform"},
	{func(m *Module) bool { return m.Export(Func, "_start") }, "is a WASI command (it exports _start), built without -buildmode=c-shared or -mexec-model=reactor"},
}

// inspect reads a file that claims to be a module and finds who speaks its language.
func (h *Host) inspect(file []byte) (*Module, ABI, error) {
	bad := func(format string, args ...any) (*Module, ABI, error) {
		return nil, nil, event.Bad(event.ErrInvalid, "module", fmt.Sprintf(format, args...))
	}
	if len(file) == 0 {
		return bad("the file is empty; build it again: %s", HowToBuild)
	}
	if len(file) > h.o.MaxModule {
		return nil, nil, event.Bad(event.ErrTooLarge, "module", fmt.Sprintf("has %d bytes, %d are allowed; strip it (-ldflags='-s -w', -Wl,--strip-all)", len(file), h.o.MaxModule))
	}
	if !bytes.HasPrefix(file, preamble) {
		if len(file) < len(preamble) && bytes.HasPrefix(preamble, file) {
			return bad("the file ends after %d bytes: it is cut off; send it again", len(file))
		}
		for _, s := range strangers {
			if strings.HasPrefix(string(file[:min(len(file), 16)]), s.begin) {
				return bad("%s", s.what)
			}
		}
		return bad("is not WASM: it begins with % x, a module with % x; build one: %s", file[:min(len(file), 8)], preamble, HowToBuild)
	}
	if language, source, ok := ScriptOf(file); ok {
		return h.engine(language, source)
	}
	m, err := parse(file)
	if err != nil {
		return nil, nil, err
	}
	for _, abi := range h.o.ABIs {
		if !abi.Speaks(m) {
			continue
		}
		if err := abi.Check(m); err != nil {
			return nil, nil, err
		}
		if err := h.checkImports(m); err != nil {
			return nil, nil, err
		}
		return m, abi, nil
	}
	for _, f := range foreign {
		if f.speaks(m) {
			return nil, nil, event.Bad(event.ErrUnsupported, "module", f.what+", a convention that this build does not run; write it with this router's SDK: "+HowToBuild)
		}
	}
	return bad("exports nothing that the router could call: a function exports millrace_abi_v1, millrace_buffer and millrace_handle (docs/abi.md), or is a program, a plug-in of Extism or a data transform of Redpanda (docs/abi-others.md); %s", HowToBuild)
}

// checkImports refuses by name what no host module offers.
func (h *Host) checkImports(m *Module) error {
	f := &event.Faults{Is: event.ErrInvalid}
	for _, e := range m.Imports {
		if len(f.List) == 16 {
			break
		}
		at := fmt.Sprintf("import %.60q %.60q", e.Module, e.Name)
		host := h.runtime.Module(e.Module)
		switch {
		case e.Module == "extism:host/user":
			f.List = append(f.List, event.Fault{At: at, Detail: "is a function of the program that the plug-in was written for; this router has only those of Extism itself"})
		case host == nil:
			f.List = append(f.List, event.Fault{At: at, Detail: fmt.Sprintf("this router has no module %.60q to import from", e.Module)})
		case e.Kind != Func:
			f.List = append(f.List, event.Fault{At: at, Detail: fmt.Sprintf("a %s cannot be imported; define it in the module", e.Kind)})
		case host.ExportedFunctionDefinitions()[e.Name] == nil:
			f.List = append(f.List, event.Fault{At: at, Detail: "no such host function; docs/functions.md lists them"})
		}
	}
	if len(f.List) == 0 {
		return nil
	}
	return f
}
