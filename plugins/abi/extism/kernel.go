package extism

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"github.com/millrace/millrace/plugins"
)

// kernelWasm is kernel.wat, built by: wat2wasm kernel.wat -o kernel.wasm
//
//go:embed kernel.wasm
var kernelWasm []byte

// Names of modules: what plug-ins import, and what of it the host does.
const (
	envModule  = "extism:host/env"
	hostModule = "millrace:extism"
)

// Bounds of the variables of an instance: names and values together.
const maxVars = 1 << 20

// link makes known what kernels import, and a kernel of which every plug-in gets a copy of its own.
func link(ctx context.Context, r wazero.Runtime) error {
	i32, i64 := api.ValueTypeI32, api.ValueTypeI64
	b := r.NewHostModuleBuilder(hostModule)
	for _, f := range []struct {
		name    string
		in, out []api.ValueType
		fn      func(k *call, s []uint64)
	}{
		{"full", nil, nil, full},
		{"config_get", []api.ValueType{i64}, []api.ValueType{i64}, configGet},
		{"var_get", []api.ValueType{i64}, []api.ValueType{i64}, varGet},
		{"var_set", []api.ValueType{i64, i64}, nil, varSet},
		{"http_request", []api.ValueType{i64, i64}, []api.ValueType{i64}, httpRequest},
		{"http_status_code", nil, []api.ValueType{i32}, httpStatus},
		{"http_headers", nil, []api.ValueType{i64}, httpHeaders},
		{"log", []api.ValueType{i32, i64}, nil, logMessage},
	} {
		b.NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(func(ctx context.Context, kernel api.Module, s []uint64) {
			f.fn(&call{ctx, plugins.InstanceOf(ctx), kernel}, s)
		}), f.in, f.out).Export(f.name)
	}
	if _, err := b.Instantiate(ctx); err != nil {
		return err
	}
	_, err := r.InstantiateWithConfig(ctx, kernelWasm, wazero.NewModuleConfig().WithName(envModule))
	return err
}

// A call is one call of a host function by a kernel.
type call struct {
	ctx    context.Context
	in     *plugins.Instance
	kernel api.Module
}

// fail ends the guest with a trap.
func (k *call) fail(format string, args ...any) {
	k.in.End(&plugins.GuestError{Reason: plugins.ReasonTrap, Index: -1, Err: fmt.Errorf(format, args...)})
}

// guest is the plug-in at work. While it is initialised there is none, and no event to work for.
func (k *call) guest(what string) *guest {
	g, ok := k.in.Guest().(*guest)
	if !ok {
		k.fail("%s while the plug-in is initialised", what)
	}
	return g
}

// block is what lies at a block's offset, shared with the guest; nil if there is no block.
func (k *call) block(offset uint64) []byte {
	stack := [1]uint64{offset}
	if err := k.kernel.ExportedFunction("length").CallWithStack(k.ctx, stack[:]); err != nil {
		k.fail("block %d: %v", offset, err)
	}
	b := read(k.kernel.Memory(), offset, stack[0])
	k.in.Work(len(b))
	return b
}

func read(m api.Memory, offset, n uint64) []byte {
	if offset > uint64(m.Size()) || n > uint64(m.Size()) {
		return nil
	}
	b, _ := m.Read(uint32(offset), uint32(n))
	return b
}

// put makes a block of b for the guest; 0 if b is empty.
func (k *call) put(b string) uint64 {
	if b == "" {
		return 0
	}
	k.in.Work(len(b))
	stack := [1]uint64{uint64(len(b))}
	if err := k.kernel.ExportedFunction("alloc").CallWithStack(k.ctx, stack[:]); err != nil {
		full(k, nil)
	}
	k.kernel.Memory().WriteString(uint32(stack[0]), b)
	return stack[0]
}

func full(k *call, _ []uint64) {
	k.in.End(&plugins.GuestError{Reason: plugins.ReasonMemory, Index: -1,
		Err: errors.New("the plug-in's blocks take more than 32 MiB; free those that are done with")})
}

func configGet(k *call, s []uint64) {
	value, _ := k.in.Config(k.block(s[0]))
	s[0] = k.put(value)
}

func varGet(k *call, s []uint64) { s[0] = k.put(k.guest("var_get").vars[string(k.block(s[0]))]) }

func varSet(k *call, s []uint64) {
	g := k.guest("var_set")
	name, value := string(k.block(s[0])), string(k.block(s[1]))
	if old, ok := g.vars[name]; ok {
		g.varBytes -= len(name) + len(old)
		delete(g.vars, name)
	}
	if s[1] == 0 {
		return
	}
	if g.varBytes += len(name) + len(value); g.varBytes > maxVars {
		k.fail("the plug-in's variables take more than %d bytes", maxVars)
	}
	g.vars[name] = value
}

// httpRequest sends a request that is described in JSON. Whatever prevents it ends the guest: the convention has no
// value for that.
func httpRequest(k *call, s []uint64) {
	g := k.guest("http_request")
	var asked struct {
		URL     string
		Method  string
		Headers map[string]string
	}
	if err := json.Unmarshal(k.block(s[0]), &asked); err != nil {
		k.fail("http_request: the request is not the JSON object it should be: %v", err)
	}
	r := &plugins.Request{Method: strings.ToUpper(asked.Method), URL: asked.URL, Header: http.Header{}, Body: append([]byte{}, k.block(s[1])...)}
	if r.Method == "" {
		r.Method = http.MethodGet
	}
	for name, value := range asked.Headers {
		r.Header.Set(name, value)
	}
	answer, err := k.in.Fetch(r, 0)
	if err != nil {
		k.fail("http_request: %v", err)
	}
	g.answer = answer
	s[0] = k.put(string(answer.Body))
}

func httpStatus(k *call, s []uint64) {
	s[0] = 0
	if a := k.guest("http_status_code").answer; a != nil {
		s[0] = uint64(uint32(a.Status))
	}
}

// httpHeaders gives the last answer's headers as a JSON object, names in lower case.
func httpHeaders(k *call, s []uint64) {
	s[0] = 0
	a := k.guest("http_headers").answer
	if a == nil {
		return
	}
	headers := map[string]string{}
	for name, values := range a.Header {
		headers[strings.ToLower(name)] = strings.Join(values, ", ")
	}
	b, err := json.Marshal(headers)
	if err != nil {
		k.fail("http_headers: %v", err)
	}
	s[0] = k.put(string(b))
}

func logMessage(k *call, s []uint64) { k.in.Log(int(int32(s[0])), k.block(s[1])) }
