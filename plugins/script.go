package plugins

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"github.com/millrace/millrace/engine/event"
)

// An Engine is a guest that runs functions which are source text. All functions of an engine share its
// machine code; the text is what makes each function's version.
type Engine struct {
	Language string // "js": what its scripts say of themselves
	Module   []byte // speaks one of the host's conventions, and reads its script by the host functions below
}

// inspectedEngine is an engine as it was inspected for the first of its scripts, which takes milliseconds.
type inspectedEngine struct {
	once   sync.Once
	module *Module
	abi    ABI
	digest string
	err    error
}

// scriptSection names the custom section that makes a file a script: length and name of the language,
// then the source.
const scriptSection = "millrace:script"

// scriptModule is the module of host functions for engines:
//
//	source(buf, room) -> size           copies the source where room suffices
//	fail(memory, text, len)             ends the call; memory is 1 where there was no more of it
const scriptModule = "millrace_script"

const maxScript = 4 << 20

// ScriptName is what engines call a script's file where they say what is wrong with it, and at which line.
const ScriptName = "function.js"

// Script makes a file of source text that is kept, pushed and versioned as modules are: a WASM module without code.
func Script(language string, source []byte) ([]byte, error) {
	switch {
	case len(bytes.TrimSpace(source)) == 0:
		return nil, event.Bad(event.ErrInvalid, "module", "the source is empty")
	case len(source) > maxScript:
		return nil, event.Bad(event.ErrTooLarge, "module", fmt.Sprintf("the source has %d bytes; %d are allowed", len(source), maxScript))
	case !utf8.Valid(source):
		return nil, event.Bad(event.ErrInvalid, "module", "the source is not UTF-8")
	}
	body := appendU32(nil, uint32(len(scriptSection)))
	body = append(body, scriptSection...)
	body = appendU32(body, uint32(len(language)))
	body = append(append(body, language...), source...)
	file := append(slices.Clone(preamble), 0)
	return append(appendU32(file, uint32(len(body))), body...), nil
}

// ScriptOf returns the source that a file of Script holds, and its language; false for any other file.
func ScriptOf(file []byte) (language string, source []byte, ok bool) {
	if !bytes.HasPrefix(file, preamble) || len(file) < len(preamble)+1 || file[len(preamble)] != 0 {
		return "", nil, false
	}
	r := reader{b: file, at: len(preamble) + 1}
	size := r.u32("size")
	if r.err != nil || int(size) != len(file)-r.at || r.name() != scriptSection {
		return "", nil, false
	}
	language = r.name()
	return language, file[r.at:], r.err == nil
}

// engine is the module that runs a script.
func (h *Host) engine(language string, source []byte) (*Module, ABI, error) {
	var known []string
	for i, e := range h.o.Engines {
		if e.Language == language {
			p := &h.engines[i]
			p.once.Do(func() {
				p.module, p.abi, p.err = h.inspect(e.Module)
				p.digest = digestOf(e.Module)
			})
			if p.err != nil {
				return nil, nil, fmt.Errorf("engine for %s: %w", language, p.err)
			}
			m := *p.module
			m.script, m.shared = source, p.digest
			return &m, p.abi, nil
		}
		known = append(known, e.Language)
	}
	return nil, nil, event.Bad(event.ErrUnsupported, "module", fmt.Sprintf("is a script in %.20q; this router runs: %s", language, strings.Join(append(known, "modules"), ", ")))
}

// linkScript makes the host functions for engines known. A guest without a script reads an empty one.
func linkScript(ctx context.Context, r wazero.Runtime) error {
	i32 := api.ValueTypeI32
	_, err := r.NewHostModuleBuilder(scriptModule).
		NewFunctionBuilder().WithGoFunction(api.GoFunc(func(ctx context.Context, s []uint64) {
		in := InstanceOf(ctx)
		source := in.fn.script
		if uint64(len(source)) <= uint64(uint32(s[1])) {
			in.Work(len(source))
			in.Memory().Write(uint32(s[0]), source) // out of bounds it is the guest that is none the wiser
		}
		s[0] = uint64(len(source))
	}), []api.ValueType{i32, i32}, []api.ValueType{i32}).Export("source").
		NewFunctionBuilder().WithGoFunction(api.GoFunc(func(ctx context.Context, s []uint64) {
		in := InstanceOf(ctx)
		g := &GuestError{Reason: ReasonTrap, Index: -1, Err: errors.New("the script failed")}
		if uint32(s[0]) == 1 {
			g.Reason = ReasonMemory
		}
		if text, ok := in.Memory().Read(uint32(s[1]), uint32(s[2])); ok {
			g.Err = errors.New(bounded(string(text)))
		}
		in.End(g)
	}), []api.ValueType{i32, i32, i32}, nil).Export("fail").
		Instantiate(ctx)
	return err
}
